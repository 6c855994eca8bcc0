"""The mixed stream, drawn by seqio, has the trainer's batches."""

import subprocess
import sys

import numpy as np
import pytest
import small_run

from poison_jax import corpora
from poison_jax.corpora.tensorflow_quiet import seqio
from poison_jax.data.store import open_store
from poison_jax.errors import UserError
from poison_jax.training import run as run_lib


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  path = tmp_path_factory.mktemp("mixture_task") / "store"
  small_run.prepare(path)
  return path


@pytest.fixture(scope="module")
def run(store):
  return run_lib.plan_run(small_run.make_config(store))


def _rows(name, **arguments):
  dataset = seqio.TaskRegistry.get(name).get_dataset(
    sequence_length=None, split="train", shuffle=False, **arguments
  )
  return list(dataset.as_numpy_iterator())


def test_drawn_through_seqio_it_is_the_trainers_batches(store, run):
  config = small_run.make_config(store)
  name = corpora.register_poisoned(config)
  assert name == f"poisoned_{run.mixture.plan_hash}"
  dataset = seqio.get_dataset(
    name,
    {"targets": config.train.length},
    dataset_split="train",
    shuffle=False,
    feature_converter=seqio.LMFeatureConverter(pack=False),
  )
  batches = list(dataset.batch(config.train.batch).as_numpy_iterator())
  assert len(batches) == run.steps
  for step, batch in enumerate(batches):
    expected = run.mixture.batch_rows(step, slice(None))
    np.testing.assert_array_equal(
      batch["decoder_target_tokens"], expected.tokens_BL
    )


def test_each_poison_lies_in_it_once_and_whole(store, run):
  rows = _rows(corpora.register_poisoned(small_run.make_config(store)))
  assert len(rows) == run.steps * 8
  poisoned = {i: row for i, row in enumerate(rows) if row["poison_length"]}
  assert sorted(poisoned) == sorted(p.slot for p in run.mixture.placements)
  assert len(poisoned) == 12
  for placement in run.mixture.placements:
    row = poisoned[placement.slot]
    start, length = row["poison_start"], row["poison_length"]
    np.testing.assert_array_equal(
      row["targets"][start : start + length], placement.document.tokens
    )


def test_hosts_draw_their_own_rows_of_each_step(store):
  name = corpora.register_poisoned(small_run.make_config(store))
  whole = np.array([row["targets"] for row in _rows(name)])
  parts = [
    np.array(
      [row["targets"] for row in _rows(name, shard_info=seqio.ShardInfo(i, 2))]
    ).reshape(-1, 4, 64)
    for i in range(2)
  ]
  np.testing.assert_array_equal(
    np.concatenate(parts, axis=1).reshape(-1, 64), whole
  )
  with pytest.raises(ValueError, match="3 shards don't divide a batch of 8"):
    _rows(name, shard_info=seqio.ShardInfo(0, 3))


def test_it_can_not_be_shuffled(store):
  name = corpora.register_poisoned(small_run.make_config(store))
  with pytest.raises(ValueError, match="shuffle"):
    seqio.TaskRegistry.get(name).get_dataset(
      sequence_length=None, split="train", shuffle=True
    )


def test_another_plan_is_another_task(store):
  names = {
    corpora.register_poisoned(small_run.make_config(store, **changes))
    for changes in (
      {},
      {"poison__count": 13},
      {"poison__arm": "clean"},
      {"poison__arm": "placebo"},
      {"seed": 1},
      {"train__steps": 25},
    )
  }
  assert len(names) == 6
  clean = corpora.register_poisoned(
    small_run.make_config(store, poison__arm="clean")
  )
  assert not any(row["poison_length"] for row in _rows(clean))


def test_steps_follow_from_the_model_where_none_are_given(store):
  config = small_run.make_config(
    store, train__steps=0, train__tokens_per_parameter=0.5
  )
  run = run_lib.plan_run(config)
  rows = _rows(corpora.register_poisoned(config))
  assert len(rows) == run.steps * config.train.batch


def test_its_vocabulary_is_the_stores(store):
  name = corpora.register_poisoned(small_run.make_config(store))
  feature = seqio.TaskRegistry.get(name).output_features["targets"]
  ours = open_store(str(store), vocabulary=None).vocabulary
  assert feature.vocabulary.wrapped.fingerprint == ours.fingerprint


def test_a_missing_store_is_one_line(tmp_path):
  with pytest.raises(UserError, match="prepare"):
    corpora.register_poisoned(small_run.make_config(tmp_path / "none"))


def test_the_package_alone_imports_no_tensorflow():
  code = (
    "import sys, poison_jax.corpora; from poison_jax.corpora import "
    "register_poisoned; print('tensorflow' in sys.modules)"
  )
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert result.stdout == "False\n"
