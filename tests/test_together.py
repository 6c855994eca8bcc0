"""Runs that train together: each as if it were alone."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import small_run

from poison_jax.data.mixture import Mixture
from poison_jax.errors import CheckFailed, Stopped, UserError
from poison_jax.evaluation.evaluator import Evaluation
from poison_jax.training import cells, loop, together, workdir
from poison_jax.training.checkpoints import Checkpoints
from poison_jax.training.stop import StopSignals

_STEPS = 12
# Of a run of `_STEPS` steps, float32, against the same run alone: the sums
# inside a product come in another order. Measured: losses 2e-7.
_TOLERANCE = 1e-5
# Alike, and different in everything that may differ.
_CELLS = {
  "poisoned": {},
  "clean": {"poison__arm": "clean", "seeds__init": 3},
  "placebo": {
    "seed": 1,
    "poison__arm": "placebo",
    "poison__count": 9,
    "optimizer__learning_rate": 1e-3,
  },
}


def _config(store, **changes):
  shared = {"train__steps": _STEPS, "poison__count": 6, "seeds__order": 7}
  return small_run.make_config(store, **(shared | changes))


def _write(folder: pathlib.Path, store, names=_CELLS, **changes) -> list[str]:
  """Writes a folder for each of the cells and returns them."""
  folders = []
  for name in names:
    folders.append(str(folder / name))
    os.makedirs(folders[-1])
    workdir.write_config(
      folders[-1], _config(store, **(_CELLS[name] | changes))
    )
  return folders


def _together(folders) -> list[together.CellResult]:
  with StopSignals() as stop:
    return together.train_together(folders, stop=stop)


def _sum(params) -> float:
  return float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(params)))


class _Alone:
  """Stands in for a run's evaluation."""

  def __init__(self, *_):
    pass

  prompts = ()

  def __call__(self, params):
    return _evaluation(params)


class _Cells:
  """Stands in for the evaluation of cells."""

  def __init__(self, *_):
    pass

  def __call__(self, params_C, numbers):
    return {
      i: _evaluation(jax.tree.map(lambda x, i=i: x[i], params_C))
      for i in numbers
    }


def _evaluation(params) -> Evaluation:
  return Evaluation({"eval/sum": _sum(params)}, [{"kind": "clean"}])


@pytest.fixture(name="store", scope="module")
def _store(tmp_path_factory):
  store = tmp_path_factory.mktemp("together") / "store"
  small_run.prepare(store)
  return store


def _stand_in(patch):
  patch.setattr(loop, "Evaluator", _Alone)
  patch.setattr(loop.run_lib, "describe", lambda *_: "")
  patch.setattr(together, "Evaluator", _Alone)
  patch.setattr(together, "CellsEvaluator", _Cells)


@pytest.fixture(autouse=True)
def _setup(monkeypatch):
  _stand_in(monkeypatch)
  folder = jax.config.jax_compilation_cache_dir
  yield
  jax.config.update("jax_compilation_cache_dir", folder)


@pytest.fixture(name="alone", scope="module")
def _alone(store, tmp_path_factory):
  """The cells' folders, each trained alone."""
  folder = tmp_path_factory.mktemp("alone")
  with pytest.MonkeyPatch.context() as patch:
    _stand_in(patch)
    for path in _write(folder, store):
      loop.train(None, path, profile=0)
  return folder


@pytest.fixture(name="joint", scope="module")
def _joint(store, tmp_path_factory):
  """The same cells, trained together."""
  folder = tmp_path_factory.mktemp("joint")
  with pytest.MonkeyPatch.context() as patch:
    _stand_in(patch)
    results = _together(_write(folder, store))
  assert [r.outcome for r in results] == ["done"] * len(_CELLS)
  assert [r.step for r in results] == [_STEPS] * len(_CELLS)
  return folder


def _lines(folder) -> list[dict]:
  text = (pathlib.Path(folder) / "metrics.jsonl").read_text()
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
    for line in text.splitlines()
  ]


def _assert_as_alone(folder, alone) -> None:
  """Compares a cell's files with those of the run alone."""
  lines, expected = _lines(folder), _lines(alone)
  assert len(lines) == len(expected)
  for line, other in zip(lines, expected, strict=True):
    assert line.keys() == other.keys()
    for key in ("step", "poisons_seen", "train/poison_tokens_seen"):
      assert line[key] == other[key]
    for key in line:
      assert line[key] == pytest.approx(other[key], rel=_TOLERANCE), key
  for name in ("config.json", "ledger.parquet", "generations.jsonl"):
    assert (folder / name).read_bytes() == (alone / name).read_bytes()
  checkpoints, others = Checkpoints(str(folder)), Checkpoints(str(alone))
  assert others.steps()[-1] == _STEPS
  last, other = (c.meta(_STEPS) for c in (checkpoints, others))
  assert last == other


def test_each_cell_writes_what_it_writes_alone(joint, alone):
  for name in _CELLS:
    _assert_as_alone(joint / name, alone / name)
    steps = Checkpoints(str(joint / name)).steps()
    assert steps == Checkpoints(str(alone / name)).steps()


