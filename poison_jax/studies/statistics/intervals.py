"""Confidence intervals, and the search for their ends on a profile."""

import dataclasses
import math
from collections.abc import Callable

import scipy.optimize
import scipy.stats

_TOLERANCE = 1e-6  # Of an end, in the unit of the quantity.


@dataclasses.dataclass(frozen=True)
class Interval:
  """A two-sided confidence interval.

  Attributes:
    low: its lower end; -inf (0 for a count) where the data set none.
    high: its upper end; inf where the data set none.
    level: its nominal coverage, 0.95 for 95 %.
  """

  low: float
  high: float
  level: float

  @property
  def is_open(self) -> bool:
    """Says whether the data leave one end or both unbounded."""
    return math.isinf(self.low) or math.isinf(self.high)

  def contains(self, value: float) -> bool:
    """Says whether a value lies in it, its ends included."""
    return self.low <= value <= self.high

  def within(self, low: float, high: float) -> bool:
    """Says whether the whole interval lies strictly between two limits."""
    return low < self.low and self.high < high


def critical_deviance(level: float, degrees: int) -> float:
  """Returns the deviance that a value inside the interval may have.

  Twice the fall of the log-likelihood from its maximum is `degrees *
  log(1 + t^2 / degrees)` where a normal mean has an unknown variance, t being
  Student's statistic: so this limit gives exactly Student's interval for
  exact data, and chi-squared's for many observations.
  """
  t = scipy.stats.t.ppf((1 + level) / 2, degrees)
  return degrees * math.log1p(t * t / degrees)


def profile_interval(
  deviance: Callable[[float], float],
  estimate: float,
  *,
  critical: float,
  level: float,
  step: float,
  reach: float,
) -> Interval:
  """Returns where a profile's deviance crosses its critical value.

  Args:
    deviance: of a value of the quantity; 0 at the estimate.
    estimate: where the search begins.
    critical: the deviance at the ends.
    level: recorded in the interval.
    step: the first step from the estimate; doubled until it is outside.
    reach: an end farther than this from the estimate is called infinite.
  """
  ends = [
    estimate
    + side
    * _distance(
      lambda distance, side=side: (
        deviance(estimate + side * distance) - critical
      ),
      step,
      reach,
    )
    for side in (-1, 1)
  ]
  return Interval(ends[0], ends[1], level)


def _distance(
  excess: Callable[[float], float], step: float, reach: float
) -> float:
  """Returns where `excess` turns positive; inf if not within `reach`."""
  inner, outer = 0.0, min(step, reach)
  while excess(outer) <= 0:
    if outer >= reach:
      return math.inf
    inner, outer = outer, min(2 * outer, reach)
  return scipy.optimize.brentq(excess, inner, outer, xtol=_TOLERANCE)
