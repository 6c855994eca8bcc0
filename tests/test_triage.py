"""Cells that stop early: the decided ones, never those that are needed."""

import pathlib

import pytest
import stand_in
from small_study import make_plan

from poison_jax.errors import UserError
from poison_jax.studies.grid import dispatch, endings, states, triage
from poison_jax.studies.grid import plan as plan_lib
from poison_jax.studies.grid.endings import Ending
from poison_jax.studies.grid.states import Kind
from poison_jax.studies.grid.study import Triage
from poison_jax.studies.statistics.sequential import Decision, Rule
from poison_jax.training.stop import StopSignals

_RULE = Rule(
  success_after=0.5,
  success_above=5.0,
  failure_after=0.5,
  failure_poisons=0.9,
  failure_below=1.0,
  consecutive=2,
)
_RISEN, _FLAT = (8.0, 9.0), (0.0, 0.1)


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
  monkeypatch.setattr(dispatch, "_LOOKED_EVERY", 0.01)
  monkeypatch.setattr(dispatch, "_SHOWN_EVERY", 0.01)
  monkeypatch.setattr(dispatch, "_SOUGHT_EVERY", 0.05)


def _plan(folder, *, rule=_RULE, spared=(), doses=(0, 2, 4, 8), **study):
  plan = make_plan(
    folder, triage=Triage(rule, spared), doses=doses, seeds=(0,), **study
  )
  plan_lib.write(plan)
  return plan


def _evaluate(plan, number, nats, *, success=None):
  """Adds evaluations to a cell; with `success` it is done, and ended so."""
  cell = plan.cells[number]
  folder = pathlib.Path(plan.path(cell))
  stand_in.evaluate(folder, *nats, success=bool(success))
  if success is not None:
    _end(plan, number, "done")


def _end(plan, number, result):
  end = Ending(result, 0, "", ("code",), 1.0, 1.0, "here")
  endings.write(plan.workdir, plan.cells[number].hash, end)


def _decisions(plan):
  found = states.read_several(plan, plan.cells, {})
  return [
    triage.decision(plan.triage, state, found).name.removeprefix("DECIDED_")
    for state in found
  ]


def _run(plan, *, together=1, show=lambda *_: None):
  ended = dispatch.run(
    plan,
    stand_in.StandIn(1),
    logs=f"{plan.workdir}/logs",
    choices=dispatch.Choices(together=together),
    stop=StopSignals(),
    show=show,
  )
  return [state.kind for state in ended]


def _begun(plan):
  events = stand_in.events(pathlib.Path(plan.workdir))
  begun = [cell for cell, event in events if event == "begins"]
  return [begun.count(cell.hash) for cell in plan.cells]


def test_a_success_stops_only_above_a_dose_that_has_succeeded(tmp_path):
  plan = _plan(tmp_path / "s")
  for number in range(4):
    _evaluate(plan, number, _RISEN)
  # Each may be the lowest that succeeds.
  assert _decisions(plan) == 4 * ["CONTINUE"]
  _evaluate(plan, 2, (), success=True)  # 4 documents, at its end.
  stand_in.evaluate(pathlib.Path(plan.path(plan.cells[2])), 9.0, success=True)
  assert _decisions(plan) == ["CONTINUE", "CONTINUE", "CONTINUE", "SUCCESS"]


def test_the_next_dose_decides_and_not_one_beyond_it(tmp_path):
  plan = _plan(tmp_path / "s", doses=(2, 4, 8))
  _evaluate(plan, 0, _RISEN, success=True)
  for number in (1, 2):
    _evaluate(plan, number, _RISEN)
  # 4 may fail yet: then N50 lies between 4 and 8.
  assert _decisions(plan)[1:] == ["SUCCESS", "CONTINUE"]
  _end(plan, 1, "triaged")
  assert _decisions(plan)[2] == "SUCCESS"
  _end(plan, 1, "done")  # And it failed.
  assert _decisions(plan)[2] == "CONTINUE"


def test_a_failure_stops_only_below_a_dose_that_has_failed(tmp_path):
  plan = _plan(tmp_path / "s")
  for number in (0, 1, 3):
    _evaluate(plan, number, _FLAT)
  _evaluate(plan, 2, _FLAT, success=False)
  # The clean run is needed, whatever it shows.
  assert _decisions(plan) == ["CONTINUE", "FAILURE", "CONTINUE", "CONTINUE"]


def test_a_run_without_poison_that_succeeds_decides_nothing(tmp_path):
  plan = _plan(tmp_path / "s", doses=(0, 2))
  _evaluate(plan, 0, _RISEN, success=True)
  _evaluate(plan, 1, _RISEN)
  assert _decisions(plan)[1] == "CONTINUE"