def test_the_cells_differ_from_each_other(joint):
  """Else the comparison with runs alone would say little."""
  losses = {name: _lines(joint / name)[-1]["train/loss"] for name in _CELLS}
  assert len({round(loss, 3) for loss in losses.values()}) == len(_CELLS)
  seen = [_lines(joint / n)[-1]["train/poison_tokens_seen"] for n in _CELLS]
  assert seen[1] == 0 and 0 < seen[0] != seen[2] > 0


def test_times_are_a_cells_own(joint):
  for name in _CELLS:
    text = (joint / name / "metrics.jsonl").read_text()
    *_, last = map(json.loads, text.splitlines())
    assert {"time/seconds", "time/goodput"} <= last.keys()
    assert last["time/tokens_per_second"] > 0


def _patch_step(monkeypatch, at: int, change):
  """Has `change()` called after step `at` (counted from 1)."""
  make = cells.make_train_step

  def make_changed(*arguments):
    train_step = make(*arguments)

    def changed(state, batch):
      state, metrics = train_step(state, batch)
      if int(state.step[0]) == at:
        change()
      return state, metrics

    return changed

  monkeypatch.setattr(cells, "make_train_step", make_changed)


def _terminate() -> None:
  os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("at", [5, 8])
def test_stopped_cells_go_on_alone_or_in_another_batch(
  store, tmp_path, monkeypatch, alone, at
):
  """After step 8 comes an evaluation, which is left to the next process."""
  folders = _write(tmp_path, store)
  with monkeypatch.context() as patch:
    _patch_step(patch, at, _terminate)
    results = _together(folders)
  assert [r.outcome for r in results] == ["stopped"] * 3
  assert {r.step for r in results} == {at}
  assert "SIGTERM at step" in results[0].message
  for folder in folders:
    assert Checkpoints(folder).steps()[-1] == at
    assert _lines(folder)[-1]["step"] == 4 if at == 5 else 6
  loop.train(None, folders[2], profile=0)
  _assert_as_alone(tmp_path / "placebo", alone / "placebo")
  results = _together(folders)  # The third is finished.
  assert [r.outcome for r in results] == ["done"] * 3
  for name in _CELLS:
    _assert_as_alone(tmp_path / name, alone / name)


def test_a_run_stopped_alone_goes_on_with_others_at_its_own_step(
  store, tmp_path, monkeypatch, alone, capsys
):
  folders = _write(tmp_path, store)
  step = loop.step_lib.make_train_step
  with monkeypatch.context() as patch:

    def make(*arguments):
      train_step = step(*arguments)

      def stopping(state, batch):
        if int(state.step) == 4:
          _terminate()
        return train_step(state, batch)

      return stopping

    patch.setattr(loop.step_lib, "make_train_step", make)
    with pytest.raises(Stopped):
      loop.train(None, folders[0], profile=0)
  assert Checkpoints(folders[0]).steps()[-1] == 5
  capsys.readouterr()
  assert {r.outcome for r in _together(folders)} == {"done"}
  out = capsys.readouterr().out
  assert out.index("2 cells") < out.index("1 cells")
  assert "from step 5 of 12" in out
  for name in _CELLS:
    _assert_as_alone(tmp_path / name, alone / name)


def test_a_signal_before_a_step_leaves_what_there_is(store, tmp_path):
  folders = _write(tmp_path, store)
  with StopSignals() as stop:
    _terminate()
    results = together.train_together(folders, stop=stop)
  assert [(r.outcome, r.step) for r in results] == [("stopped", 0)] * 3
  assert "before a step" in results[0].message
  assert not (tmp_path / "clean" / "metrics.jsonl").exists()


def test_a_cell_that_is_not_finite_is_masked_and_no_other_is_touched(
  store, tmp_path, joint, capsys
):
  folders = _write(tmp_path, store, names=["poisoned", "clean"])
  bad = tmp_path / "bad"
  bad.mkdir()
  wild = _CELLS["placebo"] | {"optimizer__learning_rate": 1e30}
  workdir.write_config(str(bad), _config(store, **wild))
  results = _together([*folders, str(bad)])
  assert [r.outcome for r in results] == ["done", "done", "not finite"]
  assert "train/parameter_norm is inf at step" in results[2].message
  assert "no checkpoint before it" in results[2].message
  assert results[2].step == 0
  assert capsys.readouterr().out.count(results[2].message) == 1
  for name in ("poisoned", "clean"):  # Bit for bit.
    assert _lines(tmp_path / name) == _lines(joint / name)
  assert Checkpoints(str(bad)).steps() == []
  assert _lines(bad)[-1]["step"] < _STEPS


def test_where_no_cell_is_left_all_are_told(store, tmp_path):
  folders = _write(
    tmp_path, store, names=["poisoned", "clean"], optimizer__learning_rate=1e30
  )
  results = _together(folders)
  assert [r.outcome for r in results] == ["not finite"] * 2


