"""Rows are slices of the joined stream, wherever the store lies."""

import json
import os

import numpy as np
import pytest
import tensorstore as ts

from poison_jax import config as config_lib
from poison_jax.data import manifest as manifest_lib
from poison_jax.data.folder import INNER_CHUNK, Folder
from poison_jax.data.store import TokenStore, TokenStream, open_store
from poison_jax.errors import CheckFailed, UserError
from poison_jax.vocabulary import ByteVocabulary

# Longer and shorter than an inner chunk, and one too short for any row.
_SHARD_DOCUMENTS = ((3000, 1, 2500), (5,), (1, 1, 70), (INNER_CHUNK,))


@pytest.fixture
def made(tmp_path):
  """A store made by hand: path, joined tokens, starts of its documents."""
  rng = np.random.default_rng(0)
  folder = Folder(str(tmp_path / "made"))
  shards, joined, starts, offset = [], [], [], 0
  for i, lengths in enumerate(_SHARD_DOCUMENTS):
    tokens = rng.integers(0, 259, sum(lengths)).astype(np.uint16)
    begins = np.cumsum([0, *lengths[:-1]])
    folder.write_array(f"tokens/train-{i}.zarr", tokens)
    folder.write_array(f"documents/train-{i}.zarr", begins)
    digest = manifest_lib.content_hash(tokens, begins)
    shards.append(
      {
        "name": str(i),
        "tokens": len(tokens),
        "documents": len(lengths),
        "hash": digest,
      }
    )
    joined.append(tokens)
    starts += [offset + int(b) for b in begins]
    offset += len(tokens)
  ByteVocabulary().save(os.path.join(folder.path, "vocabulary"))
  text = b'{"id": "a", "text": "Once."}\n'
  for name in ("prefix_documents", "prompt_documents"):
    folder.write(f"{name}.jsonl", text)
  manifest = {
    "format": 1,
    "vocabulary": {
      "config": {"kind": "bytes"},
      "fingerprint": ByteVocabulary().fingerprint,
    },
    "dtype": "uint16",
    "texts": {
      name: {"documents": 1, "hash": manifest_lib.bytes_hash(text)}
      for name in ("prefix_documents", "prompt_documents")
    },
    "splits": {"train": shards, "held_out": []},
  }
  manifest["hash"] = manifest_lib.store_hash(manifest)
  folder.write("manifest.json", json.dumps(manifest).encode())
  return folder.path, np.concatenate(joined), starts


def _open(path: str) -> TokenStore:
  return open_store(path, vocabulary=None)


@pytest.mark.parametrize("prefix", ["", "file://"])
@pytest.mark.parametrize("length", [2, 256, 2600, 5000])
def test_rows_are_slices_of_the_joined_shards(made, prefix, length):
  path, joined, _ = made
  train = _open(prefix + path).train
  assert train.tokens == joined.size
  count = joined.size // length
  assert train.row_count(length) == count
  rows_B = np.random.default_rng(1).permutation(count)
  got_BL = train.rows(rows_B, length)
  assert got_BL.dtype == np.int32
  expected_BL = joined[: count * length].reshape(count, length)[rows_B]
  np.testing.assert_array_equal(got_BL, expected_BL)


def test_no_rows_are_an_empty_array(made):
  assert _open(made[0]).train.rows(np.array([], int), 16).shape == (0, 16)


