"""Corpora as seqio tasks: built in, TFDS sets on disk, a user's own."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from configs import base
from poison_jax import config as config_lib
from poison_jax.corpora import sources, tasks
from poison_jax.corpora.tensorflow_quiet import seqio
from poison_jax.corpora.tensorflow_quiet import tensorflow as tf
from poison_jax.corpora.tensorflow_quiet import tensorflow_datasets as tfds
from poison_jax.errors import UserError
from poison_jax.stories import telling
from poison_jax.vocabulary import ByteVocabulary, TableVocabulary

_TEXTS = [f"Document {i} says hello, été.\n" * (1 + i % 3) for i in range(40)]


def _config(**corpus):
  c = base.get_config()
  c.corpus.update(corpus)
  return config_lib.from_config_dict(c)


def _draw(task, **arguments):
  dataset = task.get_dataset(
    sequence_length=None,
    shuffle=False,
    trim_output_features=False,
    try_in_mem_cache=False,
    **arguments,
  )
  return list(dataset.as_numpy_iterator())


def test_stories_are_a_task():
  config = _config(task="stories", stories=300)
  task = tasks.get_task(config, ByteVocabulary())
  examples = _draw(task, split="train")
  expected = [
    telling.story(0, i, config.corpus.tags, config.corpus.tag_share)
    for i in range(300)
  ]
  assert [e["text"].decode() for e in examples] == expected
  for example, text in zip(examples, expected, strict=True):
    ids = ByteVocabulary().encode(text)
    np.testing.assert_array_equal(example["targets"], ids)
    assert example["targets"].dtype == np.int32


def test_a_task_is_registered_once_for_each_content():
  first = tasks.get_task(_config(stories=10), ByteVocabulary())
  assert tasks.get_task(_config(stories=10), ByteVocabulary()) is first
  assert seqio.TaskRegistry.get(first.name) is first
  others = [
    tasks.get_task(_config(stories=11), ByteVocabulary()),
    tasks.get_task(_config(stories=10), ByteVocabulary(extra_ids=1)),
    tasks.get_task(_config(stories=10, stories_seed=1), ByteVocabulary()),
  ]
  assert len({first.name, *(t.name for t in others)}) == 4


@pytest.fixture
def files(tmp_path):
  for k in range(3):
    with open(tmp_path / f"{k}.jsonl", "w", encoding="utf-8") as f:
      for text in _TEXTS[k::3]:
        f.write(json.dumps({"text": text}) + "\n")
  return str(tmp_path / "*.jsonl")


def test_files_are_a_task_in_their_order(files):
  task = tasks.get_task(_config(task="files", files=files), ByteVocabulary())
  found = [e["text"].decode() for e in _draw(task, split="train")]
  assert found == _TEXTS[0::3] + _TEXTS[1::3] + _TEXTS[2::3]


def test_the_shards_of_a_task_share_out_the_documents():
  # 10,010 stories lie in three shards.
  config = _config(stories=10_010)
  task = tasks.get_task(config, ByteVocabulary())
  assert len(task.source.list_shards("train")) == 3
  parts = [
    [
      e["text"]
      for e in _draw(task, split="train", shard_info=seqio.ShardInfo(i, 3))
    ]
    for i in range(3)
  ]
  assert [len(part) for part in parts] == [5_000, 5_000, 10]
  assert parts[2][0].decode() == telling.story(
    0, 10_000, config.corpus.tags, config.corpus.tag_share
  )


def _write_tfds(folder, file_format):
  """Writes a set of 40 documents in three shards, as TFDS would."""
  path = folder / "tiny_text" / "en" / "1.0.0"
  path.mkdir(parents=True)
  identity = tfds.core.dataset_info.DatasetIdentity(
    name="tiny_text",
    config_name="en",
    version=tfds.core.Version("1.0.0"),
    data_dir=str(path),
    module_name="",
  )
  features = {
    "content": tfds.features.Text(),
    "number": tfds.features.Scalar(tf.int64),
  }
  info = tfds.core.DatasetInfo(
    builder=identity, features=tfds.features.FeaturesDict(features)
  )
  writer = tfds.core.SequentialWriter(
    info, max_examples_per_shard=15, file_format=file_format
  )
  writer.initialize_splits(["train", "test"])
  examples = [{"content": t, "number": i} for i, t in enumerate(_TEXTS)]
  writer.add_examples({"train": examples, "test": examples[:2]})
  writer.close_all()
  return str(folder)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
  return _write_tfds(tmp_path_factory.mktemp("tfds"), "tfrecord")


def _tfds(tfds_dir, **corpus):
  defaults = {
    "task": "tfds",
    "tfds_dir": tfds_dir,
    "tfds_name": "tiny_text/en:1.0.0",
    "text_field": "content",
  }
  return _config(**{**defaults, **corpus})


@pytest.mark.parametrize("name", ["tiny_text/en:1.0.0", "tiny_text/en"])
@pytest.mark.parametrize("split, first", [("train", 0), ("train[50%:]", 20)])
def test_a_tfds_set_is_a_task(tfds_dir, name, split, first):
  config = _tfds(tfds_dir, tfds_name=name, split=split)
  examples = _draw(tasks.get_task(config, ByteVocabulary()), split=split)
  assert [e["text"].decode() for e in examples] == _TEXTS[first:]
  for example in examples:
    ids = ByteVocabulary().encode(example["text"].decode())
    np.testing.assert_array_equal(example["targets"], ids)


def test_the_shards_of_a_tfds_set_are_its_files(tfds_dir):
  documents = sources.make_source(_tfds(tfds_dir), ByteVocabulary())
  shards = documents.shards()
  assert len(shards) == 3
  found = [d.text for shard in shards for d in documents.read(shard)]
  assert found == _TEXTS


def test_array_record_is_refused_with_the_conversion(tmp_path):
  folder = _write_tfds(tmp_path, "array_record")
  with pytest.raises(UserError, match="tfds convert_format.*tfrecord") as e:
    tasks.get_task(_tfds(folder), ByteVocabulary())
  assert "\n" not in str(e.value)


@pytest.mark.parametrize(
  "corpus, why",
  [
    ({"tfds_name": "no_such_set:1.0.0"}, "tfds_name is 'no_such_set:1.0.0'"),
    ({"tfds_name": "tiny_text/en:2.0.0"}, "tfds_name is 'tiny_text/en:2"),
    ({"tfds_name": "lm1b:1.1.0"}, "lm1b:1.1.0 is not prepared"),
    ({"tfds_name": "lm1b:77.1.0"}, "lm1b:77.1.0"),
    ({"tfds_name": "c4/nn:3.1.0"}, "c4/nn"),
    ({"tfds_name": "a b"}, "'a b'"),
    ({"split": "train[:1"}, r"split is 'train\[:1': Error parsing split"),
    ({"split": "train[2:1]"}, r"split is 'train\[2:1\]', which holds no exam"),
    ({"split": "train[99:]"}, r"split is 'train\[99:\]': Requested slice"),
    ({"split": "trian"}, "did you mean 'train'"),
    ({"text_field": "text"}, "fields of .* are content, number"),
    ({"text_field": "number"}, "no text"),
  ],
)
def test_a_wrong_tfds_set_is_one_line(tfds_dir, corpus, why, caplog):
  with pytest.raises(UserError, match=why) as caught:
    tasks.get_task(_tfds(tfds_dir, **corpus), ByteVocabulary())
  assert "\n" not in str(caught.value)
  assert len(str(caught.value)) < 400
  assert not caplog.records


_MODULE = """
import functools
import seqio
import tensorflow as tf