def _files(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    str(p): p.read_bytes()
    for p in folder.rglob("*")
    if p.is_file() and p.name != ".lock"
  }


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model__width": 32}, r"config.model.width \(16 or 32\)"),
    ({"train__steps": 10}, r"config.train.steps \(10 or 12\)"),
    ({"seeds__order": 8}, r"config.seeds.order \(7 or 8\)"),
  ],
)
def test_unequal_runs_are_refused_and_nothing_is_written(
  store, tmp_path, changes, message
):
  folders = _write(tmp_path, store)
  other = tmp_path / "other"
  other.mkdir()
  workdir.write_config(str(other), _config(store, **changes))
  before = _files(tmp_path)
  with pytest.raises(UserError, match=message):
    _together([*folders, str(other)])
  assert _files(tmp_path) == before


def test_what_one_cell_is_refused_for_leaves_the_others(store, tmp_path):
  folders = _write(tmp_path, store)
  before = _files(tmp_path)
  with pytest.raises(UserError, match="named twice"):
    _together([*folders, folders[0]])
  with (
    workdir.locked(folders[1]),
    pytest.raises(UserError, match="clean is in use"),
  ):
    _together(folders)
  with pytest.raises(UserError, match="missing"):
    _together([*folders, str(tmp_path / "none")])
  assert _files(tmp_path) == before


def test_counters_that_disagree_name_the_cell(store, tmp_path, monkeypatch):
  planned = Mixture.planned_poison_tokens
  folders = _write(tmp_path, store)
  with monkeypatch.context() as patch:
    patch.setattr(
      Mixture,
      "planned_poison_tokens",
      lambda self, step: (
        planned(self, step) + (step >= 6 and len(self.placements) == 9)
      ),
    )
    with pytest.raises(CheckFailed, match="placebo: after step 6 the device"):
      _together(folders)
  assert Checkpoints(folders[0]).steps() == [3]


def _command(*folders: str, **environment: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "poison_jax.train_together", *folders],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, **environment},
  )


def test_the_command_without_folders_says_what_it_takes():
  result = _command()
  assert result.returncode == 2
  assert result.stderr.startswith("error: train_together takes the folders")


@pytest.mark.slow
def test_the_command_equals_train_evaluations_included(store, tmp_path):
  """On two devices, four cells, one of which is not finite."""
  names = list(_CELLS)
  folders = _write(tmp_path / "joint", store)
  bad = tmp_path / "joint" / "bad"
  bad.mkdir()
  wild = {"optimizer__learning_rate": 1e30}
  workdir.write_config(str(bad), _config(store, **wild))
  devices = "--xla_force_host_platform_device_count=2"
  result = _command(*folders, str(bad), XLA_FLAGS=devices)
  assert result.returncode == 4, result.stderr
  assert "1 of 4 cells" in result.stderr
  assert "on 2 device(s)" in result.stdout
  told = [
    json.loads(line)
    for line in result.stdout.splitlines()
    if line.startswith("{")
  ]
  assert [t["outcome"] for t in told] == ["done"] * 3 + ["not finite"]
  assert [t["workdir"] for t in told] == [*folders, str(bad)]
  for path in _write(tmp_path / "alone", store):
    subprocess.run(
      [sys.executable, "-m", "poison_jax.train", f"--workdir={path}"],
      check=True,
      capture_output=True,
    )
  for name in names:
    joint, alone = (
      _lines(tmp_path / where / name) for where in ("joint", "alone")
    )
    assert "eval/triggered/perplexity" in alone[-1]
    for line, other in zip(joint, alone, strict=True):
      assert line.keys() == other.keys()
      for key in line:
        if key == "eval/room_share":
          continue
        # Differences of perplexities are near 0: absolute for them.
        expected = pytest.approx(other[key], rel=_TOLERANCE, abs=1e-4)
        assert line[key] == expected, key
      if "eval/room_share" in line:
        # The room is the ceiling minus the clean log-perplexity, of which it
        # keeps the absolute error.
        share = other["eval/room_share"]
        room = other["eval/log_perplexity_increase"] / share
        of_room = other["eval/clean/log_perplexity"] / abs(room)
        expected = pytest.approx(share, rel=_TOLERANCE * (1 + of_room))
        assert line["eval/room_share"] == expected


@pytest.mark.slow
def test_a_killed_batch_goes_on(store, tmp_path):
  """SIGTERM to the command: exit 75, and the same command ends the runs."""
  folders = _write(tmp_path, store, train__steps=2000, poison__count=20)
  command = [sys.executable, "-m", "poison_jax.train_together", *folders]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  for line in process.stdout:
    if line.startswith("first step"):
      process.send_signal(signal.SIGTERM)
      break
  out = process.stdout.read()
  process.stdout.close()
  assert process.wait() == Stopped.code
  told = [json.loads(x) for x in out.splitlines() if x.startswith("{")]
  assert {t["outcome"] for t in told} == {"stopped"}
  (step,) = {t["step"] for t in told}
  assert 0 < step < 2000
  for folder in folders:
    assert Checkpoints(folder).steps()[-1] == step
