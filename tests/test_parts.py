"""A store written in parts is the one written at once, whatever befalls it."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from fake_bucket import FakeBuckets

from configs import base
from poison_jax import config as config_lib
from poison_jax import vocabulary as vocabulary_lib
from poison_jax.corpora import (
  blocks,
  claim,
  documents,
  joining,
  parts,
  workers,
  writer,
)
from poison_jax.corpora.parts import Part, PartRecord
from poison_jax.data.folder import Folder
from poison_jax.data.store import open_store
from poison_jax.errors import UserError

_ROOT = pathlib.Path(__file__).parent.parent


def _texts(count: int, seed: int) -> list[str]:
  """Returns texts of a few hundred characters, one in four a duplicate."""
  rng = np.random.default_rng(seed)
  words = ["sun", "über", "moon\n", "日本", "walks", "🙂"]
  return [
    f"{i % 90 if i % 4 == 0 else (seed, i)} "
    + ("same " * 9 if i % 4 == 0 else " ".join(rng.choice(words, i % 83)))
    for i in range(1, count + 1)
  ]


@pytest.fixture(name="corpus")
def _corpus(tmp_path, monkeypatch):
  """Three shards of 9, 4 and 1 blocks or so, some lines broken."""
  monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 3_000)
  monkeypatch.setattr(documents, "SHARD_BYTES", 0)
  for i, count in enumerate((160, 70, 20)):
    lines = [json.dumps({"text": t}) for t in _texts(count, seed=i)]
    lines.insert(count // 2, "{}")
    (tmp_path / f"{i}.jsonl").write_text("\n".join(lines))
  return tmp_path


def _config(corpus, store="store", **fields):
  c = base.get_config()
  c.corpus.task = "files"
  c.corpus.files = f"{corpus}/*.jsonl"
  c.corpus.store = store if "://" in store else f"{corpus}/{store}"
  c.corpus.held_out = 0.25
  c.corpus.prefix_documents = 10
  c.corpus.prompt_documents = 8
  c.corpus.workers = 1
  c.corpus.on_error = "skip"
  c.vocabulary.kind = "bytes"
  for name, value in fields.items():
    section = "vocabulary" if name in c.vocabulary else "corpus"
    c[section][name] = value
  return config_lib.from_config_dict(c)


def _trained(corpus, store="store", **fields):
  vocabulary = {
    "kind": "sentencepiece",
    "size": 90,
    "single_pieces": ("<SUDO>",),
    "training_documents": 60,
  }
  return _config(corpus, store, **(vocabulary | fields))


def _plain(config):
  return writer.write_store(config, report=lambda *_: None, say=lambda _: None)


def _part(config, number, count, say=lambda _: None):
  return parts.write_part(
    config, Part(number, count), report=lambda *_: None, say=say
  )


def _finish(config, say=lambda _: None):
  return joining.finish(config, redo=lambda p: f"write {p}", say=say)


def _contents(store) -> dict[str, str]:
  folder = Folder(str(store))
  return {
    name: hashlib.sha256(folder.read(name)).hexdigest()
    for name in folder.names()
  }


def _written_blocks(monkeypatch) -> list[str]:
  """Returns a list to which each block's name is added as it's finished."""
  finish, names = blocks.BlockWriter._finish, []

  def note(self, block, skipped, *, last):
    names.append(block.name)
    return finish(self, block, skipped, last=last)

  monkeypatch.setattr(blocks.BlockWriter, "_finish", note)
  return names


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("splittable", [True, False])
def test_bytes_do_not_depend_on_the_number_of_parts(
  corpus, monkeypatch, count, splittable
):
  monkeypatch.setattr(documents.Files, "splittable", splittable)
  plain = _plain(_config(corpus, "plain"))
  assert plain.manifest["skipped"] == {"no text field": 3}
  assert len(plain.manifest["splits"]["train"]) > 9
  config = _config(corpus)
  order = np.random.default_rng(count).permutation(count).tolist()
  written = _written_blocks(monkeypatch)
  records = [_part(config, number, count) for number in order]
  assert len(written) == len(set(written))
  if splittable:
    assert all(record.blocks for record in records)
  outcome = _finish(config)
  assert not outcome.already_finished
  assert outcome.manifest["hash"] == plain.manifest["hash"]
  assert _contents(f"{corpus}/store") == _contents(f"{corpus}/plain")
  open_store(config.corpus.store, vocabulary=None).verify_contents()


def test_each_block_falls_to_one_part_and_one_worker_of_it():
  for shards in (1, 2, 3, 5):
    for count in (1, 2, 3, 4, 7, 8):
      for processes in (1, 2, 5):
        for splittable in (True, False):
          dealt = [
            share
            for part in range(count)
            for share in workers.deal(
              shards,
              splittable=splittable,
              workers=processes,
              part=part,
              parts=count,
            )
          ]
          for shard in range(shards):
            for number in range(60):
              name = f"{shard:05d}-{number:05d}"
              assert sum(share.has(name) for share in dealt) == 1


def test_missing_parts_are_named_and_written_alone(corpus, monkeypatch):
  config = _config(corpus)
  with pytest.raises(UserError, match="has no part of a store"):
    _finish(config)
  assert not os.path.exists(config.corpus.store)
  for number in (0, 3, 6):
    _part(config, number, 7)
  said = []
  with pytest.raises(UserError, match=r"4 of 7 parts are missing: 1-2,4-5;"):
    _finish(config, said.append)
  assert [line.partition("  #")[0] for line in said] == [
    "write 1/7",
    "write 2/7",
    "write 4/7",
    "write 5/7",
  ]
  assert all("is not written" in line for line in said)
  assert "1/3 of 0.jsonl" in said[0]  # Of 3 shares of each of 3 shards.
  for number in (1, 2, 4):
    _part(config, number, 7)
  before = _contents(config.corpus.store)
  with pytest.raises(UserError, match="1 of 7 parts are missing: 5;"):
    _finish(config)
  assert _contents(config.corpus.store) == before
  written = _written_blocks(monkeypatch)
  _part(config, 5, 7)
  assert written == ["00001-00002"]  # The last third of the second shard.
  _finish(config)
  _plain(_config(corpus, "plain"))
  assert _contents(config.corpus.store) == _contents(f"{corpus}/plain")


def test_a_lost_array_is_named_with_its_part_and_alone_written_again(
  corpus, monkeypatch
):
  config = _config(corpus)
  for number in range(2):
    _part(config, number, 2)
  (corpus / "store/documents/train-00001-00001.zarr/c/0").unlink()
  shutil.rmtree(corpus / "store/tokens/held_out-00001-00000.zarr")
  said = []
  with pytest.raises(UserError, match="1 of 2 parts are missing: 1;"):
    _finish(config, said.append)
  (line,) = said
  assert line.startswith("write 1/2  # has lost ")
  assert "documents/train-00001-00001.zarr" in line
  assert "tokens/held_out-00001-00000.zarr" in line
  written = _written_blocks(monkeypatch)
  _part(config, 1, 2)
  assert written == ["00001-00000", "00001-00001"]
  _finish(config)
  _plain(_config(corpus, "plain"))
  assert _contents(config.corpus.store) == _contents(f"{corpus}/plain")


def test_a_damaged_record_of_a_part_is_a_missing_part(corpus):
  config = _config(corpus)
  for number in range(2):
    _part(config, number, 2)
  record = corpus / "store/parts/00000.json"
  record.write_bytes(record.read_bytes()[:-1])
  with pytest.raises(UserError, match="missing: 0;"):
    _finish(config)


def test_other_numbers_of_parts_are_refused(corpus):
  config = _config(corpus)
  _part(config, 0, 2)
  before = _contents(config.corpus.store)
  with pytest.raises(UserError, match="begun in 2 parts, not in 3: go on with"):
    _part(config, 1, 3)
  with pytest.raises(
    UserError, match="begun in 2 parts: go on with --part=i/2"
  ):
    _plain(config)
  assert _contents(config.corpus.store) == before


def test_a_store_begun_without_parts_is_not_mixed_with_parts(
  corpus, monkeypatch
):
  config = _config(corpus)

  def interrupt(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(writer, "_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
      _plain(config)
  for command in (lambda: _part(config, 0, 2), lambda: _finish(config)):
    with pytest.raises(UserError, match="begun without --part"):
      command()
  _plain(config)


def test_parts_of_other_configs_and_corpora_are_refused(corpus):
  _part(_config(corpus), 0, 2)
  before = _contents(f"{corpus}/store")
  for config, message in (
    (_config(corpus, held_out=0.5), r"held_out \(there 0.25, now 0.5\)"),
    (_trained(corpus), "vocabulary.*'bytes'.*'sentencepiece'"),
  ):
    with pytest.raises(UserError, match=message):
      _part(config, 1, 2)
    with pytest.raises(UserError, match=message):
      _finish(config)
  # Another machine's copy has been changed, or copied with another time.
  os.utime(corpus / "1.jsonl", ns=(0, 0))
  with pytest.raises(UserError, match=r"not that of the other.*1\.jsonl is"):
    _part(_config(corpus), 1, 2)
  os.remove(corpus / "1.jsonl")
  with pytest.raises(UserError, match=r"1\.jsonl is missing here"):
    _part(_config(corpus), 1, 2)
  assert _contents(f"{corpus}/store") == before


def test_a_vocabulary_of_another_content_is_refused(corpus):
  for name, texts in (("a", "one two three"), ("b", "four five six")):
    model = vocabulary_lib.train_sentencepiece(
      [texts] * 9, _trained(corpus, size=24).vocabulary
    ).model
    (corpus / f"{name}.model").write_bytes(model)
  shutil.copy(corpus / "a.model", corpus / "v.model")
  config = _trained(corpus, file=f"{corpus}/v.model")
  _part(config, 0, 2)
  shutil.copy(corpus / "b.model", corpus / "v.model")
  with pytest.raises(UserError, match="vocabulary is not that of the other"):
    _part(config, 1, 2)


def test_blocks_that_do_not_fit_together_are_no_store(corpus):
  config = _config(corpus)
  records = [_part(config, number, 2) for number in range(2)]
  # As of a corpus that was changed while the parts were being written.
  fewer = dataclasses.replace(records[1], blocks=records[1].blocks[:-1])
  (corpus / "store/parts/00001.json").write_bytes(fewer.to_bytes())
  with pytest.raises(UserError, match=r"blocks of 1\.jsonl don't fit"):
    _finish(config)
  other = dataclasses.replace(records[1], fingerprint="another")
  (corpus / "store/parts/00001.json").write_bytes(other.to_bytes())
  with pytest.raises(UserError, match="tokens of part 1/2 are of another"):
    _finish(config)
  (corpus / "store/parts/00001.json").write_bytes(records[1].to_bytes())
  _finish(config)


def test_finishing_reads_no_corpus_and_is_done_the_second_time(
  corpus, monkeypatch
):
  config = _config(corpus)
  for number in range(2):
    _part(config, number, 2)
  for i in range(3):
    os.remove(corpus / f"{i}.jsonl")
  (corpus / "store/tokens/.train-00000-00000.zarr.7.partial").mkdir()
  (corpus / "store/.lock-part-0-of-2").write_text("")  # Of a killed process.
  _finish(config)
  before = _contents(config.corpus.store)
  assert {name.split("/")[0] for name in before} == {
    "documents",
    "manifest.json",
    "prefix_documents.jsonl",
    "prompt_documents.jsonl",
    "tokens",
    "vocabulary",
  }
  assert not Folder(config.corpus.store).partial_names()
  assert _finish(config).already_finished
  assert _part(config, 0, 2).already_finished
  assert _contents(config.corpus.store) == before
  # Killed between the manifest and the cleaning up.
  (corpus / "store/started.json").write_text("{}")
  (corpus / "store/parts").mkdir()
  assert _finish(config).already_finished
  assert _contents(config.corpus.store) == before


def test_a_part_that_is_being_written_is_not_written_twice(corpus):
  config = _config(corpus)
  for number in range(2):
    _part(config, number, 2)
  folder = Folder(config.corpus.store)
  said = []
  with claim.part_locked(folder, "1/2"):
    with pytest.raises(UserError, match="process is writing part 1/2 of"):
      _part(config, 1, 2)
    with pytest.raises(UserError, match="being written: 1; wait for"):
      _finish(config, said.append)
    _part(config, 0, 2)
  assert said[0].startswith("# part 1/2 is being written")
  _finish(config)


def test_a_corpus_without_any_document_is_an_error(tmp_path):
  (tmp_path / "a.jsonl").write_text("{}")
  config = _config(tmp_path)
  for number in range(2):
    _part(config, number, 2)
  with pytest.raises(UserError, match="no document in the corpus .1 skipped"):
    _finish(config)
  assert os.listdir(tmp_path) == ["a.jsonl"]


def test_an_impossible_vocabulary_leaves_nothing(corpus):
  with pytest.raises(UserError, match=r"config\.vocabulary\.size is 9"):
    _part(_trained(corpus, size=9), 0, 2)
  assert sorted(os.listdir(corpus)) == ["0.jsonl", "1.jsonl", "2.jsonl"]


def test_parts_at_once_train_one_vocabulary(corpus, monkeypatch):
  monkeypatch.setattr(parts, "_LINE_EVERY", 0.0)
  plain = _plain(_trained(corpus, "plain"))
  train = vocabulary_lib.train_sentencepiece
  trained, said, errors, begun = [], [], [], threading.Event()

  def slowly(texts, vocabulary_config):
    trained.append(threading.current_thread())
    begun.set()
    while len(trained) < 2 and not said:  # Until somebody waits, or trains.
      time.sleep(0.01)
    return train(texts, vocabulary_config)

  monkeypatch.setattr(vocabulary_lib, "train_sentencepiece", slowly)

  def write(number):
    try:
      _part(
        _trained(corpus),
        number,
        3,
        say=lambda line: said.append(line) if "waiting" in line else None,
      )
    except BaseException as error:
      errors.append(error)

  threads = [threading.Thread(target=write, args=(n,)) for n in (2, 0, 1)]
  for thread in threads:
    thread.start()
    assert begun.wait(60)
  for thread in threads:
    thread.join()
  assert not errors
  assert len(trained) == 1
  assert "waiting for another part, which makes the vocabulary" in said[0]
  assert _finish(_trained(corpus)).manifest == plain.manifest
  assert _contents(f"{corpus}/store") == _contents(f"{corpus}/plain")


def test_of_two_vocabularies_trained_for_a_bucket_the_first_is_everyones(
  corpus, monkeypatch
):
  """As with two versions of SentencePiece, whose models may differ."""
  config = _trained(corpus, store=f"memory://{corpus.name}/store")
  train = vocabulary_lib.train_sentencepiece
  monkeypatch.setattr(
    vocabulary_lib,
    "train_sentencepiece",
    lambda texts, v: train([*texts][:40], v),
  )
  other = _trained(corpus, store="other")
  _part(other, 0, 1)
  theirs = Folder(other.corpus.store).read("vocabulary/sentencepiece.model")

  def late(texts, v):
    # Another part has begun, trained, and been killed before the last file.
    started = claim.description(config) | {"parts": 2, "fingerprint": None}
    claim.begin(Folder(config.corpus.store), started)
    Folder(config.corpus.store).write("vocabulary/sentencepiece.model", theirs)
    return train(texts, v)

  monkeypatch.setattr(vocabulary_lib, "train_sentencepiece", late)
  _part(config, 0, 2)
  monkeypatch.undo()
  folder = Folder(config.corpus.store)
  assert folder.read("vocabulary/sentencepiece.model") == theirs
  record = PartRecord.from_bytes(folder.read("parts/00000.json"))
  assert record.fingerprint == (
    vocabulary_lib.SentencePieceVocabulary(theirs).fingerprint
  )


def test_of_two_configs_that_begin_at_once_in_a_bucket_one_is_refused(
  corpus, monkeypatch
):
  config = _config(corpus, store=f"memory://{corpus.name}/store")
  folder = Folder(config.corpus.store)
  write = Folder.write_versioned

  def late(self, name, content, *, version):
    monkeypatch.setattr(Folder, "write_versioned", write)
    other = _config(corpus, config.corpus.store, held_out=0.5)
    started = claim.description(other) | {"parts": 2, "fingerprint": "f"}
    claim.begin(self, started)
    return write(self, name, content, version=version)

  monkeypatch.setattr(Folder, "write_versioned", late)
  with pytest.raises(UserError, match=r"held_out \(there 0.5, now 0.25\)"):
    _part(config, 0, 2)
  assert folder.names() == ["started.json"]
  assert claim.read_started(folder)["corpus"]["held_out"] == 0.5


def test_a_part_written_twice_at_once_in_a_bucket_does_no_damage(
  corpus, monkeypatch
):
  """The slower one goes on even after the store is finished."""
  _plain(_config(corpus, "plain"))
  config = _config(corpus, store=f"file://{corpus}/bucket")
  finish, seen = blocks.BlockWriter._finish, []

  def overtaken(self, block, skipped, *, last):
    if not seen:
      seen.append(block.name)
      for number in (1, 0):
        _part(config, number, 2)
      _finish(config)
    return finish(self, block, skipped, last=last)

  deleted = []
  monkeypatch.setattr(blocks.BlockWriter, "_finish", overtaken)
  monkeypatch.setattr(
    Folder, "delete", _noting(Folder.delete, deleted), raising=True
  )
  _part(config, 0, 2)
  assert seen
  assert _contents(corpus / "bucket") == _contents(corpus / "plain")
  assert set(deleted) == {"blocks", "parts", "started.json"}


def _noting(method, names):
  def note(self, name):
    names.append(name)
    return method(self, name)

  return note


_PROGRAM = """
import json, sys
from poison_jax import config
from poison_jax.corpora import blocks, parts
blocks.BLOCK_CHARACTERS = 3_000
c = config.from_dict(json.loads(sys.argv[1]))
part = parts.parse_part(sys.argv[2])
parts.write_part(c, part, report=lambda *_: None, say=print)
"""


def test_a_killed_part_goes_on_and_gives_the_same_bytes(corpus):
  (corpus / "0.jsonl").write_text(
    "\n".join(json.dumps({"text": t}) for t in _texts(800, seed=0))
  )
  for i in (1, 2):
    os.remove(corpus / f"{i}.jsonl")
  config = _config(corpus)
  command = [
    *(sys.executable, "-c", _PROGRAM),
    json.dumps(config_lib.to_dict(config)),
    "0/2",
  ]
  environment = os.environ | {"PYTHONPATH": str(_ROOT)}
  process = subprocess.Popen(command, env=environment)
  records = corpus / "store/blocks"
  while not (records.exists() and len(list(records.glob("*.json"))) > 2):
    assert process.poll() is None
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (corpus / "store/parts").exists()
  earlier = list(records.glob("*.json"))
  times = {path: path.stat().st_mtime_ns for path in earlier}
  _part(config, 1, 2)
  with pytest.raises(UserError, match="missing: 0;"):
    _finish(config)
  said = []
  _part(config, 0, 2, say=said.append)
  assert "going on with part 0/2" in said[0]
  assert times == {path: path.stat().st_mtime_ns for path in earlier}
  _finish(config)
  _plain(_config(corpus, "plain"))
  assert _contents(f"{corpus}/store") == _contents(f"{corpus}/plain")


@pytest.mark.parametrize(
  "text", ["", "1", "2/2", "-1/2", "1/2/3", "a/b", "0/0"]
)
def test_a_part_that_is_none_is_refused(text):
  with pytest.raises(UserError, match="must be i/n, part i of n"):
    parts.parse_part(text)
  assert parts.parse_part("3/8") == Part(3, 8)


def _command(
  corpus, *arguments, program=("-m", "poison_jax.prepare"), **environment
):
  return subprocess.Popen(
    [
      sys.executable,
      *program,
      "--config=configs/tiny.py",
      "--config.corpus.task=files",
      f"--config.corpus.files={corpus}/*.jsonl",
      "--config.corpus.on_error=skip",
      "--config.corpus.held_out=0.2",
      "--config.corpus.workers=2",
      "--config.vocabulary.size=90",
      "--config.vocabulary.training_documents=99",
      *arguments,
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=_ROOT,
    env=os.environ | environment,
  )


def _ended(process, code=0) -> str:
  """Returns a command's output, or its one line of error."""
  out, err = process.communicate(timeout=120)
  assert process.returncode == code, (process.returncode, out, err)
  assert len(err.splitlines()) == (1 if code else 0), err
  return f"{out}{err}"


