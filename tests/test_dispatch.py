"""Dispatchers: no cell twice, nothing lost, whatever ends a process."""

import collections
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
import stand_in
from fake_bucket import FakeBuckets
from small_study import make_plan, until

from poison_jax.data.folder import Folder
from poison_jax.errors import CheckFailed, Stopped, UserError
from poison_jax.studies.grid import (
  attempts,
  bookkeeper,
  dispatch,
  endings,
  states,
  versions,
)
from poison_jax.studies.grid import plan as plan_lib
from poison_jax.studies.grid.claims import Claims
from poison_jax.studies.grid.states import Kind
from poison_jax.training import lock, workdir
from poison_jax.training.stop import StopSignals

_HERE = pathlib.Path(__file__).parent


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
  monkeypatch.setattr(dispatch, "_LOOKED_EVERY", 0.01)
  monkeypatch.setattr(dispatch, "_SOUGHT_EVERY", 0.05)
  monkeypatch.setattr(bookkeeper, "_IN_USE_WAITS", (0.05, 0.05, 0.05))


def _plan(folder, **study):
  plan = make_plan(folder, **study)
  plan_lib.write(plan)
  return plan


def _run(plan, *, slots=1, stop=None, show=None, **choices):
  return dispatch.run(
    plan,
    stand_in.StandIn(slots),
    logs=os.path.join(plan.workdir, "logs"),
    choices=dispatch.Choices(**choices),
    stop=stop or StopSignals(),
    show=show or (lambda *_: None),
  )


def _act(plan, number, *acts):
  stand_in.act(pathlib.Path(plan.workdir), plan.cells[number].hash, *acts)


def _begun(plan):
  """Returns how often each cell was begun, in the order of the grid."""
  found = stand_in.events(pathlib.Path(plan.workdir))
  count = collections.Counter(c for c, event in found if event == "begins")
  return [count[cell.hash] for cell in plan.cells]


def _results(plan):
  found = [endings.read(plan.workdir, cell.hash) for cell in plan.cells]
  return [None if ending is None else ending.result for ending in found]


def _ending(plan, number):
  return endings.read(plan.workdir, plan.cells[number].hash)


