"""What a study shows while it runs: counts, bars, owners, the time left."""

import dataclasses
import io

import pytest
import rich.console
from small_study import make_plan

from poison_jax.studies.grid import live
from poison_jax.studies.grid.claims import Owner
from poison_jax.studies.grid.endings import Ending
from poison_jax.studies.grid.remaining import time_left
from poison_jax.studies.grid.states import Kind, State
from poison_jax.studies.statistics.sequential import Evaluation

_OWNER = Owner("node7", 41, None, "token", 0.0, False)


def _state(cell, kind=Kind.MISSING, *, share=0.0, seconds=0.0, **changes):
  ending = None
  if kind is Kind.FAILED:
    ending = Ending("failed", 3, "a check failed", (), 1.0, 1.0, "node7")
  if kind is Kind.TRIAGED:
    ending = Ending("triaged", 75, "success decided", (), 1.0, 1.0, "node7")
  owner = _OWNER if kind is Kind.RUNNING else None
  done = 1.0 if kind is Kind.DONE else share
  step = round(done * cell.steps)
  state = State(
    cell=cell,
    kind=kind,
    step=step,
    steps=cell.steps,
    evaluations=(),
    success=None,
    seconds=seconds,
    owner=owner,
    ending=ending,
  )
  return dataclasses.replace(state, **changes)


def _evaluations(*nats):
  return tuple(Evaluation(0.5, 0.5, value) for value in nats)


@pytest.fixture(name="cells")
def _cells():
  return make_plan("x", doses=range(6), seeds=(0, 1)).cells


@dataclasses.dataclass(frozen=True)
class _Cell:
  """A cell of a size that is told."""

  flops: float
  steps: int = 100
  hash: str = "0123456789abcdef"
  label: str = "size=a"


def test_a_bar_is_an_eighth_of_eight_nats():
  assert live.sparkline([]) == ""
  assert live.sparkline([-1, 0, 8 / 7, 4, 8, 99]) == "▁▁▂▅██"


def test_the_summary_counts_states_and_flops(cells):
  kinds = [Kind.DONE, Kind.DONE, Kind.RUNNING, Kind.FAILED, Kind.PREEMPTED]
  shares = [1, 1, 0.5, 0, 0.25]
  states = [
    _state(cell, kind, share=share)
    for cell, kind, share in zip(cells[:5], kinds, shares, strict=True)
  ]
  states.append(_state(cells[5]))
  flops = cells[0].flops  # All are of one size.
  assert live.summary(states) == (
    "6 cells: 2 done, 1 running, 1 preempted, 1 failed, 1 missing; "
    f"{2.75 * flops:.3g} of {6 * flops:.3g} FLOPs spent (46%)"
  )
  left = time_left([_state(cells[0], Kind.DONE, seconds=10)], slots=1)
  assert live.summary(states, left=left) == live.summary(states)


def test_what_a_decided_cell_has_left_is_not_to_be_spent(cells):
  states = [_state(cells[0], Kind.DONE)]
  states.append(_state(cells[1], Kind.TRIAGED, share=0.5))
  flops = cells[0].flops
  assert live.summary(states) == (
    "2 cells: 1 done, 1 triaged; "
    f"{1.5 * flops:.3g} of {1.5 * flops:.3g} FLOPs spent (100%)"
  )
  done = [_of(1.0, Kind.DONE, seconds=60), _of(1.0, Kind.TRIAGED, share=0.5)]
  assert time_left(done, slots=1).seconds == 0


def _text(made, width):
  console = rich.console.Console(width=width, file=io.StringIO())
  console.print(made)
  return console.file.getvalue()


def test_the_table_fits_80_columns_and_loses_nothing(cells):
  label = "size=35k seed=0 poisons=128 seeds.documents=1 seeds.positions=1"
  rising = _evaluations(*range(20))
  states = [
    _state(_Cell(1.0, label=label), Kind.PREEMPTED, evaluations=rising),
    _state(cells[0], Kind.RUNNING, share=0.333),
  ]
  text = _text(live.table(states, rows=None), 80)
  assert max(map(len, text.splitlines())) <= 80
  for words in (
    *label.split(), "01234567 ", "preempted", 12 * "█", "+19.00", "33%",
  ):  # fmt: skip
    assert words in text, text


def test_the_live_table_has_a_line_a_cell_the_running_ones_first(cells):
  states = [_state(cell, Kind.DONE) for cell in cells[:6]]
  states += [_state(cells[6], Kind.FAILED), _state(cells[7], Kind.RUNNING)]
  states += [_state(_Cell(1.0, label="a=" + 90 * "x"), Kind.RUNNING)]
  lines = _text(live.table(states, rows=4), 80).splitlines()
  rows = [line for line in lines if "%" in line]
  assert len(rows) == 4
  assert [row.split()[-2] for row in rows] == [
    "done", "failed", "running", "running",
  ]  # fmt: skip