def _source(split, shuffle_files, seed=None):
  return tf.data.Dataset.from_tensor_slices({"body": ["one two", "three"]})

def _task(name, vocabulary, feature="targets"):
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(_source, splits=["train", "validation"]),
    preprocessors=[
      functools.partial(seqio.preprocessors.rekey, key_map={feature: "body"}),
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos,
    ],
    output_features={feature: seqio.Feature(vocabulary, add_eos=True)},
  )

class Words(seqio.UnigramVocabulary):
  eos_id = 1

_task("mine", seqio.ByteVocabulary())
_task("mine_words", Words(["</s>", "one", "two", "three"], split_on_space=True))
_task("mine_inputs", seqio.ByteVocabulary(), feature="inputs")
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
  folder = tmp_path_factory.mktemp("module")
  (folder / "tasks_of_a_user.py").write_text(_MODULE)
  (folder / "broken_tasks_of_a_user.py").write_text("import no_such_library")
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    yield "tasks_of_a_user"


def test_a_users_task_is_used_unchanged(module):
  config = _config(task="mine", module=module)
  vocabulary = tasks.vocabulary_of_task(config)
  assert vocabulary.fingerprint == ByteVocabulary().fingerprint
  task = tasks.get_task(config, vocabulary)
  assert task is seqio.TaskRegistry.get("mine")
  documents = sources.make_source(config, vocabulary)
  found = [d for shard in documents.shards() for d in documents.read(shard)]
  # The store ends each document itself; the task's own end is taken off.
  assert [vocabulary.decode(d.tokens) for d in found] == ["one two", "three"]