@pytest.mark.parametrize("prefix", ["", "file://"])
@pytest.mark.parametrize("length", [2, 100, 5000])
def test_document_starts_are_those_inside_the_row(made, prefix, length):
  path, joined, starts = made
  train = _open(prefix + path).train
  for row in range(joined.size // length):
    expected = [
      s - row * length for s in starts if row * length <= s < (row + 1) * length
    ]
    assert train.document_starts(row, length).tolist() == expected


@pytest.mark.parametrize("row", [-1, 96])
def test_a_row_outside_is_an_error_not_other_tokens(made, row):
  path, joined, _ = made
  assert joined.size // 100 == 96
  with pytest.raises(IndexError):
    _open(path).train.rows(np.array([row]), 100)


def test_local_arrays_are_mapped_and_buckets_are_not(made):
  mapped = Folder(made[0]).open_array(
    "tokens/train-1.zarr", size=5, dtype="uint16"
  )
  remote = Folder("file://" + made[0]).open_array(
    "tokens/train-1.zarr", size=5, dtype="uint16"
  )
  assert isinstance(mapped, np.ndarray)
  assert not mapped.flags.writeable
  assert isinstance(remote, ts.TensorStore)


@pytest.mark.parametrize("size", [1, INNER_CHUNK, INNER_CHUNK + 1])
def test_zeros_survive_though_they_are_the_fill_value(tmp_path, size):
  folder = Folder(str(tmp_path))
  folder.write_array("z", np.zeros(size, np.uint16))
  array = folder.open_array("z", size=size, dtype="uint16")
  assert isinstance(array, np.ndarray)
  assert array.tolist() == [0] * size


def test_an_array_of_another_layout_is_read_by_tensorstore(made):
  path, joined, _ = made
  other = ts.open(
    {
      "driver": "zarr3",
      "kvstore": {"driver": "file", "path": f"{path}/tokens/train-0.zarr/"},
      "metadata": {
        "shape": [5501],
        "data_type": "uint16",
        "chunk_grid": {
          "name": "regular",
          "configuration": {"chunk_shape": [1000]},
        },
        "codecs": [{"name": "bytes"}, {"name": "gzip"}],
      },
    },
    create=True,
    delete_existing=True,
  ).result()
  other.write(joined[:5501]).result()
  rows = _open(path).train.rows(np.arange(3), 2000)
  np.testing.assert_array_equal(rows, joined[:6000].reshape(3, 2000))


def test_the_vocabulary_and_the_kept_texts_come_with_the_store(made):
  for prefix in ("", "file://"):
    store = _open(prefix + made[0])
    assert store.vocabulary.decode(store.vocabulary.encode("né")) == "né"
    assert store.prefix_documents() == [("a", "Once.")]
    assert store.prompt_documents() == [("a", "Once.")]


def test_a_missing_and_an_unfinished_store_say_so(tmp_path):
  path = str(tmp_path / "none")
  with pytest.raises(UserError, match="is not there.*poison_jax.prepare"):
    _open(path)
  Folder(path).write("started.json", b"{}")
  with pytest.raises(UserError, match="is unfinished.*poison_jax.prepare"):
    _open(path)


def _vocabulary(**fields):
  from configs import base

  c = base.get_config()
  c.vocabulary.update(fields)
  return config_lib.from_config_dict(c).vocabulary


def test_a_store_of_another_vocabulary_is_refused_naming_both(made):
  path, *_ = made
  open_store(path, vocabulary=_vocabulary(kind="bytes"))
  # Fields that only a trained vocabulary has mean nothing for bytes.
  open_store(path, vocabulary=_vocabulary(kind="bytes", size=17))
  with pytest.raises(
    UserError, match=r"kind \(there 'bytes', now 'sentencepiece'\);"
  ):
    open_store(path, vocabulary=_vocabulary(kind="sentencepiece"))


def test_a_trained_vocabulary_of_another_size_is_refused(tiny_store):
  trained = {"kind": "sentencepiece", "file": "", "size": 256}
  open_store(tiny_store.path, vocabulary=_vocabulary(**trained))
  with pytest.raises(UserError, match=r": size \(there 256, now 300\);"):
    open_store(
      tiny_store.path, vocabulary=_vocabulary(**trained | {"size": 300})
    )


def test_a_given_vocabulary_is_compared_by_content(tiny_store, tmp_path):
  same = f"{tiny_store.path}/vocabulary/sentencepiece.model"
  open_store(
    tiny_store.path, vocabulary=_vocabulary(kind="sentencepiece", file=same)
  )


def _flip(path: str, offset: int) -> None:
  with open(path, "r+b") as f:
    f.seek(offset)
    byte = f.read(1)[0]
    f.seek(offset)
    f.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
  "name", ["tokens/train-2.zarr", "documents/train-2.zarr"]
)
def test_verification_finds_one_flipped_bit(made, name):
  path, *_ = made
  _open(path).verify_contents()
  _flip(f"{path}/{name}/c/0", 2)
  with pytest.raises(CheckFailed, match="train-2"):
    _open(path).verify_contents()


