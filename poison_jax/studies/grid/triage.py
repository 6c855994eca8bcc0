"""Which cells of a study may stop before their end, by a rule stated before.

`sequential` says when a run's verdict is decided. Here is which runs it is
asked about: never those that the study's curves need, which are

- runs without poison, and placebos;
- those that the study's file spares;
- those between which an N50 may lie yet: a decided success stops only where
  the next lower dose has succeeded, a decided failure only where the next
  higher one has failed (at its end, or decided itself), of runs that differ in
  nothing but the dose.

A cell that was stopped has no measure at its end, and the report treats it as
censored: it narrows no N50.
"""

import dataclasses
from collections.abc import Sequence

from poison_jax import config as config_lib
from poison_jax.studies.grid.axes import has_all
from poison_jax.studies.grid.states import Kind, State
from poison_jax.studies.grid.study import Cell, Triage
from poison_jax.studies.statistics import sequential
from poison_jax.studies.statistics.sequential import Decision


def decision(
  triage: Triage | None, state: State, states: Sequence[State]
) -> Decision:
  """Returns what becomes of a cell that is not at its end.

  Args:
    triage: of the study; without it every cell goes on.
    state: the cell's.
    states: of all cells.
  """
  if triage is None or _is_needed(triage, state.cell):
    return Decision.CONTINUE
  found = sequential.decide(triage.rule, state.evaluations)
  if found is Decision.CONTINUE:
    return found
  success = found is Decision.DECIDED_SUCCESS
  own, ladder = _dose(state), _ladder(state.cell)
  others = {
    _dose(other): other
    for other in states
    if 0 < _dose(other) != own and _ladder(other.cell) == ladder
  }
  nearer = [d for d in others if (d < own if success else d > own)]
  if not nearer:
    return Decision.CONTINUE
  neighbour = others[max(nearer) if success else min(nearer)]
  agrees = _verdict(triage, neighbour) is success
  return found if agrees else Decision.CONTINUE


def in_words(found: Decision, state: State) -> str:
  """Returns "success decided at step 120 of 684, +9.10 nats"."""
  what = "success" if found is Decision.DECIDED_SUCCESS else "failure"
  return (
    f"{what} decided at step {state.step} of {state.steps}, "
    f"{state.increases[-1]:+.2f} nats"
  )


def _is_needed(triage: Triage, cell: Cell) -> bool:
  poison = cell.config.poison
  if poison.arm != "poisoned" or poison.count == 0:
    return True
  return any(has_all(cell.settings, spared) for spared in triage.spared)


def _dose(state: State) -> int:
  return state.cell.config.poison.count


def _verdict(triage: Triage, state: State) -> bool | None:
  """Says whether a cell has succeeded; None where that isn't settled."""
  if state.kind is Kind.DONE:
    return state.success
  if state.kind is not Kind.TRIAGED:
    return None
  found = sequential.decide(triage.rule, state.evaluations)
  return found is Decision.DECIDED_SUCCESS


def _ladder(cell: Cell) -> str:
  """Names the runs that differ from this one in nothing but the dose."""
  poison = dataclasses.replace(cell.config.poison, count=0)
  return config_lib.config_hash(dataclasses.replace(cell.config, poison=poison))
