"""Cells that a dispatcher trains together: each ends as if it were alone."""

import dataclasses
import json
import pathlib
import signal
import time

import pytest
import stand_in
from small_study import make_plan

from poison_jax.errors import Stopped
from poison_jax.studies.grid import bookkeeper, dispatch, endings
from poison_jax.studies.grid import plan as plan_lib
from poison_jax.studies.grid.claims import Claims
from poison_jax.studies.grid.states import Kind
from poison_jax.training import workdir
from poison_jax.training.stop import StopSignals


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
  monkeypatch.setattr(dispatch, "_LOOKED_EVERY", 0.01)
  monkeypatch.setattr(dispatch, "_SHOWN_EVERY", 0.01)
  monkeypatch.setattr(dispatch, "_SOUGHT_EVERY", 0.05)
  monkeypatch.setattr(bookkeeper, "_IN_USE_WAITS", (0.05, 0.05, 0.05))


class _Counting(stand_in.StandIn):
  """A back end that remembers which cells it started together."""

  def __init__(self, slots):
    super().__init__(slots)
    self.batches = []

  def start(self, plan, cells, slot):
    self.batches.append([cell.settings["poisons"] for cell in cells])
    return super().start(plan, cells, slot)


def _plan(folder, **study):
  plan = make_plan(folder, **{"doses": (0, 2, 4), "seeds": (0,), **study})
  plan_lib.write(plan)
  return plan


def _run(plan, *, together, slots=1, stop=None, show=None, **choices):
  backend = _Counting(slots)
  ended = dispatch.run(
    plan,
    backend,
    logs=f"{plan.workdir}/logs",
    choices=dispatch.Choices(together=together, **choices),
    stop=stop or StopSignals(),
    show=show or (lambda *_: None),
  )
  return backend.batches, [state.kind for state in ended]


def _act(plan, number, *acts):
  stand_in.act(pathlib.Path(plan.workdir), plan.cells[number].hash, *acts)


def _endings(plan):
  return [endings.read(plan.workdir, cell.hash) for cell in plan.cells]


@pytest.mark.parametrize(
  ("together", "batches"),
  [
    (1, [[0], [2], [4]]),
    (2, [[0, 2], [4]]),
    (3, [[0, 2, 4]]),
    (9, [[0, 2, 4]]),
  ],
)
def test_so_many_cells_at_most_share_a_process(tmp_path, together, batches):
  plan = _plan(tmp_path / "s")
  assert _run(plan, together=together) == (batches, 3 * [Kind.DONE])
  assert Claims(plan.workdir).owners() == {}
  # Nothing is left to do.
  assert _run(plan, together=together) == ([], 3 * [Kind.DONE])


def test_cells_of_two_orders_of_the_rows_never_share_a_process(tmp_path):
  plan = _plan(tmp_path / "s", doses=(0, 2), seeds=(0, 1))
  keys = [plan_lib.batch_key(plan, cell) for cell in plan.cells]
  assert keys[0] == keys[1] != keys[2] == keys[3]
  assert _run(plan, together=9)[0] == [[0, 2], [0, 2]]


def test_each_cell_ends_as_it_says_itself(tmp_path):
  plan = _plan(tmp_path / "s")
  _act(plan, 1, "4")  # Not finite, beside two that are done.
  began = time.monotonic()
  assert _run(plan, together=3)[1] == [Kind.DONE, Kind.FAILED, Kind.DONE]
  ends = _endings(plan)
  assert [e.result for e in ends] == ["done", "failed", "done"]
  assert ends[1].message == "not finite here"
  # Its time is a share of the process's, the code is the process's.
  assert sum(end.seconds for end in ends) <= time.monotonic() - began
  assert all(len(e.code_versions) == 1 for e in ends if e.result == "done")
  assert _run(plan, together=3, retry=True)[0] == [[2]]


def test_a_batch_is_of_what_the_folders_hold(tmp_path):
  plan = _plan(tmp_path / "s")
  # Begun when the study said to save more often, as it may.
  cell = plan.cells[1]
  often = dataclasses.replace(cell.config.checkpoint, every=7)
  config = dataclasses.replace(cell.config, checkpoint=often)
  assert config != cell.config
  workdir.write_config(plan.path(cell), config)
  assert _run(plan, together=3) == ([[0, 4], [2]], 3 * [Kind.DONE])


@pytest.mark.parametrize(
  ("damage", "says"),
  [
    (lambda text: text.replace('"count": 2,', ""), "poison.count"),
    (lambda text: "{", "config.json is damaged"),
    (None, "not this cell's: restore the folder, or delete it"),
  ],
)
def test_a_damaged_folder_fails_alone_and_is_named(tmp_path, damage, says):
  plan = _plan(tmp_path / "s")
  path = plan.path(plan.cells[1])
  given = plan.cells[1 if damage else 0].config
  workdir.write_config(path, given)
  file = pathlib.Path(path, "config.json")
  if damage:
    file.write_text(damage(file.read_text()))
  batches, kinds = _run(plan, together=3)
  assert batches == [[0, 4]]
  assert kinds == [Kind.DONE, Kind.FAILED, Kind.DONE]
  message = _endings(plan)[1].message
  assert path in message and says in message
  # Mended, it runs on request.
  file.unlink()
  assert _run(plan, together=3, retry=True)[0] == [[2]]


