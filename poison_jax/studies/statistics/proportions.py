"""Shares of runs, with exact intervals."""

import dataclasses

import scipy.stats

from poison_jax.studies.statistics.intervals import Interval


@dataclasses.dataclass(frozen=True)
class Share:
  """A share of runs.

  Attributes:
    successes: how many of them succeeded.
    runs: how many there are.
    interval: of the chance that it estimates (Clopper and Pearson's).
  """

  successes: int
  runs: int
  interval: Interval

  @property
  def value(self) -> float:
    """The share itself; nan without runs."""
    return self.successes / self.runs if self.runs else float("nan")


def share(successes: int, runs: int, *, level: float) -> Share:
  """Returns a share with Clopper and Pearson's interval.

  It covers the chance at least as often as its level says, for any number of
  runs (C. J. Clopper, E. S. Pearson, Biometrika 26, 1934, 404-413). Three
  successes of three leave 0.29 to 1. Without runs it is 0 to 1.

  Raises:
    ValueError: more successes than runs, or a negative count.
  """
  if not 0 <= successes <= runs:
    raise ValueError(f"{successes} successes of {runs} runs")
  if runs == 0:
    return Share(0, 0, Interval(0.0, 1.0, level))
  found = scipy.stats.binomtest(successes, runs).proportion_ci(
    confidence_level=level, method="exact"
  )
  return Share(
    successes, runs, Interval(float(found.low), float(found.high), level)
  )
