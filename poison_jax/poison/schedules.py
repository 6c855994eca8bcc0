"""Schedules: which slots of a run the poisons take.

A slot is a row of a batch of a step: slot = step * batch + row. Poison k goes
where its own key says, and to the next free slot on collision, in order of k.
So any number of poisons is placed exactly, a larger dose leaves the smaller
one where it was, and a poison lies at the same share of training at every
model size and token budget.
"""

import fractions
import math

from poison_jax.config import PoisonConfig
from poison_jax.errors import UserError
from poison_jax.poison import keyed


def choose_slots(
  config: PoisonConfig, *, steps: int, batch: int, seed: int
) -> list[int]:
  """Returns the slot of each poison, in order of k.

  Args:
    config: count and schedule.
    steps: steps of the run.
    batch: rows a step.
    seed: the seed of positions.

  Raises:
    UserError: the schedule has fewer slots than there are poisons.
  """
  if config.schedule == "every":
    return _every(config, steps=steps, batch=batch, seed=seed)
  first, last = 0, steps
  if config.schedule == "window":
    first = _step(config.start, steps)
    last = _step(config.end, steps)
  room = (last - first) * batch
  if config.count > room:
    where = f"steps {first} to {last - 1}" if room else "an empty window"
    raise UserError(
      f"config.poison.count is {config.count}, but the schedule "
      f"{config.schedule!r} has {room} slots ({where} of {steps}, {batch} rows "
      "each)"
    )
  taken = _Places(room)
  return [
    first * batch + taken.take(keyed.share_of(_fraction(seed, k), room))
    for k in range(config.count)
  ]


def _every(
  config: PoisonConfig, *, steps: int, batch: int, seed: int
) -> list[int]:
  """Fills `rows_per_step` rows of each `every_steps`-th step, in turn."""
  first = _step(config.start, steps)
  poisoned_steps = range(first, steps, config.every_steps)
  room = len(poisoned_steps) * config.rows_per_step
  if config.count > room:
    raise UserError(
      f"config.poison.count is {config.count}, but the schedule 'every' can "
      f"place {room}: {config.rows_per_step} in each of {len(poisoned_steps)} "
      f"steps, every {config.every_steps} from step {first} of {steps}"
    )
  slots = []
  for k in range(config.count):
    turn, number = divmod(k, config.rows_per_step)
    if number == 0:
      taken = _Places(batch)
    row = taken.take(keyed.share_of(_fraction(seed, k), batch))
    slots.append(poisoned_steps[turn] * batch + row)
  return slots


def _fraction(seed: int, poison: int) -> int:
  """Returns u_k, in units of 2**-64."""
  return keyed.bits(seed, "fraction", poison)


def _step(share: float, steps: int) -> int:
  """Returns floor(share * steps) of the decimal number that was written.

  In binary, 0.29 * 100 is less than 29.
  """
  return math.floor(fractions.Fraction(repr(share)) * steps)


class _Places:
  """Numbers 0..size-1 that are taken one by one, the next free one if taken."""

  def __init__(self, size: int):
    self._size = size
    # A taken place points to a later one that may be free.
    self._next: dict[int, int] = {}

  def take(self, place: int) -> int:
    """Takes and returns the first free place from `place` on, round the end."""
    path = []
    while place in self._next:
      path.append(place)
      place = self._next[place]
    for passed in path:
      self._next[passed] = place
    self._next[place] = (place + 1) % self._size
    return place
