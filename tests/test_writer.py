"""What a store holds depends on the corpus alone, and is all of the corpus."""

import dataclasses
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from configs import base
from poison_jax import config as config_lib
from poison_jax import vocabulary as vocabulary_lib
from poison_jax.corpora import blocks, claim, documents, writer
from poison_jax.corpora.blocks import BlockRecord
from poison_jax.corpora.samples import Kept, Threshold, smallest
from poison_jax.data.folder import Folder
from poison_jax.data.store import open_store
from poison_jax.errors import UserError
from poison_jax.vocabulary import ByteVocabulary


def _documents(count: int, seed: int = 0) -> list[str]:
  """Returns texts of a few hundred characters, no two alike."""
  rng = np.random.default_rng(seed)
  words = ["sun", "über", "moon\n", "日本", "walks", "🙂"]
  return [
    f"{i} " + " ".join(rng.choice(words, rng.integers(1, 90)))
    for i in range(count)
  ]


def _write_lines(path, texts) -> None:
  lines = "".join(json.dumps({"text": t}) + "\n" for t in texts)
  packed = lines.encode()
  path.write_bytes(gzip.compress(packed) if path.suffix == ".gz" else packed)


def _config(tmp_path, store="store", **fields):
  c = base.get_config()
  c.corpus.task = "files"
  c.corpus.files = str(tmp_path / "*.jsonl*")
  c.corpus.store = str(tmp_path / store)
  c.corpus.held_out = 0.25
  c.corpus.prefix_documents = 10
  c.corpus.workers = 1
  c.vocabulary.kind = "bytes"
  c.corpus.update(fields)
  return config_lib.from_config_dict(c)


def _write(config, say=lambda _: None):
  outcome = writer.write_store(config, report=lambda *_: None, say=say)
  return open_store(config.corpus.store, vocabulary=None), outcome


def _contents(folder) -> dict[str, str]:
  return {
    name: hashlib.sha256(Folder(str(folder)).read(name)).hexdigest()
    for name in Folder(str(folder)).names()
  }


