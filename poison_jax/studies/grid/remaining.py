"""How long a study will take yet."""

import dataclasses
import heapq
from collections.abc import Sequence

import numpy as np

from poison_jax.studies.grid.states import Kind, State

# Share of its steps after which a cell tells how long it takes: before, the
# start and the first compilation weigh too much.
_TELLING = 0.2


@dataclasses.dataclass(frozen=True)
class Left:
  """A guess.

  Attributes:
    seconds: until the last cell is done.
    at_least: whether it may be far more: larger cells than any so far are
      counted as these.
  """

  seconds: float
  at_least: bool


def time_left(states: Sequence[State], *, slots: int) -> Left | None:
  """Returns a guess from the cells so far; None before the first tells.

  A cell takes as long as those of its size took. Of sizes not seen yet it takes
  a + b FLOPs: a, for starting, compiling and evaluating, is most of a small
  cell, so that time isn't proportional to FLOPs. One size alone doesn't tell
  the two apart.

  Args:
    states: of all cells; those stopped for good aren't waited for.
    slots: how many run at once, as far as we know.
  """
  known = _seconds_by_flops(states)
  if not known:
    return None
  at_least = False
  running, waiting = [], []
  for state in states:
    if state.kind in (Kind.DONE, Kind.FAILED, Kind.TRIAGED):
      continue
    flops = state.cell.flops
    whole = known.get(flops)
    if whole is None:
      whole = _line(known, flops)
      at_least |= len(known) == 1 and flops > max(known)
    first = state.kind is Kind.RUNNING
    (running if first else waiting).append(whole * (1 - state.share))
  ends = running + [0.0] * max(0, slots - len(running))
  heapq.heapify(ends)
  for seconds in waiting:  # On the slot that is free first.
    heapq.heapreplace(ends, ends[0] + seconds)
  return Left(max(ends, default=0.0), at_least)


def _seconds_by_flops(states: Sequence[State]) -> dict[float, float]:
  """Returns the mean seconds of a whole cell, by its size in FLOPs."""
  found: dict[float, list[float]] = {}
  for state in states:
    if state.share >= _TELLING and state.seconds > 0:
      seconds = state.seconds / state.share
      found.setdefault(state.cell.flops, []).append(seconds)
  return {flops: sum(s) / len(s) for flops, s in found.items()}


def _line(known: dict[float, float], flops: float) -> float:
  """Returns a + b flops, a least-squares fit with a and b not below zero."""
  x, y = np.array(list(known)), np.array(list(known.values()))
  if len(known) == 1:
    return float(y[0])
  b, a = np.polyfit(x / x.max(), y, 1)
  if b < 0:
    return float(y.mean())
  if a < 0:
    return float((x @ y) / (x @ x) * flops)
  return float(a + b * flops / x.max())