@pytest.mark.slow
def test_the_command_names_itself_for_what_is_missing(corpus):
  for i in range(3):
    shutil.copy(corpus / f"{i}.jsonl", corpus / f"{i + 3}.jsonl")
  store = f"--config.corpus.store={corpus}/store"
  out = _ended(_command(corpus, store, "--part=1/2"))
  assert re.search(r"wrote part 1/2 of .*store: [\d,]+ documents", out)
  out = _ended(_command(corpus, "--finish", store), code=2)
  (line,) = [x for x in out.splitlines() if x.startswith("python")]
  assert "error: --finish: " in out and "1 of 2 parts are missing: 0;" in out
  # The line is a command that a shell takes, comment included.
  shell = line.replace("python", sys.executable, 1)
  subprocess.run(shell, shell=True, check=True, cwd=_ROOT, capture_output=True)
  out = _ended(_command(corpus, store, "--finish"))
  assert re.search(r"wrote .*store: 500 documents.*skipped 6 no text", out), out
  assert "is finished" in _ended(_command(corpus, store, "--finish"))
  out = _ended(_command(corpus, store, "--finish", "--part=0/2"), code=2)
  assert "give one of them" in out


def test_an_array_that_a_bucket_has_is_never_gone_while_written_again():
  """Else who reads it meanwhile fails, and a kill loses it for good."""
  program = """
import numpy as np
from poison_jax.data.folder import Folder
folder = Folder("gs://bucket/a")
for size in (5, 5, 5000):
  folder.write_array("x", np.arange(size, dtype=np.uint16))
  array = folder.open_array("x", size=size, dtype="uint16")
  assert (array.read().result() == np.arange(size)).all()
  print(flush=True)
  input()
"""
  with (
    FakeBuckets() as bucket,
    subprocess.Popen(
      [sys.executable, "-c", program],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=_ROOT,
      env=os.environ | bucket.environment,
    ) as process,
  ):
    deletes = []
    for _ in range(3):
      assert process.stdout.readline() == "\n"
      deletes.append(sum(r[0] == "DELETE" for r in bucket.requests))
      print("", file=process.stdin, flush=True)
    assert process.wait(60) == 0
  # One of another size has to go first.
  assert deletes[0] == deletes[1] == 0 < deletes[2]