def test_owners_and_reasons_are_told_beneath(cells):
  states = [_state(cell, Kind.RUNNING) for cell in cells[:2]]
  states += [_state(cells[2], Kind.FAILED), _state(cells[3])]
  states += [_state(cells[4], Kind.TRIAGED, share=0.5)]
  runs = ", ".join(cell.hash[:8] for cell in cells[:2])
  assert live.notes(states) == [
    f"process 41 on node7 runs {runs}",
    f"{cells[2].hash[:8]} failed: a check failed",
    f"{cells[4].hash[:8]} triaged: success decided",
  ]


def test_a_log_has_plain_lines_where_a_state_changes(cells, capsys):
  with live.Live(slots=1) as shown:
    for kind in (Kind.MISSING, Kind.RUNNING, Kind.RUNNING, Kind.FAILED):
      shown.show([_state(cells[0], kind), _state(cells[1])], False)
    done = _state(cells[0], Kind.DONE, evaluations=_evaluations(0.0, 8.0))
    shown.show([done, _state(cells[1])], True)
  lines = capsys.readouterr().out.splitlines()
  name = f"{cells[0].label} ({cells[0].hash[:8]}): "
  cell_lines = [line for line in lines if line.startswith(cells[0].label)]
  assert cell_lines == [
    f"{name}running", f"{name}failed: a check failed", f"{name}done ▁█",
  ]  # fmt: skip
  assert lines[0].startswith("2 cells: 2 missing") and "\x1b" not in lines[0]
  assert lines[-1].startswith("2 cells: 1 done, 1 missing")


# The time left.


def _of(flops, kind=Kind.MISSING, **changes):
  return _state(_Cell(flops), kind, **changes)


def test_nothing_is_told_before_the_first_cell_tells():
  assert time_left([_of(1.0), _of(2.0)], slots=1) is None
  early = _of(1.0, Kind.RUNNING, share=0.01, seconds=60)
  assert time_left([early], slots=1) is None


def test_a_cell_takes_as_long_as_those_of_its_size():
  states = [
    _of(1.0, Kind.DONE, seconds=60),
    _of(1.0, Kind.DONE, seconds=70),
    _of(1.0),
    _of(1.0, Kind.PREEMPTED, share=0.1),
    _of(1.0, Kind.FAILED),
  ]
  left = time_left(states, slots=1)
  assert left.seconds == pytest.approx(65 * 1.9) and not left.at_least
  assert time_left(states, slots=2).seconds == pytest.approx(65)
  assert time_left(states, slots=99).seconds == pytest.approx(65)


def test_a_running_cell_tells_too():
  states = [_of(1.0, Kind.RUNNING, share=0.25, seconds=30), _of(1.0)]
  assert time_left(states, slots=2).seconds == pytest.approx(120)
  assert time_left(states, slots=1).seconds == pytest.approx(90 + 120)


def test_time_is_not_proportional_to_flops():
  # 50 s to start and evaluate, 10 s a FLOP.
  states = [
    _of(1.0, Kind.DONE, seconds=60),
    _of(2.0, Kind.DONE, seconds=70),
    _of(100.0),
  ]
  left = time_left(states, slots=1)
  assert left.seconds == pytest.approx(1050) and not left.at_least


@pytest.mark.parametrize(
  ("small", "large", "expected"),
  [
    (70, 60, 65),  # Noise: it would fall.
    (10, 30, 1400),  # It would begin below zero: from zero, (10 + 60) / 5.
  ],
)
def test_a_fit_that_makes_no_sense_is_not_extended(small, large, expected):
  states = [
    _of(1.0, Kind.DONE, seconds=small),
    _of(2.0, Kind.DONE, seconds=large),
    _of(100.0),
  ]
  assert time_left(states, slots=1).seconds == pytest.approx(expected)


def test_one_size_tells_the_least_of_a_larger_one(cells):
  states = [_of(1.0, Kind.DONE, seconds=60), _of(100.0), _of(100.0)]
  left = time_left(states, slots=1)
  assert left.seconds == 120 and left.at_least
  assert "; more than 2 min" in live.summary(states, left=left)
  smaller = time_left([_of(2.0, Kind.DONE, seconds=60), _of(1.0)], slots=1)
  assert smaller.seconds == 60 and not smaller.at_least


def test_a_long_cell_at_the_end_is_not_shared_out():
  states = [
    _of(1.0, Kind.DONE, seconds=10),
    _of(9.0, Kind.DONE, seconds=900),
    *[_of(1.0)] * 4,
    _of(9.0),
  ]
  assert time_left(states, slots=5).seconds == pytest.approx(900)