class _Dispatchers:
  """Dispatchers in processes of their own, which begin together."""

  def __init__(self, plan, count, *, slots=2, folder=None):
    self.folder = folder or pathlib.Path(plan.workdir)
    (self.folder / "go").unlink(missing_ok=True)
    ready = len(list(self.folder.glob("ready-*"))) + count
    self.processes = [
      subprocess.Popen(
        [
          *(sys.executable, str(_HERE / "stand_in.py"), "dispatch"),
          *(str(self.folder), str(slots), plan.workdir),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
      for _ in range(count)
    ]
    until(lambda: len(list(self.folder.glob("ready-*"))) == ready)
    (self.folder / "go").touch()

  def wait(self):
    ends = [(p, p.communicate(timeout=300)[0]) for p in self.processes]
    return [(p.returncode, said) for p, said in ends]


# One dispatcher.


def test_every_cell_runs_once_and_again_none(tmp_path):
  plan = _plan(tmp_path / "s")
  shown = []
  ended = _run(plan, slots=2, show=lambda s, last: shown.append(last))
  assert [state.kind for state in ended] == 4 * [Kind.DONE]
  assert _begun(plan) == [1, 1, 1, 1] and shown[-1] is True
  _run(plan, retry=True)
  assert _begun(plan) == [1, 1, 1, 1]
  assert Claims(plan.workdir).owners() == {}
  # A cell that is added runs, the others don't.
  more = _plan(tmp_path / "s", doses=(0, 2, 4))
  _run(more)
  assert _begun(more) == [1, 1, 1, 1, 1, 1]


def test_a_cells_folder_has_its_config_and_nothing_of_the_study(tmp_path):
  plan = _plan(tmp_path / "s")
  _run(plan)
  for cell in plan.cells:
    folder = Folder(plan.path(cell))
    assert folder.names() == ["config.json", "metrics.jsonl"]
    assert workdir.load_config(folder.path) == cell.config


def test_a_failed_cell_tells_why_and_runs_again_on_request(tmp_path):
  plan = _plan(tmp_path / "s")
  _act(plan, 0, "3 a check failed", "crash ValueError: oops")
  _act(plan, 1, "3 planned and counted differ", "0")
  _act(plan, 2, "kill SIGKILL", "4 the loss is nan", "0")
  ended = _run(plan)
  kinds = [state.kind.value for state in ended]
  assert kinds == ["failed", "failed", "failed", "done"]
  assert _ending(plan, 1).message == "planned and counted differ"
  assert _ending(plan, 1).code == 3
  assert _ending(plan, 2).message == "killed by SIGKILL (out of memory?)"
  _run(plan)
  assert _begun(plan) == [1, 1, 1, 1]
  ended = _run(plan, retry=True)
  assert _begun(plan) == [2, 2, 2, 1]  # Each once.
  assert _results(plan) == ["failed", "done", "failed", "done"]
  # What it said last, and not in an earlier attempt.
  assert _ending(plan, 0).message == "ValueError: oops"
  assert (
    _ending(plan, 2).message == "the loss is nan"
  )  # And not the log's first.


def test_a_cell_that_was_stopped_and_saved_goes_on(tmp_path):
  plan = _plan(tmp_path / "s", seeds=(0,))
  _act(plan, 0, *6 * ["75"], "0")
  _act(plan, 1, "75 no step", "75 no step", "75", "75 no step", "0")
  assert [state.kind for state in _run(plan)] == 2 * [Kind.DONE]
  assert _begun(plan) == [7, 5]


def test_a_cell_that_gets_no_step_further_thrice_has_failed(tmp_path):
  plan = _plan(tmp_path / "s", seeds=(0,))
  _act(plan, 0, "75", "75 no step")
  _run(plan)
  assert _begun(plan) == [4, 1]
  assert _ending(plan, 0).message == "stopped 3 times without a step: no step"


def test_sigterm_while_a_process_starts_is_no_failure(tmp_path, monkeypatch):
  """Python dies of it as long as nothing listens."""
  plan = _plan(tmp_path / "s", seeds=(0,))
  real = stand_in.StandIn.start

  def dies(self, plan, cell, slot):
    monkeypatch.setattr(stand_in.StandIn, "start", real)
    start = real(self, plan, cell, slot)
    return dataclasses.replace(start, command=("sh", "-c", "kill -TERM $$"))

  monkeypatch.setattr(stand_in.StandIn, "start", dies)
  assert [state.kind for state in _run(plan)] == 2 * [Kind.DONE]
  assert stand_in.StandIn.start is real


def test_cells_that_all_fail_alike_are_not_all_tried(tmp_path):
  plan = _plan(tmp_path / "s", seeds=(0, 1, 2))
  for number in range(6):
    _act(plan, number, "2 no such module")
  with pytest.raises(CheckFailed, match="3 cells in a row .*: no such module"):
    _run(plan)
  assert _begun(plan) == [1, 1, 1, 0, 0, 0]


def test_cells_that_fail_for_several_reasons_or_late_are_all_tried(tmp_path):
  plan = _plan(tmp_path / "s", seeds=(0, 1, 2))
  for number in (0, 1, 3, 4):
    _act(plan, number, "2 no such module")
  _act(plan, 2, "2 another reason")
  _act(plan, 5, "75", "2 no such module")
  _run(plan)
  assert _begun(plan) == [1, 1, 1, 1, 1, 2]


def test_a_cell_that_somebody_trains_is_waited_for(tmp_path):
  in_use = "2 --workdir=x is in use by process 7: wait for it or stop it"
  plan = _plan(tmp_path / "s")
  _act(plan, 0, in_use, in_use, "0")
  _act(plan, 1, in_use)
  ended = _run(plan)
  assert _begun(plan) == [3, 4, 1, 1]
  kinds = [state.kind.value for state in ended]
  assert kinds == ["done", "missing", "done", "done"]  # And left to them.
  assert "in use by process 7" in _ending(plan, 1).message
  assert _ending(plan, 1).code_versions == ()
  # The others weren't kept waiting.
  order = [c for c, e in stand_in.events(tmp_path / "s") if e == "begins"]
  assert order[:4] == [cell.hash for cell in plan.cells]


def test_between_two_tries_at_such_a_cell_there_is_a_wait(
  tmp_path, monkeypatch
):
  plan = _plan(tmp_path / "s", seeds=(0,))
  _act(plan, 0, "2 --workdir=x is in use by process 7: wait for it")
  monkeypatch.setattr(bookkeeper, "_IN_USE_WAITS", (3600.0,))
  monkeypatch.setattr(dispatch, "_SHOWN_EVERY", 0.01)
  looks = []

  def show(found, _):
    looks.append(found[1].kind)
    if looks.count(Kind.DONE) == 50:
      os.kill(os.getpid(), signal.SIGTERM)

  with StopSignals() as stop, pytest.raises(Stopped, match="1 of 2 cells done"):
    _run(plan, stop=stop, show=show)
  assert _begun(plan) == [1, 1]


def test_what_training_says_of_a_folder_in_use_is_understood(tmp_path):
  folder = Folder(str(tmp_path / "a"))
  with (
    lock.locked(folder),
    pytest.raises(UserError, match=" is in use by process "),
    lock.locked(folder),
  ):
    pass


def test_a_signal_has_every_process_save_and_gives_all_back(tmp_path):
  plan = _plan(tmp_path / "s")
  for number in (0, 1):
    _act(plan, number, "75 no step", "75 no step", "wait", "0")
  study = tmp_path / "s"

  def show(*_):
    begun = _begun(plan)
    if begun == [3, 3, 0, 0] and stop.received is None:
      os.kill(os.getpid(), signal.SIGINT)

  with (
    StopSignals() as stop,
    pytest.MonkeyPatch.context() as patch,
    pytest.raises(
      Stopped, match="stopped by SIGINT, 0 of 4 .*study run --workdir"
    ),
  ):
    patch.setattr(dispatch, "_SHOWN_EVERY", 0.01)
    _run(plan, slots=2, stop=stop, show=show)
  assert _results(plan) == ["stopped", "stopped", None, None]
  assert Claims(plan.workdir).owners() == {}
  assert stand_in.events(study)[-1][1] == "ends 75"
  _run(plan, slots=2)
  assert _results(plan) == 4 * ["done"] and _begun(plan) == [4, 4, 1, 1]


# Several.


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_two_dispatchers_never_run_one_cell_twice(tmp_path, place, monkeypatch):
  folder = tmp_path / "s"
  folder.mkdir()
  with FakeBuckets() as bucket:
    for name, value in bucket.environment.items():
      monkeypatch.setenv(name, value)
    where = folder if place == "disk" else "gs://bucket/s"
    many = {"doses": range(12), "seeds": range(4)}
    plan = make_plan(where, **many)
    plan_lib.write(plan)
    ends = _Dispatchers(plan, 2, folder=folder).wait()
    assert [code for code, _ in ends] == [0, 0], ends
    assert _results(plan) == 48 * ["done"]
  assert _begun(make_plan(folder, **many)) == 48 * [1]


def test_a_cell_that_another_ran_to_its_end_meanwhile_does_not_run(
  tmp_path, monkeypatch
):
  plan = _plan(tmp_path / "s")
  take = Claims.take

  def late(self, cell):
    # Since this dispatcher looked, another one has run all cells.
    monkeypatch.setattr(Claims, "take", take)
    assert all(state.kind is Kind.DONE for state in _run(plan))
    return self.take(cell)

  monkeypatch.setattr(Claims, "take", late)
  assert all(state.kind is Kind.DONE for state in _run(plan))
  assert _begun(plan) == [1, 1, 1, 1]
  assert Claims(plan.workdir).owners() == {}


def test_cells_of_a_dispatcher_that_lives_are_left_to_it(tmp_path):
  plan = _plan(tmp_path / "s")
  other = Claims(plan.workdir)
  assert other.take(plan.cells[1].hash)
  ended = _run(plan)
  kinds = [state.kind.value for state in ended]
  assert kinds == ["done", "running", "done", "done"]
  assert str(os.getpid()) in str(ended[1].owner)


def test_a_cell_that_was_taken_over_is_ended_and_not_recorded(
  tmp_path, monkeypatch
):
  plan = _plan(tmp_path / "s", seeds=(0,))
  _act(plan, 0, "wait")

  def show(*_):
    if _begun(plan) == [1, 0] and not taken:
      Folder(plan.workdir).write(f"claims/{plan.cells[0].hash}.2", b"other's")
      taken.append(1)

  taken = []
  monkeypatch.setattr(dispatch, "_SHOWN_EVERY", 0.01)
  monkeypatch.setattr("poison_jax.studies.grid.claims.RENEWED_EVERY", 0.05)
  # Else the damaged claim, nobody's, would be taken again.
  waits = dispatch._Dispatcher._waits
  monkeypatch.setattr(
    dispatch._Dispatcher, "_waits", lambda d, s: waits(d, s) and not taken
  )
  _run(plan, show=show)
  assert taken and _begun(plan) == [1, 0]
  assert _results(plan) == [None, None]
  (event,) = stand_in.events(tmp_path / "s")
  assert event[1] == "begins"  # It was killed, so that it writes no more.


def test_an_end_that_comes_after_the_take_over_is_the_other_ones_to_record(
  tmp_path, monkeypatch
):
  plan = _plan(tmp_path / "s", seeds=(0,))
  real, other = stand_in.StandIn.start, Claims(plan.workdir)

  def start(self, plan, cells, slot):
    # As if we had slept here for two minutes, and not noticed yet.
    Folder(plan.workdir).write(f"claims/{cells[0].hash}.2", other._content())
    return real(self, plan, cells, slot)

  monkeypatch.setattr(stand_in.StandIn, "start", start)
  monkeypatch.setattr("poison_jax.studies.grid.claims.RENEWED_EVERY", 1e12)
  ended = _run(plan)
  assert _begun(plan) == [1, 1] and _results(plan) == [None, None]
  assert [state.kind for state in ended] == 2 * [Kind.RUNNING]


def test_the_next_dispatcher_goes_on_where_one_was_killed(tmp_path):
  plan = _plan(tmp_path / "s")
  for number in range(4):
    _act(plan, number, "wait", "0")
  first = _Dispatchers(plan, 1)
  until(lambda: _begun(plan) == [1, 1, 0, 0])
  first.processes[0].kill()
  first.wait()
  # Its processes have saved.
  stopped = {(cell.hash, "ends 75") for cell in plan.cells[:2]}
  until(lambda: stopped <= set(stand_in.events(tmp_path / "s")))
  found = states.read_states(plan, Claims(plan.workdir))
  kinds = [state.kind.value for state in found]
  assert kinds == ["preempted", "preempted", "missing", "missing"]
  _act(plan, 2, "0")
  _act(plan, 3, "0")
  ((code, said),) = _Dispatchers(plan, 1).wait()
  assert code == 0, said
  assert _results(plan) == 4 * ["done"] and _begun(plan) == [2, 2, 1, 1]


def test_a_dispatcher_that_is_stopped_leaves_its_cells_to_the_other(tmp_path):
  plan = _plan(tmp_path / "s")
  _act(plan, 0, "wait", "0")
  _act(plan, 1, "wait", "0")
  first = _Dispatchers(plan, 1)
  until(lambda: _begun(plan)[:2] == [1, 1])
  first.processes[0].send_signal(signal.SIGTERM)
  ((code, said),) = first.wait()
  assert code == 75 and "stopped by SIGTERM, 0 of 4" in said
  ((code, said),) = _Dispatchers(plan, 1).wait()
  assert code == 0, said
  assert _begun(plan) == [2, 2, 1, 1]


# Code.


class _Version:
  def __init__(self, value):
    self.value = value

  def __call__(self):
    return self.value

  def cache_clear(self):
    pass


def _set_version(monkeypatch, version):
  monkeypatch.setattr(versions, "code_version", version)
  monkeypatch.setattr(attempts, "code_version", version)


def _found(plan):
  return states.read_states(plan, Claims(plan.workdir))


def test_cells_of_other_code_are_refused_unless_asked_for(
  tmp_path, monkeypatch
):
  plan = _plan(tmp_path / "s", seeds=(0,))
  _set_version(monkeypatch, _Version("old+commit1"))
  _run(plan)
  assert _ending(plan, 0).code_versions == ("old+commit1",)
  _set_version(monkeypatch, _Version("old+commit2"))
  versions.check_code(plan, found=_found(plan), mix=False)
  _set_version(monkeypatch, _Version("new+commit2"))
  with pytest.raises(UserError, match=r"old\+commit1 \(2 cells\), this is new"):
    versions.check_code(plan, found=_found(plan), mix=False)
  versions.check_code(plan, found=_found(plan), mix=True)
  with pytest.raises(UserError, match="--mix_code"):
    versions.check_code(plan, found=_found(plan), mix=False)


def test_each_version_of_a_cells_code_is_kept(tmp_path, monkeypatch):
  plan = _plan(tmp_path / "s", doses=(0,), seeds=(0,))
  _act(plan, 0, "75", "4 not finite", "0")
  for version in ("first", "second"):
    _set_version(monkeypatch, _Version(version))
    _run(plan, retry=True, mix=True)
  assert _ending(plan, 0).code_versions == ("first", "second")
  assert _results(plan) == ["done"]


def test_code_that_only_failed_to_begin_is_no_other_code(tmp_path, monkeypatch):
  plan = _plan(tmp_path / "s", doses=(0,), seeds=(0,))
  _act(plan, 0, "1 a mistake of ours", "0")
  _set_version(monkeypatch, _Version("broken"))
  _run(plan)
  _set_version(monkeypatch, _Version("mended"))
  versions.check_code(plan, found=_found(plan), mix=False)
  _run(plan, retry=True)
  assert _ending(plan, 0).code_versions == ("mended",)


def test_the_code_of_a_cell_that_was_killed_counts(tmp_path, monkeypatch):
  plan = _plan(tmp_path / "s", doses=(0,), seeds=(0,))
  plan_lib.write_config(plan, plan.cells[0])
  folder = pathlib.Path(plan.path(plan.cells[0]))
  (folder / "metrics.jsonl").write_text('{"step": 3}\n')
  versions.check_code(plan, found=_found(plan), mix=False)
  config = json.loads((folder / "config.json").read_text())
  config["code_version"] = "older"
  (folder / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match="made by code older"):
    versions.check_code(plan, found=_found(plan), mix=False)


@pytest.mark.parametrize("mix", [False, True])
def test_code_that_is_edited_meanwhile_begins_no_more_cells(
  tmp_path, monkeypatch, mix
):
  plan = _plan(tmp_path / "s")
  version = _Version("old")
  _set_version(monkeypatch, version)
  _act(plan, 1, "wait")

  def show(*_):
    if _begun(plan)[:2] == [1, 1] and version.value == "old":
      version.value = "new"
      _act(plan, 1, "0")
      _signal_stand_ins(plan, 1)

  monkeypatch.setattr(dispatch, "_SHOWN_EVERY", 0.01)
  if mix:
    _run(plan, mix=True, show=show)
    assert _results(plan) == 4 * ["done"]
    return
  with pytest.raises(UserError, match="the code has changed from old to new"):
    _run(plan, show=show)
  assert _begun(plan) == [1, 1, 0, 0]
  assert _results(plan) == ["done", "stopped", None, None]


def _signal_stand_ins(plan, number):
  """Sends SIGTERM to what trains a cell."""
  name = plan.cells[number].hash
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      words = (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
      continue
    if name.encode() in words and str(plan.workdir).encode() in words:
      os.kill(int(folder.name), signal.SIGTERM)


# Damage.


def test_damaged_metrics_hold_nothing_up(tmp_path):
  plan = _plan(tmp_path / "s", seeds=(0,))
  folder = pathlib.Path(plan.path(plan.cells[0]))
  folder.mkdir(parents=True)
  (folder / "metrics.jsonl").write_bytes(
    b'{"step": 1, "eval/log_perplexity_increase": NaN}\n\xff\n[]\n3\n'
    b'{"step": "x"}\n{"step": 1e999}\n'
    b'{"step": 2, "eval/log_perplexity_increase": 1.5, "time/seconds": "x"}\n'
    b'{"step": 3, "eval/log_perp'
  )
  state = _found(plan)[0]
  assert (state.step, state.increases, state.kind) == (
    2,
    (1.5,),
    Kind.PREEMPTED,
  )
  assert [state.kind for state in _run(plan)] == 2 * [Kind.DONE]


def test_a_done_cell_whose_folder_is_gone_has_failed_and_can_be_redone(
  tmp_path,
):
  plan = _plan(tmp_path / "s", seeds=(0,))
  _run(plan)
  shutil.rmtree(plan.path(plan.cells[1]))
  ended = _run(plan)
  assert [state.kind for state in ended] == [Kind.DONE, Kind.FAILED]
  folder = plan.cells[1].folder
  assert ended[1].why == (
    f"it was done, and {folder}/metrics.jsonl holds no step: restore it, or "
    f"delete {folder} and give run --retry"
  )
  assert _begun(plan) == [1, 1]
  assert [s.kind for s in _run(plan, retry=True)] == 2 * [Kind.DONE]
  assert _begun(plan) == [1, 2]
  # One that is killed meanwhile, with its dispatcher, isn't taken for done.
  shutil.rmtree(plan.path(plan.cells[1]))
  found, stop = [], StopSignals()
  _act(plan, 1, "0", "0", "wait")

  def show(shown, last):
    if shown[1].kind is Kind.RUNNING:
      found.append(_results(plan)[1])
      stop.received = signal.SIGTERM

  with pytest.raises(Stopped):
    _run(plan, retry=True, show=show, stop=stop)
  assert set(found) == {None}


def test_a_damaged_ending_is_one_line_before_anything_runs(tmp_path):
  plan = _plan(tmp_path / "s", seeds=(0,))
  Folder(plan.workdir).write(f"endings/{plan.cells[1].hash}.json", b"{")
  with pytest.raises(UserError, match=r"endings/.*is damaged .*: delete it"):
    _found(plan)