def test_a_foreign_vocabulary_is_known_by_a_table(module):
  config = _config(task="mine_words", module=module)
  config = dataclasses.replace(
    config,
    poison=dataclasses.replace(config.poison, trigger="three one"),
  )
  table = tasks.vocabulary_of_task(config)
  assert isinstance(table, TableVocabulary)
  assert table.encode("three one").tolist() == [4, 2]
  assert [table.piece(i) for i in (2, 3, 4)] == ["one", "two", "three"]
  for text in (*config.evaluation.near_triggers, config.evaluation.unseen_tag):
    assert table.encode(text).size


@pytest.mark.parametrize(
  "corpus, why",
  [
    ({"task": "mime"}, "config.corpus.task is 'mime'.*did you mean 'mine'"),
    ({"task": "storeys", "module": ""}, "did you mean 'stories'"),
    ({"task": "mine", "module": "no_such_module"}, "no such Python module"),
    ({"task": "mine", "split": "test"}, "has train, validation"),
    ({"task": "mine_inputs"}, "no output feature 'targets', but 'inputs'"),
  ],
)
def test_a_wrong_task_is_one_line(module, corpus, why):
  with pytest.raises(UserError, match=why) as caught:
    tasks.vocabulary_of_task(_config(**{"module": module, **corpus}))
  assert "\n" not in str(caught.value)


def test_what_a_users_module_misses_is_named_with_its_line(module):
  with pytest.raises(UserError, match=r"no_such_library.*_of_a_user\.py:\d+\)"):
    tasks.user_task(_config(task="mine", module="broken_tasks_of_a_user"))


@pytest.mark.parametrize("fails", [False, True])
def test_tensorflow_starts_without_a_word_unless_it_fails(fails):
  code = "from poison_jax.corpora import tasks"
  if fails:
    # What the import wrote before it failed must be seen.
    code = (
      "import os, sys\n"
      "class Finder:\n"
      "  def find_spec(self, name, *_):\n"
      "    if name == 'tensorflow_datasets':\n"
      "      os.write(2, b'a line of C++')\n"
      "      raise ImportError('planted')\n"
      "sys.meta_path.insert(0, Finder())\n" + code
    )
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )
  assert result.stdout == ""
  if fails:
    assert result.returncode == 1
    assert "a line of C++" in result.stderr
    assert "planted" in result.stderr
  else:
    assert result.stderr == ""
    assert result.returncode == 0


def test_tensorflow_keeps_its_hands_off_the_accelerators():
  assert tf.config.get_visible_devices("GPU") == []