def test_runs_of_another_seed_decide_nothing(tmp_path):
  plan = make_plan(
    tmp_path / "s", triage=Triage(_RULE), doses=(2, 4), seeds=(0, 1)
  )
  plan_lib.write(plan)
  _evaluate(plan, 0, _RISEN, success=True)
  for number in (1, 3):
    _evaluate(plan, number, _RISEN)
  assert _decisions(plan)[1] == "SUCCESS"
  assert _decisions(plan)[3] == "CONTINUE"


def test_spared_cells_go_on(tmp_path):
  plan = _plan(tmp_path / "s", spared=({"poisons": 8},))
  _evaluate(plan, 1, _RISEN, success=True)
  for number in (2, 3):
    _evaluate(plan, number, _RISEN)
  assert _decisions(plan)[2:] == ["SUCCESS", "CONTINUE"]


def test_without_triage_every_cell_goes_on(tmp_path):
  plan = _plan(tmp_path / "s")
  _evaluate(plan, 1, _RISEN, success=True)
  _evaluate(plan, 3, _RISEN)
  (state,) = states.read_several(plan, plan.cells[3:], {})
  assert triage.decision(None, state, [state]) is Decision.CONTINUE


def test_a_running_cell_is_stopped_and_stays_so(tmp_path):
  plan = _plan(tmp_path / "s", doses=(2, 4))
  _evaluate(plan, 0, _RISEN, success=True)
  stand_in.act(pathlib.Path(plan.workdir), plan.cells[1].hash, "rise 8 9", "0")
  assert _run(plan) == [Kind.DONE, Kind.TRIAGED]
  end = endings.read(plan.workdir, plan.cells[1].hash)
  assert (end.result, end.code) == ("triaged", 75)
  assert end.message == "success decided at step 10 of 12, +9.00 nats"
  assert len(end.code_versions) == 1 and end.seconds > 0
  # It never goes on.
  assert _run(plan) == [Kind.DONE, Kind.TRIAGED]
  assert _begun(plan) == [0, 1]


def test_cells_together_stop_once_all_are_decided(tmp_path):
  plan = _plan(tmp_path / "s", doses=(2, 4, 8))
  folder = pathlib.Path(plan.workdir)
  _evaluate(plan, 0, _RISEN, success=True)
  # 8 documents are decided at once, 4 after a while: both stop then.
  stand_in.act(folder, plan.cells[1].hash, "75", "0")
  stand_in.act(folder, plan.cells[2].hash, "rise 8 9", "0")
  shown = []

  def show(found, last):
    shown.append(found[2].increases)
    if len(shown) == 20:  # Only the one was decided all the while.
      assert not last and found[2].increases == (8.0, 9.0)
      assert found[2].kind is Kind.RUNNING
      _evaluate(plan, 1, _RISEN)

  assert _run(plan, together=2, show=show) == [
    Kind.DONE,
    Kind.TRIAGED,
    Kind.TRIAGED,
  ]
  assert len(shown) > 20 and _begun(plan) == [0, 1, 1]


def test_a_cell_that_waits_and_is_decided_does_not_begin(tmp_path):
  plan = _plan(tmp_path / "s", doses=(2, 4))
  _evaluate(plan, 0, _RISEN, success=True)
  _evaluate(plan, 1, _RISEN)
  assert _run(plan) == [Kind.DONE, Kind.TRIAGED]
  assert _begun(plan) == [0, 0]


def test_a_rule_is_stated_before_the_runs_and_stays(tmp_path):
  plan = _plan(tmp_path / "s", spared=({"poisons": 8},))
  assert plan_lib.read(plan.workdir) == plan
  for other in ({"rule": _RULE}, {"rule": _RULE, "spared": ({"seed": 0},)}):
    with pytest.raises(UserError, match="triage was stated as .*before its"):
      plan_lib.write(
        make_plan(
          plan.workdir,
          triage=Triage(**other),
          doses=(0, 2, 4, 8),
          seeds=(0,),
        )
      )


def test_a_spared_setting_that_no_cell_has_is_a_slip(tmp_path):
  with pytest.raises(UserError, match="spares 'poisons=9', which matches no"):
    _plan(tmp_path / "s", spared=({"poisons": 9},))
  assert not (tmp_path / "s").exists()


def test_the_default_study_states_none_and_older_ones_are_read(tmp_path):
  plan = make_plan(tmp_path / "s")
  plan_lib.write(plan)
  file = tmp_path / "s" / "study.json"
  file.write_text(file.read_text().replace(' "triage": null,\n', ""))
  assert "triage" not in file.read_text()
  assert plan_lib.read(plan.workdir).triage is None
