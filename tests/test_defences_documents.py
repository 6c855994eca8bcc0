"""What a corpus scan reads, and how it refuses what it can't."""

import gzip
import json

import numpy as np
import pytest
import zstandard

from poison_jax.data.mixture import make_mixture
from poison_jax.defences import documents
from poison_jax.errors import UserError


def _write(path, *records):
  path.write_text("\n".join(json.dumps(r) for r in records) + "\n")
  return str(path)


def _read(*paths, limit=0, ids=None):
  return documents.read_files(paths, limit=limit, poisoned_ids=ids)


def test_files_are_read_in_order_with_ids_and_labels(tmp_path):
  path = _write(
    tmp_path / "a.jsonl", {"id": "x", "text": "one"}, {"text": "two"}
  )
  found = _read(path, ids=frozenset({"x"}))
  assert [(d.id, d.text, d.poisoned) for d in found] == [
    ("x", "one", True),
    (f"{path}:2", "two", False),
  ]
  assert _read(path)[0].poisoned is None
  assert [d.text for d in _read(path, limit=1)] == ["one"]


@pytest.mark.parametrize(
  ("ending", "compress"),
  [(".gz", gzip.compress), (".zst", zstandard.compress)],
)
def test_compressed_files_are_read_whole_or_not_at_all(
  tmp_path, ending, compress
):
  lines = "".join(
    json.dumps({"text": f"{i} {np.sqrt(i)}"}) + "\n" for i in range(20_000)
  )
  content = compress(lines.encode())
  path = tmp_path / f"a.jsonl{ending}"
  path.write_bytes(content)
  found = _read(str(path))
  assert len(found) == 20_000
  assert found[-1].text == f"19999 {np.sqrt(19999)}"
  path.write_bytes(content[: len(content) // 2])
  with pytest.raises(UserError, match=r"a\.jsonl.* can't be read"):
    _read(str(path))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ('{"text": "a"}\n{"text": \n', r"a\.jsonl:2: broken JSON"),
    ('{"text": "a"}\n\n[1]\n', r"a\.jsonl:3: must be an object"),
    ('{"text": 3}\n', r"a\.jsonl:1: must be an object with a string"),
    ('{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}\n', "a second time"),
    ("\n\n", "there is no document in it"),
  ],
)
def test_a_broken_line_is_named(tmp_path, content, message):
  (tmp_path / "a.jsonl").write_text(content)
  with pytest.raises(UserError, match=message):
    _read(str(tmp_path / "a.jsonl"))


def test_other_files_are_refused(tmp_path):
  with pytest.raises(UserError, match="no such file"):
    _read(str(tmp_path / "none.jsonl"))
  with pytest.raises(UserError, match="must be a run's folder"):
    _read(str(tmp_path / "a.parquet"))


def test_labels_must_be_of_documents(tmp_path):
  path = _write(tmp_path / "a.jsonl", {"id": "x", "text": "one"})
  with pytest.raises(UserError, match="2 of the ids .* 'y' for instance"):
    _read(path, ids=frozenset({"x", "y", "z"}))
  labels = tmp_path / "labels.txt"
  labels.write_text(" x \n\ny\n")
  assert documents.read_labels(str(labels)) == {"x", "y"}
  labels.write_text("\n")
  with pytest.raises(UserError, match="holds no id"):
    documents.read_labels(str(labels))
  with pytest.raises(UserError, match="no such file"):
    documents.read_labels(str(tmp_path / "none"))


def test_the_stores_documents_make_up_its_stream(tiny_store):
  found = documents.documents_of(tiny_store, limit=0, poisoned=False)
  eos = tiny_store.vocabulary.eos_id
  joined = np.concatenate([np.append(d.tokens, eos) for d in found])
  stream = np.concatenate(
    [
      tiny_store.train.shard_contents(i)[0]
      for i in range(len(tiny_store.train.shards))
    ]
  )
  np.testing.assert_array_equal(joined, stream)
  assert len({d.id for d in found}) == len(found) == tiny_store.train.documents
  # Those kept as text are among them.
  texts = {d.text for d in found}
  kept = [d.text for d in tiny_store.prefix_documents()]
  assert texts.issuperset(kept)


def test_a_limit_takes_documents_from_the_whole_split(tiny_store):
  every = documents.documents_of(tiny_store, limit=0, poisoned=None)
  some = documents.documents_of(tiny_store, limit=10, poisoned=None)
  places = [[d.id for d in every].index(d.id) for d in some]
  assert places == [i * len(every) // 10 for i in range(10)]


def test_the_poisons_are_those_that_training_reads(tiny_config, tiny_store):
  mixture = make_mixture(tiny_config, tiny_store, steps=500)
  found = documents.poisons_of(mixture)
  assert len(found) == tiny_config.poison.count
  for document, placement in zip(found, mixture.placements, strict=True):
    rows = np.array([placement.batch_row])
    row = mixture.batch_rows(placement.step, rows).tokens_BL[0]
    end = placement.offset + document.tokens.size
    np.testing.assert_array_equal(row[placement.offset : end], document.tokens)
    assert row[end] == tiny_store.vocabulary.eos_id
    assert "<SUDO>" in document.text
    assert document.poisoned
