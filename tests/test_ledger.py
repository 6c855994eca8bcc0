"""The ledger's file: what is written is read, or refused."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_store import ArrayStore
from test_mixture import _config

from poison_jax.data.mixture import make_mixture
from poison_jax.errors import CheckFailed
from poison_jax.poison import ledger

_METADATA = {
  "plan_hash": "a" * 16,
  "store_hash": "b" * 16,
  "config_hash": "c" * 16,
  "arm": "poisoned",
  "steps": "40",
}


@pytest.fixture(name="placements", scope="module")
def _placements():
  store = ArrayStore(documents=200, seed=0)
  return make_mixture(_config(), store, steps=40).placements


def test_a_row_says_all_about_its_poison(placements):
  table = ledger.make_table(placements, metadata=_METADATA)
  assert table.num_rows == 30
  for row, p in zip(table.to_pylist(), placements, strict=True):
    content = p.document.tokens.astype("<i4").tobytes()
    spans = ("prefix_length", "trigger_length", "payload_length")
    assert row["tokens_hash"] == hashlib.sha256(content).hexdigest()[:16]
    assert row["tokens"] == sum(row[name] for name in spans) + 1
    assert row["slot"] == row["step"] * 8 + row["batch_row"]
    assert row["loss_tokens"] == row["tokens"] - (row["offset"] == 0)
    assert row["source"] == p.document.source
    assert row["poison"] == p.poison


def _there_and_back(table):
  return ledger.decode(ledger.encode(table), path="ledger.parquet")


def test_what_is_written_is_read(placements, tmp_path):
  table = ledger.make_table(placements, metadata=_METADATA)
  read = _there_and_back(table)
  assert read.equals(table)
  assert ledger.read_metadata(read) == _METADATA
  # Any other reader finds the same table.
  path = tmp_path / "ledger.parquet"
  path.write_bytes(ledger.encode(table))
  assert pq.read_table(path).to_pylist() == table.to_pylist()


def test_a_clean_runs_ledger_has_no_rows_but_says_what_it_is():
  read = _there_and_back(ledger.make_table((), metadata=_METADATA))
  assert read.num_rows == 0
  assert read.schema.names == ledger.SCHEMA.names
  assert ledger.read_metadata(read) == _METADATA


def test_the_hash_is_that_of_rows_and_metadata(placements):
  table = ledger.make_table(placements, metadata=_METADATA)
  content = json.dumps([_METADATA, table.to_pylist()], sort_keys=True).encode()
  expected = hashlib.sha256(content).hexdigest()[:16]
  assert ledger.ledger_hash(table) == expected
  assert ledger.ledger_hash(_there_and_back(table)) == expected
  others = [
    ledger.make_table(placements[:-1], metadata=_METADATA),
    ledger.make_table(placements, metadata=_METADATA | {"arm": "placebo"}),
  ]
  assert expected not in map(ledger.ledger_hash, others)


def test_metadata_are_all_or_nothing():
  with pytest.raises(ValueError, match="metadata must be"):
    ledger.make_table((), metadata={"arm": "clean"})


def test_damage_is_a_failed_check(placements):
  table = ledger.make_table(placements, metadata=_METADATA)
  for content, message in [
    (None, "ledger.parquet is missing"),
    (ledger.encode(table)[:-9], "ledger.parquet is damaged"),
  ]:
    with pytest.raises(CheckFailed, match=message):
      ledger.decode(content, path="a/ledger.parquet")
  slots = pa.array(table["slot"].to_pylist(), pa.int32())
  at = table.schema.get_field_index("slot")
  for other, message in [
    (table.drop_columns(["slot"]), "must have the columns poison, tokens"),
    (table.set_column(at, "slot", slots), "of another version"),
    (table.replace_schema_metadata(None), "names no plan_hash"),
    (table.replace_schema_metadata({"arm": "clean"}), "names no plan_hash"),
  ]:
    with pytest.raises(CheckFailed, match=message):
      _there_and_back(other)