# The command as `python -m` runs it, but with a shard a file.
_SMALL_SHARDS = """
import runpy, sys
from poison_jax.corpora import documents
if __name__ == "__main__":
  documents.SHARD_BYTES = 0
  runpy.run_module("poison_jax.prepare", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_a_bucket_holds_the_same_bytes_plain_and_by_parts(corpus):
  """Parts at once, two of them the same, and one that is killed."""

  def start(*arguments):
    return _command(
      corpus, *arguments, program=["-c", _SMALL_SHARDS], **bucket.environment
    )

  def contents(store):
    return {
      name: bucket.content(f"{store}/{name}")
      for name in bucket.names(f"{store}/")
    }

  with FakeBuckets() as bucket:
    local = f"--config.corpus.store={corpus}/local"
    _ended(start(local))
    expected = {
      name: Folder(f"{corpus}/local").read(name)
      for name in Folder(f"{corpus}/local").names()
    }
    assert "tokens/train-00002-00000.zarr/c/0" in expected
    _ended(start("--config.corpus.store=gs://bucket/plain"))
    assert contents("plain") == expected

    store = "--config.corpus.store=gs://bucket/parts"
    running = [start(store, f"--part={i}/3") for i in (0, 1, 1)]
    for process in running:
      _ended(process)
    killed = start(store, "--part=2/3")
    bucket.signal_after_writing("blocks/00002", killed.pid, signal.SIGKILL)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    out = _ended(start(store, "--finish"), code=2)
    assert "missing: 2;" in out
    assert "going on with part 2/3" in _ended(start(store, "--part=2/3"))
    _ended(start(store, "--finish"))
    assert contents("parts") == expected


_MODULE = """
import seqio
import tensorflow as tf

