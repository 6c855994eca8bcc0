"""N50 of one seed: censored between two doses of its ladder.

One seed at one size gives a ladder: a run a dose, each a success or not. The
N50 of that seed is the number of poisoned documents from which it succeeds,
and all that the ladder says is between which two doses it lies.
"""

import dataclasses
import enum
import math
from collections.abc import Sequence


class Censoring(enum.Enum):
  """On which sides a dose bounds an N50."""

  LEFT = "left"  # Success at the lowest dose: only an upper bound.
  INTERVAL = "interval"  # Between two doses.
  RIGHT = "right"  # No lasting success: only a lower bound.
  UNOBSERVED = "unobserved"  # No run with poison was measured: no bound.


@dataclasses.dataclass(frozen=True)
class Censored:
  """An N50 known to lie above `low` and at or below `high`.

  Attributes:
    low: a dose that was not enough, in documents; 0 where there is none.
    high: a dose that was enough; inf where there is none.
    monotone: did no run fail at a dose above one that succeeded?
    clean_success: did the run without poison count as a success? Then the
      measure answers something else than the poison there.
  """

  low: float
  high: float
  monotone: bool
  clean_success: bool

  @property
  def censoring(self) -> Censoring:
    if math.isinf(self.high):
      return Censoring.RIGHT if self.low > 0 else Censoring.UNOBSERVED
    return Censoring.INTERVAL if self.low > 0 else Censoring.LEFT


def n50(doses: Sequence[float], successes: Sequence[bool | None]) -> Censored:
  """Returns the N50 that one ladder of doses is compatible with.

  The rule: from the last dose before the first success to the first dose
  after the last failure. On a monotone ladder these are the last failure and
  the first success. On one that is not (success at 16, failure at 32, success
  at 64, after a failure at 8), it is the widest interval in question, 8 to
  64, and flagged. Dose zero only ever bounds from below, by 0.

  Args:
    doses: documents, each at least 0 and each once, in any order.
    successes: of each dose; None where the run is missing or was stopped
      early, which narrows nothing.

  Raises:
    ValueError: lengths differ, a dose is negative or occurs twice.
  """
  if len(doses) != len(successes):
    raise ValueError(f"{len(doses)} doses, {len(successes)} successes")
  if len(set(doses)) != len(doses) or any(dose < 0 for dose in doses):
    raise ValueError(f"doses must be different and at least 0: {list(doses)}")
  ladder = sorted(
    (float(dose), bool(success))
    for dose, success in zip(doses, successes, strict=True)
    if success is not None
  )
  enough = [dose for dose, success in ladder if success]
  failed = [dose for dose, success in ladder if not success]
  first = min(enough, default=math.inf)
  last = max(failed, default=-math.inf)
  return Censored(
    low=max((dose for dose, _ in ladder if dose < first), default=0.0),
    high=min(
      (dose for dose, _ in ladder if dose > max(last, 0)), default=math.inf
    ),
    monotone=last < first,
    clean_success=0 in enough,
  )