def test_an_error_of_one_cell_is_not_the_others(tmp_path):
  plan = _plan(tmp_path / "s")
  _act(plan, 0, "3")
  batches, kinds = _run(plan, together=3)
  # The one that was named has failed; the two others go on, together.
  assert batches == [[0, 2, 4], [2, 4]]
  assert kinds == [Kind.FAILED, Kind.DONE, Kind.DONE]
  assert _endings(plan)[0].message.endswith(": it ends")


def test_a_cell_that_somebody_trains_holds_its_batch_up_once(tmp_path):
  plan = _plan(tmp_path / "s")
  path = plan.path(plan.cells[0])
  _act(plan, 0, f"2 --workdir={path} is in use by process 7: wait", "0")
  batches, kinds = _run(plan, together=3)
  assert kinds == 3 * [Kind.DONE]
  # The others don't wait for it, and it comes alone.
  assert batches[0] == [0, 2, 4] and sorted(batches[1:]) == [[0], [2, 4]]


def test_a_crash_that_names_no_cell_is_that_of_all(tmp_path):
  plan = _plan(tmp_path / "s")
  _act(plan, 0, "kill SIGKILL")
  assert _run(plan, together=3)[1] == 3 * [Kind.FAILED]
  assert {e.message for e in _endings(plan)} == {
    "killed by SIGKILL (out of memory?)"
  }


def test_a_signal_stops_all_of_a_batch_and_they_go_on_together(tmp_path):
  plan = _plan(tmp_path / "s")
  for number, act in enumerate(("75", "75", "wait")):
    _act(plan, number, act, "0")
  stop = StopSignals()

  def show(states, last):
    if states[1].step and not last:
      stop.received = signal.SIGTERM

  with pytest.raises(Stopped, match="0 of 3 cells done"):
    _run(plan, together=3, stop=stop, show=show)
  assert [e.result for e in _endings(plan)] == 3 * ["stopped"]
  assert _run(plan, together=3) == ([[0, 2, 4]], 3 * [Kind.DONE])


def test_cells_at_other_steps_train_apart(tmp_path):
  plan = _plan(tmp_path / "s")
  folder = pathlib.Path(plan.path(plan.cells[1]))
  folder.mkdir(parents=True)
  (folder / "metrics.jsonl").write_text(json.dumps({"step": 5}) + "\n")
  assert _run(plan, together=3)[0] == [[0, 4], [2]]


def test_a_batch_of_which_one_cell_was_taken_over_gives_the_others_back(
  tmp_path, monkeypatch
):
  plan = _plan(tmp_path / "s")
  _act(plan, 0, "wait", "0")
  other, lost = Claims(plan.workdir), []

  def renew(claims):
    if not lost and stand_in.events(pathlib.Path(plan.workdir)):
      # Another dispatcher found our claim on the second cell stale.
      name = f"{plan.cells[1].hash}.2"
      claims._folder.write(f"claims/{name}", other._content())
      other._held[plan.cells[1].hash] = 2
      lost.append(claims._held.pop(plan.cells[1].hash))
      return [plan.cells[1].hash]
    return []

  monkeypatch.setattr(Claims, "renew", renew)
  batches, kinds = _run(plan, together=3)
  assert batches == [[0, 2, 4], [0, 4]]
  assert kinds == [Kind.DONE, Kind.RUNNING, Kind.DONE]
  assert list(other.owners()) == [plan.cells[1].hash]


def test_checkpoints_go_once_a_cell_is_done_and_not_before(tmp_path):
  plan = _plan(tmp_path / "s")
  _act(plan, 1, "75 no step", "3 it ends")
  for cell in plan.cells:
    (pathlib.Path(plan.path(cell)) / "checkpoints" / "7").mkdir(parents=True)
  kinds = _run(plan, together=1, drop_checkpoints=True)[1]
  assert kinds == [Kind.DONE, Kind.FAILED, Kind.DONE]
  there = [
    (pathlib.Path(plan.path(cell)) / "checkpoints").exists()
    for cell in plan.cells
  ]
  assert there == [False, True, False]
  assert _run(plan, together=1)[0] == []  # Done cells don't begin again.


def test_checkpoints_of_cells_that_were_done_before_go_too(tmp_path):
  plan = _plan(tmp_path / "s")
  _run(plan, together=1)
  kept = pathlib.Path(plan.path(plan.cells[0])) / "checkpoints" / "7"
  kept.mkdir(parents=True)
  assert _run(plan, together=1, drop_checkpoints=True)[0] == []
  assert not kept.parent.exists()