PIECES = ["", "</s>", *map(chr, range(32, 127))]

class Letters(seqio.Vocabulary):
  bos_id, eos_id, unk_id = None, 1, None
  _base_vocab_size = len(PIECES)
  def _encode(self, s): return [PIECES.index(c) for c in s]
  def _decode(self, ids): return "".join(PIECES[i] for i in ids)
  def _encode_tf(self, s): raise NotImplementedError
  def _decode_tf(self, ids): raise NotImplementedError

class Source(seqio.DataSource):
  supports_arbitrary_sharding = False
  def __init__(self): super().__init__(splits=["train"])
  def list_shards(self, split): return ["a", "b", "c"]
  def get_dataset(self, split="train", shuffle=True, seed=None, shard_info=None,
                  *, sequence_length=None, use_cached=False, num_epochs=1):
    first = 100 * shard_info.index
    rows = [[2 + (first + i) % 95, 3 + i % 7, 4] for i in range(40)]
    return tf.data.Dataset.from_tensor_slices({"targets": rows})

seqio.TaskRegistry.add("letters", source=Source(), preprocessors=[],
  output_features={"targets": seqio.Feature(Letters(), dtype=tf.int32)})
"""


@pytest.mark.slow
def test_a_users_task_with_a_vocabulary_of_its_own(tmp_path, monkeypatch):
  """Its tokens are a table's, which grows as the store is finished."""
  (tmp_path / "letters_tasks.py").write_text(_MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  fields = {"task": "letters", "module": "letters_tasks"}
  plain = _plain(_config(tmp_path, "plain", **fields))
  assert plain.manifest["source"][0] == 3
  assert open_store(f"{tmp_path}/plain", vocabulary=None).vocabulary.kind == (
    "table"
  )
  config = _config(tmp_path, **fields)
  for number in (3, 0, 1):
    _part(config, number, 4)
  said = []
  with pytest.raises(UserError, match="missing: 2;"):
    _finish(config, said.append)
  assert said == ["write 2/4  # is not written, or not to its end; it has c"]
  _part(config, 2, 4)
  with monkeypatch.context() as patched:
    patched.setattr(Folder, "write", _but_the_manifest(Folder.write))
    with pytest.raises(KeyboardInterrupt):
      _finish(config)
  _part(config, 1, 4)  # With the table as it is now.
  _finish(config)
  assert _contents(f"{tmp_path}/store") == _contents(f"{tmp_path}/plain")


def _but_the_manifest(write):
  def interrupt(self, name, content):
    if name == "manifest.json":
      raise KeyboardInterrupt
    return write(self, name, content)

  return interrupt
