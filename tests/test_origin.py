"""Runs that continue others: what they begin with, and what is refused."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import small_run

from poison_jax import config as config_lib
from poison_jax.corpora import writer
from poison_jax.data.folder import Folder
from poison_jax.data.store import open_store
from poison_jax.errors import CheckFailed, UserError
from poison_jax.training import beginning, loop, origin
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import optimizer as optimizer_lib
from poison_jax.training import run as run_lib
from poison_jax.training import step as step_lib
from poison_jax.training.checkpoints import Checkpoints

_STEPS = 6


def _train(config, workdir):
  loop.train(config, str(workdir), profile=0)


@pytest.fixture(name="store", scope="module")
def _store(tmp_path_factory):
  folder = tmp_path_factory.mktemp("origin") / "store"
  small_run.prepare(folder)
  return folder


@pytest.fixture(name="base", scope="module")
def _base(store):
  """A run of 6 steps with checkpoints after 3 and 6."""
  workdir = store.parent / "base"
  _train(_config(store), workdir)
  return workdir


def _config(store, **changes):
  fields = {
    "train__steps": _STEPS,
    "evaluation__times": 1,
    "poison__count": 4,
    "checkpoint__keep_last": 9,
  }
  return small_run.make_config(store, **(fields | changes))


def _continued(store, base, **changes):
  return _config(store, **({"start__weights": str(base), "seed": 5} | changes))


def _begin(config, workdir):
  """Returns the state that training begins with; trains nothing."""
  run = run_lib.plan_run(config)
  mesh = mesh_lib.make_mesh(config.runtime.mesh, batch=config.train.batch)
  origin.check(run, str(workdir))
  optimizer = optimizer_lib.run_optimizer(config, steps=run.steps)
  begun = beginning.begin(
    run, mesh, optimizer, str(workdir), lambda _, fact: [fact]
  )
  return begun, run, mesh, optimizer


def _saved(base, step):
  config = _config(base.parent / "store")
  run = run_lib.plan_run(config)
  mesh = mesh_lib.make_mesh(config.runtime.mesh, batch=config.train.batch)
  optimizer = optimizer_lib.run_optimizer(config, steps=run.steps)
  abstract = step_lib.abstract_state(run.decoder, optimizer, mesh)
  return Checkpoints(str(base)).restore(step, abstract).state


def _same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def _differ(one, other):
  return any(
    (np.asarray(a) != np.asarray(b)).any()
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  )


def _moments(state):
  return [x for x in jax.tree.leaves(state.opt_state) if x.ndim]


def test_it_begins_with_the_newest_weights_and_a_fresh_optimizer(
  store, base, tmp_path
):
  begun, *_ = _begin(_continued(store, base), tmp_path)
  assert begun.step == 0
  assert not begun.resumed
  _same(begun.state.params, _saved(base, 6).params)
  assert all(not np.any(m) for m in _moments(begun.state))
  assert int(begun.state.step) == 0
  assert int(begun.state.poison_tokens_seen) == 0


def test_it_begins_with_the_checkpoint_asked_for(store, base, tmp_path):
  config = _continued(store, base, start__checkpoint=3)
  begun, *_ = _begin(config, tmp_path)
  _same(begun.state.params, _saved(base, 3).params)
  assert _differ(begun.state.params, _saved(base, 6).params)
  assert origin.read(str(tmp_path)).step == 3


def test_a_restored_optimizer_keeps_moments_and_adams_count(
  store, base, tmp_path
):
  config = _continued(store, base, start__optimizer="restored")
  begun, *_ = _begin(config, tmp_path)
  saved = _saved(base, 6)
  _same(_moments(begun.state), _moments(saved))
  assert any(np.any(m) for m in _moments(saved))
  scalars = [
    int(x) for x in jax.tree.leaves(begun.state.opt_state) if not x.ndim
  ]
  before = [int(x) for x in jax.tree.leaves(saved.opt_state) if not x.ndim]
  assert before == [6, 6]  # Adam's, the schedule's.
  assert scalars == [6, 0]
  assert int(begun.state.step) == 0


def test_the_rate_is_the_schedules_at_its_place(store, base, tmp_path):
  config = _continued(
    store,
    base,
    start__step=40,
    start__schedule_steps=100,
    optimizer__schedule="linear",
    optimizer__warmup=0.1,
    optimizer__final=0.0,
    optimizer__learning_rate=1.0,
  )
  rate = optimizer_lib.run_schedule(config, steps=_STEPS)
  # From 1 after 10 steps to 0 at step 99: 89 equal steps down.
  expected = [1 - (40 + s - 10) / 89 for s in range(_STEPS)]
  np.testing.assert_allclose([rate(s) for s in range(_STEPS)], expected, 1e-5)
  workdir = tmp_path / "run"
  _train(config, workdir)
  content = (workdir / "metrics.jsonl").read_text()
  lines = [json.loads(line) for line in content.splitlines()]
  rates = {
    m["step"]: m["train/learning_rate"]
    for m in lines
    if "train/learning_rate" in m
  }
  # A line of step s tells of the update that made it, s - 1.
  assert rates[_STEPS] == pytest.approx(expected[-1], rel=1e-5)


def test_the_schedule_goes_on_as_without_a_stop(store, base, tmp_path):
  """Two runs of 3 steps are one of 6, where data and poisons are alike."""
  fields = {
    "poison__arm": "clean",
    "train__batch": 8,
    "checkpoint__every": 3,
    "optimizer__schedule": "cosine",
  }
  whole = _config(store, **fields)
  _train(whole, tmp_path / "whole")
  second = _config(
    store,
    **fields,
    train__steps=3,
    start__weights=str(tmp_path / "whole"),
    start__checkpoint=3,
    start__optimizer="restored",
    start__step=3,
    start__schedule_steps=6,
  )
  begun, run, mesh, optimizer = _begin(second, tmp_path / "second")
  step = step_lib.make_train_step(run.decoder, optimizer, second, mesh)
  state = begun.state
  batches = run_lib.plan_run(whole).mixture
  for number in (3, 4, 5):
    state, _ = step(state, batches.batch_rows(number, slice(None)))
  run6 = run_lib.plan_run(whole)
  abstract = step_lib.abstract_state(
    run6.decoder, optimizer_lib.run_optimizer(whole, steps=6), mesh
  )
  reader = Checkpoints(str(tmp_path / "whole"))
  expected = reader.restore(6, abstract).state
  _same(state.params, expected.params)
  _same(_moments(state), _moments(expected))


def test_origin_is_written_and_compared(store, base, tmp_path):
  config = _continued(store, base)
  _begin(config, tmp_path)
  found = origin.read(str(tmp_path))
  assert found.folder == str(base)
  assert found.step == 6
  assert len(found.digest) == 16
  # The run that it continues has gone on since: nothing changes here.
  longer = tmp_path / "longer"
  shutil.copytree(base, longer)
  config = _continued(store, longer)
  workdir = tmp_path / "w"
  workdir.mkdir()
  _begin(config, workdir)
  shutil.copytree(longer / "checkpoints" / "6", longer / "checkpoints" / "7")
  begun, *_ = _begin(config, workdir)
  _same(begun.state.params, _saved(base, 6).params)
  # Other weights under the same step are noticed.
  altered = dataclasses.replace(origin.read(str(workdir)), digest="0" * 16)
  Folder(str(workdir)).write(
    origin.FILE, json.dumps(dataclasses.asdict(altered)).encode()
  )
  with pytest.raises(CheckFailed, match="began with 0000000000000000"):
    _begin(config, workdir)


def test_a_continued_run_resumes_bit_for_bit(store, base, tmp_path):
  config = _continued(store, base, start__optimizer="restored")
  _train(config, tmp_path / "whole")
  # Stopped after its first checkpoint: what came later is taken away.
  cut = tmp_path / "cut"
  shutil.copytree(tmp_path / "whole", cut)
  shutil.rmtree(cut / "checkpoints" / "6")
  _train(None, cut)
  checkpoints = [
    Checkpoints(str(tmp_path / n)).leaves(6) for n in ("whole", "cut")
  ]
  assert checkpoints[0] == checkpoints[1]
  # Of its own seed and plan, from its own step 0.
  whole = run_lib.plan_run(config).mixture
  theirs = run_lib.plan_run(_config(store)).mixture
  assert whole.plan_hash != theirs.plan_hash


def test_its_own_checkpoints_win_and_the_origin_may_be_gone(
  store, base, tmp_path
):
  gone = tmp_path / "gone"
  shutil.copytree(base, gone)
  config = _continued(store, gone, train__steps=4)
  _train(config, tmp_path / "run")
  shutil.rmtree(gone)
  begun, *_ = _begin(config, tmp_path / "run")
  assert begun.step == 4


def _refused(config, workdir):
  with pytest.raises(UserError) as error:
    _train(config, workdir)
  assert "\n" not in str(error.value)
  assert not os.path.exists(workdir)
  return str(error.value)


def test_another_model_is_refused_by_field(store, base, tmp_path):
  config = _continued(
    store, base, model__width=32, model__rope_theta=5e5, model__remat="full"
  )
  said = _refused(config, tmp_path / "run")
  assert "model.width (there 16, here 32)" in said
  assert "model.rope_theta (there 10000.0, here 500000.0)" in said
  assert "remat" not in said


def test_another_vocabulary_is_refused(store, base, tmp_path):
  other = tmp_path / "store"
  fields = {"vocabulary__kind": "sentencepiece", "vocabulary__size": 100}
  config = _continued(other, base, **fields)
  writer.write_store(config, report=lambda *_: None, say=lambda _: None)
  said = _refused(config, tmp_path / "run")
  assert "another vocabulary" in said


def test_a_vocabulary_that_cant_be_compared_is_refused(store, base, tmp_path):
  moved = tmp_path / "moved"
  shutil.copytree(base, moved)
  config = json.loads((moved / "config.json").read_text())
  config["config"]["corpus"]["store"] = str(tmp_path / "nowhere")
  (moved / "config.json").write_text(json.dumps(config))
  # The same store under another name is the same vocabulary.
  _begin(_continued(store, moved), tmp_path)
  other = tmp_path / "other"
  here = _continued(other, moved, corpus__stories=200)
  writer.write_store(here, report=lambda *_: None, say=lambda _: None)
  assert "can't be compared" in _refused(here, tmp_path / "run")


def test_the_same_vocabulary_over_another_corpus_is_taken(
  store, base, tmp_path
):
  other = tmp_path / "other"
  config = _continued(other, base, corpus__stories=200)
  writer.write_store(config, report=lambda *_: None, say=lambda _: None)
  assert open_store(str(other), vocabulary=None).hash != (
    open_store(str(store), vocabulary=None).hash
  )
  begun, *_ = _begin(config, tmp_path / "run")
  _same(begun.state.params, _saved(base, 6).params)


def test_no_run_and_no_checkpoint_are_refused(store, base, tmp_path):
  said = _refused(_continued(store, tmp_path / "no"), tmp_path / "run")
  assert "holds no run" in said
  empty = tmp_path / "empty"
  empty.mkdir()
  shutil.copy(base / "config.json", empty)
  said = _refused(_continued(store, empty), tmp_path / "run")
  assert "has no checkpoint" in said
  config = _continued(store, base, start__checkpoint=4)
  said = _refused(config, tmp_path / "run")
  assert "config.start.checkpoint is 4" in said
  assert "there are 3, 6" in said


def test_a_restored_optimizer_of_another_kind_is_refused(store, base, tmp_path):
  config = _continued(
    store, base, start__optimizer="restored", optimizer__kind="sgd"
  )
  said = _refused(config, tmp_path / "run")
  assert "config.start.optimizer is 'restored'" in said
  assert "opt_state/" in said
  _begin(
    dataclasses.replace(
      config, start=dataclasses.replace(config.start, optimizer="fresh")
    ),
    tmp_path,
  )


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("step", 3),
    ("checkpoint", 3),
    ("optimizer", "restored"),
    ("schedule_steps", 9),
  ],
)
def test_fields_without_weights_are_refused(store, name, value):
  with pytest.raises(UserError, match=f"config.start.{name} is"):
    _config(store, **{f"start__{name}": value})


def test_the_command_continues_and_says_so(store, base, tmp_path):
  flags = small_run.flags(
    store,
    train__steps=2,
    evaluation__times=1,
    start__weights=str(base),
    start__step=6,
  )
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "poison_jax.train",
      *flags,
      f"--workdir={tmp_path}/r",
    ],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert (
    f"{base}, checkpoint newest; optimizer fresh; schedule from step 6 of 8"
    in done.stdout
  )
  assert f"beginning with {base} after step 6" in done.stdout
  assert (
    config_lib.from_dict(
      json.loads((tmp_path / "r" / "config.json").read_text())["config"]
    ).start.step
    == 6
  )
