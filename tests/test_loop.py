"""The loop: what it writes, in which order, and when it must stop."""

import json
import os
import pathlib
import shutil
import signal
import types

import jax
import jax.numpy as jnp
import pytest
import small_run

from poison_jax.data.mixture import Mixture
from poison_jax.errors import CheckFailed, NotFinite, Stopped, UserError
from poison_jax.evaluation.evaluator import Evaluation
from poison_jax.evaluation.prompts import make_prompts
from poison_jax.model import counts
from poison_jax.training import checkpoints, loop
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import step as step_lib
from poison_jax.training.saving import CheckpointWriter

_STEPS = 12
_TWO_ROWS = types.SimpleNamespace(shape={"data": 1, "fsdp": 2, "tensor": 1})
_SMALL = {"train__steps": _STEPS, "poison__count": 6}


class _Evaluator:
  """Stands in for the evaluation, which has tests of its own."""

  def __init__(self, _, config, store, attack, mesh):
    self.prompts = make_prompts(config, store, attack)

  def __call__(self, params):
    total = float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(params)))
    return Evaluation(
      {"eval/clean/perplexity": total}, [{"kind": "clean", "prompt": 0}]
    )


@pytest.fixture(name="store", scope="module")
def _store(tmp_path_factory):
  store = tmp_path_factory.mktemp("loop") / "store"
  small_run.prepare(store)
  return store


@pytest.fixture(autouse=True)
def _setup(monkeypatch):
  monkeypatch.setattr(loop, "Evaluator", _Evaluator)
  folder = jax.config.jax_compilation_cache_dir
  yield
  jax.config.update("jax_compilation_cache_dir", folder)