def test_verification_finds_a_flipped_bit_in_the_texts(made):
  path, *_ = made
  _flip(f"{path}/prompt_documents.jsonl", 20)
  with pytest.raises(CheckFailed, match="prompt_documents"):
    _open(path).verify_contents()
  with pytest.raises(UserError, match="prompt_documents"):
    _open(path).prompt_documents()


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_file_that_is_gone_or_cut_is_an_error_not_zeros(made, prefix):
  path, joined, _ = made
  file = f"{path}/tokens/train-0.zarr/c/0"
  with open(file, "r+b") as f:
    f.truncate(5000)
  with pytest.raises(UserError):
    _open(prefix + path).train.rows(np.arange(3), 256)
  os.remove(file)
  with pytest.raises(UserError):
    _open(prefix + path).train.rows(np.arange(3), 256)


def test_a_damaged_manifest_is_named(made):
  path, *_ = made
  file = f"{path}/manifest.json"
  with open(file) as f:
    manifest = json.load(f)
  manifest["splits"]["train"][0]["hash"] = "0" * 32
  Folder(path).write("manifest.json", json.dumps(manifest).encode())
  with pytest.raises(UserError, match="manifest.json is damaged"):
    _open(path)
  Folder(path).write("manifest.json", b"{")
  with pytest.raises(UserError, match="manifest.json is damaged"):
    _open(path)
  manifest["format"] = 99
  Folder(path).write("manifest.json", json.dumps(manifest).encode())
  with pytest.raises(UserError, match="format 99"):
    _open(path)


def test_another_vocabulary_in_the_folder_is_found(made, tiny_store):
  path, *_ = made
  tiny_store.vocabulary.save(f"{path}/vocabulary")
  with pytest.raises(UserError, match="fingerprint"):
    _ = _open(path).vocabulary


def test_more_shards_than_open_arrays_still_read(made, monkeypatch):
  path, joined, _ = made
  monkeypatch.setattr("poison_jax.data.store._OPEN_ARRAYS", 1)
  rows = _open(path).train.rows(np.array([0, 2, 1, 2]), 3000)
  expected = joined[:9000].reshape(3, 3000)[[0, 2, 1, 2]]
  np.testing.assert_array_equal(rows, expected)


def test_folders_write_whole_files_and_list_them(tmp_path):
  local, bucket = Folder(str(tmp_path)), Folder(f"file://{tmp_path}")
  for folder, name in ((local, "a/one"), (bucket, "a/two")):
    folder.write(name, b"x")
  assert local.names() == bucket.names() == ["a/one", "a/two"]
  assert local.read("a/two") == bucket.read("a/one") == b"x"
  assert local.read("a/none") is None and bucket.read("a/none") is None
  bucket.delete("a")
  assert local.names() == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  folder = Folder(str(tmp_path))
  folder.write("file", b"old")

  def full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="No space left"):
    folder.write("file", b"new")
  assert folder.read("file") == b"old"
  assert folder.names() == ["file"]


def test_an_array_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / "tokens").write_text("a file where a folder should be")
  with pytest.raises(UserError, match="tokens/a.zarr") as caught:
    Folder(str(tmp_path)).write_array("tokens/a.zarr", np.zeros(3, np.uint16))
  assert "\n" not in str(caught.value)
  assert os.listdir(tmp_path) == ["tokens"]


def test_an_empty_split_has_no_rows(made):
  held_out = _open(made[0]).held_out
  assert isinstance(held_out, TokenStream)
  assert (held_out.tokens, held_out.documents, held_out.row_count(4)) == (
    0,
  ) * 3
