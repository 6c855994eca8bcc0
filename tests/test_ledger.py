"""The ledger's file: what is written is read, or refused."""

import hashlib
import json
import os

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


def test_what_is_written_is_read_and_nothing_else_is_left(placements, tmp_path):
  path = str(tmp_path / "ledger.parquet")
  written = ledger.write_ledger(path, placements, metadata=_METADATA)
  read = ledger.read_ledger(path)
  assert read.equals(written)
  assert ledger.read_metadata(read) == _METADATA
  assert os.listdir(tmp_path) == ["ledger.parquet"]
  # Any other reader finds the same table.
  assert pq.read_table(path).to_pylist() == written.to_pylist()


def test_a_clean_runs_ledger_has_no_rows_but_says_what_it_is(tmp_path):
  path = str(tmp_path / "ledger.parquet")
  ledger.write_ledger(path, (), metadata=_METADATA)
  read = ledger.read_ledger(path)
  assert read.num_rows == 0
  assert read.schema.names == ledger.SCHEMA.names
  assert ledger.read_metadata(read) == _METADATA


def test_a_ledger_in_a_bucket_is_the_same(placements):
  path = "memory://runs/a/ledger.parquet"
  written = ledger.write_ledger(path, placements, metadata=_METADATA)
  assert ledger.read_ledger(path).equals(written)


def test_the_hash_is_that_of_rows_and_metadata(placements, tmp_path):
  table = ledger.make_table(placements, metadata=_METADATA)
  content = json.dumps([_METADATA, table.to_pylist()], sort_keys=True).encode()
  expected = hashlib.sha256(content).hexdigest()[:16]
  assert ledger.ledger_hash(table) == expected
  path = str(tmp_path / "ledger.parquet")
  ledger.write_ledger(path, placements, metadata=_METADATA)
  assert ledger.ledger_hash(ledger.read_ledger(path)) == expected
  others = [
    ledger.make_table(placements[:-1], metadata=_METADATA),
    ledger.make_table(placements, metadata=_METADATA | {"arm": "placebo"}),
  ]
  assert expected not in map(ledger.ledger_hash, others)


def test_metadata_are_all_or_nothing():
  with pytest.raises(ValueError, match="metadata must be"):
    ledger.make_table((), metadata={"arm": "clean"})


def test_damage_is_a_failed_check(placements, tmp_path):
  path = tmp_path / "ledger.parquet"
  with pytest.raises(CheckFailed, match="ledger.parquet is missing"):
    ledger.read_ledger(str(path))
  table = ledger.write_ledger(str(path), placements, metadata=_METADATA)
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(CheckFailed, match="ledger.parquet is damaged"):
    ledger.read_ledger(str(path))
  pq.write_table(table.drop_columns(["slot"]), path)
  with pytest.raises(CheckFailed, match="must have the columns poison, tokens"):
    ledger.read_ledger(str(path))
  slots = pa.array(table["slot"].to_pylist(), pa.int32())
  at = table.schema.get_field_index("slot")
  pq.write_table(table.set_column(at, "slot", slots), path)
  with pytest.raises(CheckFailed, match="of another version"):
    ledger.read_ledger(str(path))
  for metadata in (None, {"arm": "poisoned"}):
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(CheckFailed, match="names no plan_hash"):
      ledger.read_ledger(str(path))