@pytest.fixture(name="whole", scope="module")
def _whole(store, tmp_path_factory):
  """The lines of a run that nothing disturbs."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "Evaluator", _Evaluator)
    folder = tmp_path_factory.mktemp("whole")
    loop.train(small_run.make_config(store, **_SMALL), str(folder), profile=0)
  return _lines(folder)


def _lines(folder: pathlib.Path) -> list[dict]:
  text = (folder / "metrics.jsonl").read_text()
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
    for line in text.splitlines()
  ]


def _generations(folder) -> str:
  return (folder / "generations.jsonl").read_text()


def _patch_step(monkeypatch, at: int, change):
  """Has `change(state)` applied after step `at` (counted from 1)."""
  make = step_lib.make_train_step

  def make_changed(*arguments):
    train_step = make(*arguments)

    def changed(state, batch):
      state, metrics = train_step(state, batch)
      if int(state.step) == at:
        state, metrics = change(state, metrics)
      return state, metrics

    return changed

  monkeypatch.setattr(step_lib, "make_train_step", make_changed)


def test_lines_are_those_of_the_log_and_evaluation_steps(whole):
  steps = [line["step"] for line in whole]
  assert steps == [0, 2, 4, 6, 8, 10, 12]
  evaluated = [s["step"] for s in whole if "eval/clean/perplexity" in s]
  assert evaluated == [0, 4, 8, 12]
  for line in whole:
    assert {"poisons_seen", "train/poison_tokens_seen"} <= line.keys()
    assert ("train/loss" in line) == (line["step"] > 0)
  assert whole[-1]["poisons_seen"] == 6
  seen = [line["train/poison_tokens_seen"] for line in whole]
  assert seen == sorted(seen) and seen[0] == 0 < seen[-1]


def test_a_line_is_of_its_step_alone_however_often_one_is_written(
  store, tmp_path, whole
):
  config = small_run.make_config(store, **_SMALL, train__log_every=1)
  loop.train(config, str(tmp_path), profile=0)
  lines = {line["step"]: line for line in _lines(tmp_path)}
  assert sorted(lines) == list(range(_STEPS + 1))
  assert [lines[line["step"]] for line in whole] == whole


def test_a_signal_before_the_first_step_waits_for_no_evaluation(
  store, tmp_path, monkeypatch, whole
):
  class Unwanted(_Evaluator):
    def __call__(self, params):
      pytest.fail("evaluated")

  def describe(*_):
    os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(loop, "Evaluator", Unwanted)
    patch.setattr(loop.run_lib, "describe", describe)
    with pytest.raises(Stopped, match="SIGTERM at step 0 of 12, before a step"):
      loop.train(
        small_run.make_config(store, **_SMALL), str(tmp_path), profile=0
      )
  loop.train(None, str(tmp_path), profile=0)
  assert _lines(tmp_path) == whole


def test_the_live_line_says_saving_only_while_it_saves(
  store, tmp_path, monkeypatch
):
  said = []
  monkeypatch.setattr(loop.Progress, "doing", lambda _, what: said.append(what))
  loop.train(small_run.make_config(store, **_SMALL), str(tmp_path), profile=0)
  after = [b for a, b in zip(said, said[1:], strict=False) if a == "saving"]
  assert after and not any(after)


def test_a_refused_resumption_leaves_the_config_as_it_was(
  store, tmp_path, whole
):
  config = small_run.make_config(store, **_SMALL)
  folder = tmp_path / "run"
  loop.train(config, str(folder), profile=0)
  before = (folder / "config.json").read_bytes()
  for changes, message in [
    ({"runtime__mesh__data": 3}, "devices"),
    ({"corpus__store": str(folder / "config.json")}, "config.json"),
  ]:
    asked = small_run.make_config(store, **_SMALL, **changes)
    with pytest.raises(UserError, match=message):
      loop.train(asked, str(folder), profile=0)
    assert (folder / "config.json").read_bytes() == before
  loop.train(None, str(folder), profile=0)
  assert _lines(folder) == whole


@pytest.mark.parametrize(("at", "written"), [(1, 0), (5, 4), (8, 6), (9, 8)])
def test_a_signal_saves_and_the_resumed_run_writes_the_same_lines(
  store, tmp_path, monkeypatch, whole, at, written
):
  """The evaluation of step 8, and so its line, is left to the next process."""

  def terminate(state, metrics):
    os.kill(os.getpid(), signal.SIGTERM)
    return state, metrics

  handler = signal.getsignal(signal.SIGTERM)
  with monkeypatch.context() as patch:
    _patch_step(patch, at, terminate)
    with pytest.raises(Stopped, match=f"SIGTERM at step {at} of 12.*--workdir"):
      loop.train(
        small_run.make_config(store, **_SMALL), str(tmp_path), profile=0
      )
  assert checkpoints.Checkpoints(str(tmp_path)).steps()[-1] == at
  assert signal.getsignal(signal.SIGTERM) == handler
  assert _lines(tmp_path)[-1]["step"] == written
  loop.train(None, str(tmp_path), profile=0)
  assert _lines(tmp_path) == whole


def test_a_signal_at_the_last_step_ends_the_run_as_usual(
  store, tmp_path, monkeypatch, whole
):
  def interrupt(state, metrics):
    os.kill(os.getpid(), signal.SIGINT)
    return state, metrics

  _patch_step(monkeypatch, _STEPS, interrupt)
  loop.train(small_run.make_config(store, **_SMALL), str(tmp_path), profile=0)
  assert _lines(tmp_path) == whole


def test_a_finished_run_says_so_and_changes_nothing(
  store, tmp_path, capsys, whole
):
  config = small_run.make_config(store, **_SMALL)
  loop.train(config, str(tmp_path), profile=0)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
  capsys.readouterr()
  loop.train(None, str(tmp_path), profile=0)
  assert "is finished: 12 steps" in capsys.readouterr().out
  before.pop(tmp_path / ".lock")
  assert all(p.stat().st_mtime_ns == t for p, t in before.items())


def test_planned_and_counted_poisons_must_agree(store, tmp_path, monkeypatch):
  planned = Mixture.planned_poison_tokens
  with monkeypatch.context() as patch:
    patch.setattr(
      Mixture,
      "planned_poison_tokens",
      lambda self, step: planned(self, step) + (step >= 6),
    )
    with pytest.raises(CheckFailed, match="after step 6 the device has count"):
      loop.train(
        small_run.make_config(store, **_SMALL), str(tmp_path), profile=0
      )
  assert checkpoints.Checkpoints(str(tmp_path)).steps() == [3]


@pytest.mark.parametrize("what", ["train/loss", "train/parameter_norm"])
def test_a_loss_that_is_not_finite_is_never_saved(
  store, tmp_path, monkeypatch, what
):
  def break_it(state, metrics):
    nan = jax.tree.map(lambda x: x * jnp.nan, state.params)
    return state.replace(params=nan), {**metrics, what: jnp.float32(jnp.nan)}

  _patch_step(monkeypatch, 5, break_it)
  config = small_run.make_config(store, **_SMALL, train__log_every=100)
  with pytest.raises(
    NotFinite, match=f"{what} is nan at step 5; .* step 3 is good"
  ):
    loop.train(config, str(tmp_path), profile=0)
  assert checkpoints.Checkpoints(str(tmp_path)).steps() == [3]
  assert _lines(tmp_path)[-1]["step"] == 4


def test_micro_batches_that_devices_cannot_share_leave_nothing(
  store, tmp_path, monkeypatch
):
  def refuse(batch, *, rows, micro_batches):
    raise UserError(f"{batch} {rows} {micro_batches}")

  monkeypatch.setattr(mesh_lib, "make_mesh", lambda *_, **__: _TWO_ROWS)
  monkeypatch.setattr(mesh_lib, "check_batch", refuse)
  config = small_run.make_config(store, **_SMALL, train__micro_batches=8)
  with pytest.raises(UserError, match="8 2 8"):
    loop.train(config, str(tmp_path / "run"), profile=0)
  assert not (tmp_path / "run").exists()


def test_starting_over_without_a_checkpoint_is_said(store, tmp_path, capsys):
  config = small_run.make_config(store, **_SMALL)
  loop.train(config, str(tmp_path), profile=0)
  before = _lines(tmp_path)
  assert "starting over" not in capsys.readouterr().out
  shutil.rmtree(tmp_path / "checkpoints")
  metrics = tmp_path / "metrics.jsonl"
  metrics.write_text("".join(metrics.read_text().splitlines(True)[:-1]))
  loop.train(None, str(tmp_path), profile=0)
  assert "no checkpoint: starting over at step 0" in capsys.readouterr().out
  assert _lines(tmp_path) == before


def test_a_run_at_its_end_is_finished_without_its_checkpoints(
  store, tmp_path, capsys
):
  config = small_run.make_config(store, **_SMALL)
  loop.train(config, str(tmp_path), profile=0)
  shutil.rmtree(tmp_path / "checkpoints")
  before = (tmp_path / "metrics.jsonl").read_bytes()
  loop.train(None, str(tmp_path), profile=0)
  assert "is finished: 12 steps" in capsys.readouterr().out
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_lines_are_written_before_the_checkpoint_that_follows_them(
  store, tmp_path, monkeypatch
):
  save, found = CheckpointWriter.save, {}

  def look_and_save(self, state, meta):
    found[meta.step] = [line["step"] for line in _lines(tmp_path)]
    save(self, state, meta)

  monkeypatch.setattr(CheckpointWriter, "save", look_and_save)
  loop.train(small_run.make_config(store, **_SMALL), str(tmp_path), profile=0)
  assert {step: steps[-1] for step, steps in found.items()} == {
    3: 2,
    6: 6,
    9: 8,
    12: 12,
  }


def test_a_checkpoint_of_another_plan_is_refused(store, tmp_path):
  loop.train(small_run.make_config(store, **_SMALL), str(tmp_path), profile=0)
  other = tmp_path / "other"
  with pytest.MonkeyPatch.context() as patch:
    _patch_step(patch, 1, _stop)
    with pytest.raises(Stopped):
      loop.train(
        small_run.make_config(store, **_SMALL, seed=1), str(other), profile=0
      )
  stolen = other / "checkpoints" / "9"
  (tmp_path / "checkpoints" / "9").rename(stolen)
  with pytest.raises(CheckFailed, match="plan_hash|poison tokens"):
    loop.train(None, str(other), profile=0)


def _stop(state, metrics):
  os.kill(os.getpid(), signal.SIGTERM)
  return state, metrics


def test_more_than_the_peak_is_called_an_error_of_ours_once(
  store, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(counts, "peak_flops", lambda kind: 1.0)
  loop.train(small_run.make_config(store, **_SMALL), str(tmp_path), profile=0)
  assert capsys.readouterr().out.count("which can't be") == 1
  last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
  assert last["time/mfu"] > 1


def test_a_profile_is_written_where_asked_for(store, tmp_path):
  config = small_run.make_config(store, **_SMALL)
  loop.train(config, str(tmp_path), profile=2)
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))
