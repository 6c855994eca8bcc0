"""Both roads, as text and through seqio, lead to the same store."""

import dataclasses
import json
import os

import numpy as np
import pytest

from configs import base
from poison_jax import config as config_lib
from poison_jax.corpora import sources, writer
from poison_jax.data.folder import Folder
from poison_jax.data.store import open_store
from poison_jax.errors import UserError
from poison_jax.vocabulary import ByteVocabulary

seqio = pytest.importorskip("seqio")


_PIECES = ["a", "ü", "日", "🙂", " ", "  ", "\n", "\t", "the", "moon", "sun,"]


def _config(tmp_path, **corpus):
  c = base.get_config()
  c.corpus.stories = 200
  c.corpus.store = str(tmp_path / "store")
  c.corpus.held_out = 0.2
  c.corpus.workers = 1
  c.vocabulary.training_documents = 100
  c.vocabulary.size = 120
  c.corpus.update(corpus)
  return config_lib.from_config_dict(c)


def _arrays(folder: str) -> dict[str, bytes]:
  """Returns all files but those that hold the documents' ids."""
  return {
    name: Folder(folder).read(name)
    for name in Folder(folder).names()
    if "/" in name
  }


def _write(config):
  writer.write_store(config, report=lambda *_: None, say=lambda _: None)
  return open_store(config.corpus.store, vocabulary=None)


@pytest.mark.parametrize("task", ["stories", "files"])
def test_both_roads_give_the_same_tokens_and_texts(tmp_path, monkeypatch, task):
  from poison_jax.corpora.task_documents import TaskDocuments

  rng = np.random.default_rng(0)
  for name in "ab":
    texts = ["".join(rng.choice(_PIECES, 200)) for _ in range(40)]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
  corpus = {"task": task}
  if task == "files":
    corpus["files"] = f"{tmp_path}/*.jsonl"
    monkeypatch.setattr("poison_jax.corpora.documents.SHARD_BYTES", 0)
  roads = {}
  for road in ("text", "seqio"):
    folder = tmp_path / road
    folder.mkdir()
    with monkeypatch.context() as patch:
      if road == "seqio":
        patch.setattr(sources, "make_source", _through_seqio(TaskDocuments))
      store = _write(_config(folder, **corpus))
    texts = [*store.prefix_documents(), *store.prompt_documents()]
    roads[road] = (_arrays(store.path), [document.text for document in texts])
  assert len(roads["text"][0]) >= 10
  assert roads["text"] == roads["seqio"]


def _through_seqio(task_documents):
  make_source, inside = sources.make_source, []

  def make(config, vocabulary):
    # The task asks for its documents itself.
    if inside:
      return make_source(config, vocabulary)
    inside.append(True)
    try:
      return task_documents(config, vocabulary)
    finally:
      inside.pop()

  return make


_MODULE = """
import functools
import seqio
import tensorflow as tf

def documents(split, shuffle_files):
  texts = [f"document number {i} of {split}" for i in range(60)]
  return tf.data.Dataset.from_tensor_slices({"inputs": texts})

feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=True)

seqio.TaskRegistry.add(
  "users_own",
  source=seqio.FunctionDataSource(documents, splits=["train", "test"]),
  preprocessors=[
    functools.partial(seqio.preprocessors.rekey, key_map={"targets": "inputs"}),
    seqio.preprocessors.tokenize,
    seqio.preprocessors.append_eos,
  ],
  output_features={"targets": feature},
)
seqio.TaskRegistry.add(
  "fails",
  source=seqio.FunctionDataSource(documents, splits=["train"]),
  preprocessors=[
    functools.partial(seqio.preprocessors.rekey, key_map={"targets": "inputs"}),
    lambda ds: ds.map(
      lambda e: {"targets": tf.strings.to_number(e["targets"], tf.int32)[None]}
    ),
  ],
  output_features={"targets": feature},
)
"""


@pytest.fixture
def users_module(tmp_path, monkeypatch):
  """Registers the tasks "users_own" and "fails"; gives the module's name."""
  (tmp_path / "my_tasks.py").write_text(_MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  yield "my_tasks"
  for name in ("users_own", "fails"):
    if name in seqio.TaskRegistry.names():
      seqio.TaskRegistry.remove(name)
  import sys

  sys.modules.pop("my_tasks", None)


def test_a_users_task_is_written_unchanged(tmp_path, users_module):
  store = _write(
    _config(tmp_path, task="users_own", module=users_module, split="test")
  )
  assert store.vocabulary.kind == "bytes"
  texts = []
  for stream in (store.train, store.held_out):
    tokens = stream.rows(np.array([0]), stream.tokens)[0]
    # One end-of-document token a document: the task's own is not doubled.
    assert (tokens == ByteVocabulary.eos_id).sum() == stream.documents
    texts += [
      ByteVocabulary().decode(piece)
      for piece in np.split(tokens, np.flatnonzero(tokens == 1))
    ]
  expected = [f"document number {i} of test" for i in range(60)]
  assert sorted(filter(None, texts)) == sorted(expected)
  kept = [*store.prefix_documents(), *store.prompt_documents()]
  assert sorted(d.text for d in kept) == sorted(expected)


def test_a_task_that_fails_is_one_line_and_leaves_nothing(
  tmp_path, users_module
):
  config = _config(tmp_path, task="fails", module=users_module)
  with pytest.raises(UserError, match="seqio task 'fails'") as caught:
    _write(config)
  assert "\n" not in str(caught.value)
  assert not os.path.exists(config.corpus.store)


@pytest.mark.slow
def test_a_tfds_set_is_written_alike_by_any_number_of_workers(tmp_path):
  from test_tasks import _TEXTS, _write_tfds

  folder = tmp_path / "tfds"
  folder.mkdir()
  _write_tfds(folder, "tfrecord")
  stores = []
  for workers in (1, 2):
    config = _config(
      tmp_path,
      task="tfds",
      tfds_name="tiny_text/en:1.0.0",
      tfds_dir=str(folder),
      text_field="content",
      store=str(tmp_path / f"store{workers}"),
      workers=workers,
      on_error="skip",
    )
    vocabulary = dataclasses.replace(config.vocabulary, kind="bytes")
    stores.append(_write(dataclasses.replace(config, vocabulary=vocabulary)))
  assert stores[0].hash == stores[1].hash
  assert len(stores[0].train.shards) == 3
  kept = [*stores[0].prefix_documents(), *stores[0].prompt_documents()]
  assert {d.text for d in kept} == set(filter(None, _TEXTS))