def _texts(stream) -> list[str]:
  """Returns a split's documents, cut at the end-of-document tokens."""
  tokens = stream.rows(np.array([0]), stream.tokens)[0]
  ends = np.flatnonzero(tokens == ByteVocabulary.eos_id)
  assert ends[-1] == stream.tokens - 1
  pieces = np.split(tokens, ends[:-1] + 1)
  assert stream.document_starts(0, stream.tokens).tolist() == [
    0,
    *(ends[:-1] + 1),
  ]
  return [ByteVocabulary().decode(p) for p in pieces]


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of 5,000 characters, so that small corpora have many."""
  monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 5_000)


@pytest.fixture
def many_shards(monkeypatch):
  """A shard a file, however small."""
  monkeypatch.setattr(documents, "SHARD_BYTES", 0)


def test_both_splits_together_are_the_corpus_in_order(tmp_path, small_blocks):
  texts = _documents(150)
  _write_lines(tmp_path / "a.jsonl.gz", texts[:100])
  _write_lines(tmp_path / "b.jsonl", texts[100:])
  store, outcome = _write(_config(tmp_path))
  assert not outcome.already_finished
  assert len(store.train.shards) > 3
  train, held_out = _texts(store.train), _texts(store.held_out)
  # The split as documented: BLAKE2b's first 64 bits as a fraction.
  expected = {"train": [], "held_out": []}
  for text in texts:
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    expected["held_out" if fraction < 0.25 else "train"].append(text)
  assert (train, held_out) == (expected["train"], expected["held_out"])
  assert 20 <= len(held_out) <= 55  # 25 % of 150.
  store.verify_contents()


def test_a_document_and_its_duplicates_lie_on_one_side(tmp_path, small_blocks):
  texts = _documents(60)
  _write_lines(tmp_path / "a.jsonl", texts)
  _write_lines(tmp_path / "b.jsonl", texts[::-1])
  store, _ = _write(_config(tmp_path))
  train, held_out = _texts(store.train), _texts(store.held_out)
  assert len(train) + len(held_out) == 120
  assert not set(train) & set(held_out)
  for kept_documents in (store.prefix_documents(), store.prompt_documents()):
    kept = [d.text for d in kept_documents]
    assert len(kept) == len(set(kept))


def test_the_kept_texts_are_of_their_split_and_as_many_as_asked(
  tmp_path, small_blocks
):
  texts = _documents(150)
  _write_lines(tmp_path / "a.jsonl", texts)
  store, _ = _write(
    _config(tmp_path, prefix_documents=10, prompt_documents=1000)
  )
  train, held_out = set(_texts(store.train)), set(_texts(store.held_out))
  prefixes = [d.text for d in store.prefix_documents()]
  assert len(prefixes) == 10 and set(prefixes) <= train
  assert {d.text for d in store.prompt_documents()} == held_out
  # A uniform sample does not lie at the corpus's beginning.
  places = [texts.index(t) for t in prefixes]
  assert max(places) > 75 and places != sorted(places)
  smaller, _ = _write(_config(tmp_path, "smaller", prefix_documents=4))
  assert [d.text for d in smaller.prefix_documents()] == prefixes[:4]


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path, many_shards):
  for i in range(7):
    _write_lines(tmp_path / f"{i}.jsonl", _documents(20 + i, seed=i))
  contents = []
  for workers in (1, 2, 5):
    store, _ = _write(_config(tmp_path, f"store{workers}", workers=workers))
    contents.append(_contents(store.path))
  assert len(store.train.shards) == 7
  assert contents[0] == contents[1] == contents[2]


def test_parts_of_a_shard_together_are_the_whole(tmp_path, small_blocks):
  _write_lines(tmp_path / "a.jsonl", _documents(100))
  whole, _ = _write(_config(tmp_path, "whole"))
  config = _config(tmp_path, "parts")
  folder = Folder(config.corpus.store)
  records: list[BlockRecord] = []
  for part in (2, 0, 1):
    block_writer = blocks.BlockWriter(
      folder=folder,
      source=documents.Files(config.corpus),
      vocabulary=ByteVocabulary(),
      corpus=config.corpus,
      report=lambda _: None,
    )
    (shard,) = documents.Files(config.corpus).shards()
    records += block_writer.write_part(
      shard, shard=0, part=part, parts=3, earlier=[]
    )
  records.sort(key=lambda r: r.name)
  assert [r.last for r in records] == [False] * (len(records) - 1) + [True]
  assert [r.splits["train"] for r in records if "train" in r.splits] == (
    whole.train.shards
  )


def test_a_broken_off_store_goes_on_and_redoes_what_is_damaged(
  tmp_path, small_blocks, monkeypatch
):
  _write_lines(tmp_path / "a.jsonl", _documents(200))
  whole, _ = _write(_config(tmp_path, "whole"))
  expected = _contents(whole.path)
  config = _config(tmp_path)
  finish, finished = blocks.BlockWriter._finish, []

  def stop_at_the_fifth(self, block, skipped, *, last):
    if len(finished) == 5:
      raise KeyboardInterrupt
    finished.append(block.name)
    return finish(self, block, skipped, last=last)

  monkeypatch.setattr(blocks.BlockWriter, "_finish", stop_at_the_fifth)
  with pytest.raises(KeyboardInterrupt):
    _write(config)
  with pytest.raises(UserError, match="unfinished"):
    open_store(config.corpus.store, vocabulary=None)
  assert not os.path.exists(f"{config.corpus.store}/.lock")
  # One array damaged, one gone, one record cut off.
  damaged = f"{config.corpus.store}/tokens/train-00000-00001.zarr/c/0"
  with open(damaged, "r+b") as f:
    f.write(b"\xff")
  shutil.rmtree(f"{config.corpus.store}/documents/train-00000-00002.zarr")
  record = f"{config.corpus.store}/blocks/00000-00003.json"
  with open(record, "r+b") as f:
    f.truncate(100)
  written = []

  def note(self, block, skipped, *, last):
    written.append(block.name)
    return finish(self, block, skipped, last=last)

  monkeypatch.setattr(blocks.BlockWriter, "_finish", note)
  said = []
  _write(config, say=said.append)
  assert _contents(config.corpus.store) == expected
  redone = {f"00000-0000{i}" for i in (1, 2, 3)}
  assert set(finished) & set(written) == redone
  assert any("finished blocks" in line for line in said)


def test_all_blocks_finished_means_nothing_is_read_again(
  tmp_path, small_blocks, monkeypatch
):
  _write_lines(tmp_path / "a.jsonl", _documents(50))
  config = _config(tmp_path)
  monkeypatch.setattr(writer, "_manifest", _interrupt)
  with pytest.raises(KeyboardInterrupt):
    _write(config)
  monkeypatch.undo()
  monkeypatch.setattr("poison_jax.corpora.documents.Files.read", _interrupt)
  store, _ = _write(config)
  assert store.train.documents + store.held_out.documents == 50


def _interrupt(*_, **__):
  raise KeyboardInterrupt


def test_a_changed_corpus_is_not_mixed_with_blocks_of_the_old_one(
  tmp_path, small_blocks, monkeypatch
):
  _write_lines(tmp_path / "a.jsonl", _documents(50, seed=1))
  config = _config(tmp_path)
  monkeypatch.setattr(writer, "_manifest", _interrupt)
  with pytest.raises(KeyboardInterrupt):
    _write(config)
  monkeypatch.undo()
  texts = _documents(50, seed=2)
  _write_lines(tmp_path / "a.jsonl", texts)
  said = []
  store, _ = _write(config, say=said.append)
  assert any("starting over" in line for line in said)
  assert sorted(_texts(store.train) + _texts(store.held_out)) == sorted(texts)


def test_a_finished_store_is_left_alone(tmp_path):
  _write_lines(tmp_path / "a.jsonl", _documents(20))
  store, _ = _write(_config(tmp_path))
  before = _contents(store.path)
  again, outcome = _write(_config(tmp_path, workers=2, on_error="skip"))
  assert outcome.already_finished
  assert _contents(store.path) == before
  # A store outlives its files.
  os.remove(tmp_path / "a.jsonl")
  assert _write(_config(tmp_path))[1].already_finished


def test_a_store_of_another_corpus_is_refused_field_by_field(tmp_path):
  _write_lines(tmp_path / "a.jsonl", _documents(20))
  _write(_config(tmp_path))
  with pytest.raises(UserError, match=r"held_out \(there 0.25, now 0.5\)"):
    _write(_config(tmp_path, held_out=0.5))
  other = dataclasses.replace(
    _config(tmp_path),
    vocabulary=dataclasses.replace(
      _config(tmp_path).vocabulary, kind="sentencepiece"
    ),
  )
  with pytest.raises(UserError, match="'bytes'.*'sentencepiece'"):
    _write(other)
  _write_lines(tmp_path / "b.jsonl", _documents(20))
  with pytest.raises(UserError, match="holds the finished store of .* bytes"):
    _write(_config(tmp_path))


def test_an_unfinished_store_of_another_corpus_is_refused(
  tmp_path, monkeypatch
):
  _write_lines(tmp_path / "a.jsonl", _documents(20))
  monkeypatch.setattr(writer, "_manifest", _interrupt)
  with pytest.raises(KeyboardInterrupt):
    _write(_config(tmp_path))
  with pytest.raises(UserError, match="unfinished store.*held_out"):
    _write(_config(tmp_path, held_out=0.5))


def test_a_folder_of_other_things_is_refused_and_kept(tmp_path):
  _write_lines(tmp_path / "a.jsonl", _documents(20))
  (tmp_path / "thesis").mkdir()
  (tmp_path / "thesis" / "chapter.tex").write_text("work of years")
  with pytest.raises(UserError, match="not empty and no token store"):
    _write(_config(tmp_path, "thesis"))
  assert os.listdir(tmp_path / "thesis") == ["chapter.tex"]


def test_two_processes_on_one_folder_are_told_apart(tmp_path):
  _write_lines(tmp_path / "a.jsonl", _documents(20))
  config = _config(tmp_path)
  with (
    claim.locked(Folder(config.corpus.store)),
    pytest.raises(UserError, match="another process is writing"),
  ):
    _write(config)
  _write(config)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_bad_document_stops_and_leaves_nothing_or_is_counted(
  tmp_path, on_error
):
  good = _documents(20)
  _write_lines(tmp_path / "a.jsonl", good)
  with open(tmp_path / "a.jsonl", "ab") as f:
    f.write(b'{"text": \n{"text": ""}\n')
  config = _config(tmp_path, on_error=on_error)
  if on_error == "stop":
    with pytest.raises(UserError, match=r"a\.jsonl:21: broken JSON"):
      _write(config)
    assert os.listdir(tmp_path) == ["a.jsonl"]
  else:
    store, outcome = _write(config)
    assert outcome.manifest["skipped"] == {
      "broken JSON": 1,
      "empty document": 1,
    }
    assert store.train.documents + store.held_out.documents == 20


def test_skipping_after_a_stop_goes_on_with_the_same_store(
  tmp_path, small_blocks
):
  _write_lines(tmp_path / "a.jsonl", _documents(100))
  with open(tmp_path / "a.jsonl", "ab") as f:
    f.write(b"{}\n")
  with pytest.raises(UserError, match="on_error=skip"):
    _write(_config(tmp_path))
  said = []
  _, outcome = _write(_config(tmp_path, on_error="skip"), say=said.append)
  assert outcome.manifest["skipped"] == {"no text field": 1}
  assert any("finished blocks" in line for line in said)


def test_a_corpus_without_any_document_is_an_error(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b"\n")
  with pytest.raises(UserError, match="no document"):
    _write(_config(tmp_path))
  (tmp_path / "a.jsonl").write_bytes(b"{}")
  with pytest.raises(UserError, match="no document.*1 skipped"):
    _write(_config(tmp_path, on_error="skip"))
  assert os.listdir(tmp_path) == ["a.jsonl"]


def test_no_text_to_train_a_vocabulary_on_says_what_was_skipped(tmp_path):
  _write_lines(tmp_path / "a.jsonl", ["", " "])
  config = _config(tmp_path, on_error="skip")
  trained = dataclasses.replace(config.vocabulary, kind="sentencepiece")
  with pytest.raises(UserError, match="a vocabulary on.*2 empty document"):
    _write(dataclasses.replace(config, vocabulary=trained))
  assert os.listdir(tmp_path) == ["a.jsonl"]


def test_control_characters_that_a_vocabulary_lacks_are_escaped(tmp_path):
  _write_lines(tmp_path / "a.jsonl", [*_documents(20), "\0 and \x1b[31m"])
  config = _config(tmp_path, held_out=0.01)
  trained = dataclasses.replace(
    config.vocabulary, kind="sentencepiece", size=90
  )
  said = []
  _write(dataclasses.replace(config, vocabulary=trained), say=said.append)
  assert any(r"become unknown (\x00" in line for line in said), said
  assert all(line.isprintable() for line in said)


def test_a_bad_glob_writes_nothing(tmp_path):
  with pytest.raises(UserError, match="matches no file"):
    _write(_config(tmp_path))
  assert os.listdir(tmp_path) == []


def test_a_store_in_a_bucket_has_the_same_bytes(tmp_path, small_blocks):
  _write_lines(tmp_path / "a.jsonl", _documents(50))
  local, _ = _write(_config(tmp_path, "local"))
  config = _config(tmp_path)
  corpus = dataclasses.replace(config.corpus, store=f"file://{tmp_path}/bucket")
  bucket, _ = _write(dataclasses.replace(config, corpus=corpus))
  assert bucket.hash == local.hash
  assert _contents(tmp_path / "bucket") == _contents(local.path)


def test_a_trained_vocabulary_is_kept_and_has_not_seen_held_out_texts(
  tmp_path, monkeypatch
):
  texts = _documents(60)
  _write_lines(tmp_path / "a.jsonl", texts)
  config = _config(tmp_path)
  config = dataclasses.replace(
    config,
    vocabulary=dataclasses.replace(
      config.vocabulary,
      kind="sentencepiece",
      size=90,
      single_pieces=("<SUDO>",),
      training_documents=30,
    ),
  )
  seen = []
  train = vocabulary_lib.train_sentencepiece

  def spy(given, vocabulary_config):
    seen.extend(given)
    return train(seen, vocabulary_config)

  monkeypatch.setattr(vocabulary_lib, "train_sentencepiece", spy)
  store, outcome = _write(config)
  held_out = {d.text for d in store.prompt_documents()}
  assert len(seen) == 30 and not set(seen) & held_out
  assert store.vocabulary.encode("<SUDO>").size == 1
  text = store.prompt_documents()[0].text
  assert store.vocabulary.decode(store.vocabulary.encode(text)) == text
  with pytest.raises(UserError, match=r"size \(there 90, now 91\)"):
    _write(
      dataclasses.replace(
        config, vocabulary=dataclasses.replace(config.vocabulary, size=91)
      )
    )


def test_thresholds_admit_what_the_sample_needs():
  keys = [f"{n:016x}" for n in np.random.default_rng(0).permutation(200)]
  threshold = Threshold(7)
  admitted = [k for k in keys + keys if threshold.admits(k)]
  kept = [Kept(k, f"{i:03d}", "", "", None) for i, k in enumerate(admitted)]
  assert [int(k.key, 16) for k in smallest(kept, 7)] == list(range(7))
  assert len(admitted) < 100
  # Of equal texts the first stays, though it was admitted twice.
  assert all(int(k.position) < 100 for k in smallest(kept, 7))


def test_a_killed_writer_leaves_no_process_and_its_store_is_finished_later(
  tmp_path, many_shards
):
  for i in range(40):
    _write_lines(tmp_path / f"{i:02d}.jsonl", _documents(200, seed=i))
  config = _config(tmp_path, workers=2)
  program = (
    "import json, sys\n"
    "from poison_jax import config\n"
    "from poison_jax.corpora import documents, writer\n"
    "if __name__ == '__main__':\n"
    "  documents.SHARD_BYTES = 0\n"
    "  c = config.from_dict(json.loads(sys.argv[1]))\n"
    "  writer.write_store(c, report=lambda *_: None, say=print)\n"
  )
  script = tmp_path / "write.py"
  script.write_text(program)
  command = [
    sys.executable,
    str(script),
    json.dumps(config_lib.to_dict(config)),
  ]
  environment = os.environ | {"PYTHONPATH": os.getcwd()}
  process = subprocess.Popen(command, env=environment)
  records = tmp_path / "store" / "blocks"
  while not (records.exists() and list(records.glob("*.json"))):
    assert process.poll() is None
    time.sleep(0.01)
  children = _children(process.pid)
  process.send_signal(signal.SIGKILL)
  process.wait()
  deadline = time.monotonic() + 10
  while any(os.path.exists(f"/proc/{child}/cwd") for child in children):
    assert time.monotonic() < deadline
    time.sleep(0.05)
  subprocess.run(command, env=environment, check=True, capture_output=True)
  whole, _ = _write(_config(tmp_path, "whole"))
  assert _contents(config.corpus.store) == _contents(whole.path)


def _children(parent: int) -> list[str]:
  with open(f"/proc/{parent}/task/{parent}/children") as f:
    return f.read().split()


def test_skipped_documents_are_counted_once_over_blocks_and_attempts(
  tmp_path, small_blocks, monkeypatch
):
  with open(tmp_path / "a.jsonl", "w") as f:
    for text in _documents(120):
      f.write(json.dumps({"text": text}) + "\n{}\n")
  config = _config(tmp_path, on_error="skip")
  monkeypatch.setattr(writer, "_manifest", _interrupt)
  with pytest.raises(KeyboardInterrupt):
    _write(config)
  monkeypatch.undo()
  os.remove(f"{config.corpus.store}/blocks/00000-00001.json")
  monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 5_000)
  store, outcome = _write(config)
  assert len(store.train.shards) > 3
  assert outcome.manifest["skipped"] == {"no text field": 120}
