"""Success against dose at one size, seeds as units.

Firth's logistic regression on log dose: the likelihood times Jeffreys' prior
(D. Firth, Biometrika 80, 1993, 27-38), which stays finite where doses that
fail and doses that succeed separate completely, as they often do. Intervals
are by its profile (G. Heinze, M. Schemper, Stat. Med. 21, 2002, 2409-2419).

Runs of one seed share data order and initialisation, and succeed or fail
together. So the critical deviance is widened by the design effect: the
variance of the seeds' summed residuals over what independent runs would have,
never below 1.

Where seeds are few and differ, N50's interval is wide or open here: the
logistic curve learns of the spread between seeds only through that factor.
`interval_regression` has the spread in its model and is the better source of
one size's N50; this curve shows the shares themselves.

The run without poison has no log dose. Its share of successes is given apart,
it takes no part in the curve.

Letters: C runs (cells), D doses of the curve.
"""

import dataclasses
import functools
import math

import numpy as np
import scipy.optimize
import scipy.special

from poison_jax.studies.statistics.intervals import (
  Interval,
  critical_deviance,
  profile_interval,
)
from poison_jax.studies.statistics.proportions import Share, share

_STEEPEST = 50.0  # Slope in logits a nat of dose: a step between any doses.
_OPEN = 12.0  # An N50 a factor of e^12 off the doses is unbounded.
_LOGIT_REACH = 60.0


@dataclasses.dataclass(frozen=True)
class DoseResponse:
  """The curve of one size.

  Attributes:
    dose_D: documents, where the curve is given.
    chance_D: of success at each.
    low_D, high_D: its pointwise interval.
    level: of every interval.
    n50: documents at which the chance is 1/2; nan for a curve so
      flat that it is nowhere near the doses.
    n50_interval: its interval; low 0 or high inf where the runs set no end.
    slope: logits a nat of dose, at least 0.
    separated: does every dose that failed lie below every one that
      succeeded? Then the slope is the prior's doing, and only its lower
      bound is known.
    design_effect: how much seeds widen the deviance, at least 1.
    seeds: how many there are.
    at_zero: share of successes without poison; None where it was not run.
  """

  dose_D: np.ndarray
  chance_D: np.ndarray
  low_D: np.ndarray
  high_D: np.ndarray
  level: float
  n50: float
  n50_interval: Interval
  slope: float
  separated: bool
  design_effect: float
  seeds: int
  at_zero: Share | None


def fit(dose_C, success_C, seed_C, *, curve_D, level: float) -> DoseResponse:
  """Fits success against dose.

  Args:
    dose_C: documents of each run, at least 0.
    success_C: of each run, true or false; leave out missing and stopped ones.
    seed_C: of each run, any label.
    curve_D: doses above 0 at which the curve is wanted.
    level: of the intervals.

  Raises:
    ValueError: fewer than two different doses above 0, lengths that differ,
      a negative dose, or a curve at a dose of 0.
  """
  dose_C, success_C = np.asarray(dose_C, float), np.asarray(success_C, bool)
  seed_C = np.asarray(seed_C)
  if not len(dose_C) == len(success_C) == len(seed_C):
    raise ValueError("doses, successes and seeds of different lengths")
  if np.any(dose_C < 0) or np.any(np.asarray(curve_D) <= 0):
    raise ValueError("doses must be at least 0, those of the curve above 0")
  poisoned_C = dose_C > 0
  runs = _Runs(np.log(dose_C[poisoned_C]), success_C[poisoned_C].astype(float))
  if len(np.unique(runs.log_dose_C)) < 2:
    raise ValueError("it takes two different doses above 0")
  seeds = len(np.unique(seed_C[poisoned_C]))
  peak = _peak(runs)
  effect = _design_effect(runs, seed_C[poisoned_C], peak)
  critical = effect * critical_deviance(level, max(seeds - 1, 1))
  low_D, high_D = _band(runs, peak, curve_D, critical=critical, level=level)
  failed, reached = (
    runs.log_dose_C[runs.success_C == outcome] for outcome in (0, 1)
  )
  curve_D = np.asarray(curve_D, float)
  return DoseResponse(
    dose_D=curve_D,
    chance_D=scipy.special.expit(
      peak.slope * (np.log(curve_D) - runs.centre) + peak.intercept
    ),
    low_D=low_D,
    high_D=high_D,
    level=level,
    n50=math.exp(peak.log_n50(runs)),
    n50_interval=_n50_interval(runs, peak, critical=critical, level=level),
    slope=peak.slope,
    separated=bool(max(failed, default=-np.inf) < min(reached, default=np.inf)),
    design_effect=effect,
    seeds=seeds,
    at_zero=_at_zero(success_C[~poisoned_C], level),
  )


@dataclasses.dataclass(frozen=True)
class _Runs:
  log_dose_C: np.ndarray
  success_C: np.ndarray

  @property
  def centre(self) -> float:
    return float(self.log_dose_C.mean())


@dataclasses.dataclass(frozen=True)
class _Peak:
  """The maximum; the intercept is the logit at the runs' centre."""

  intercept: float
  slope: float
  objective: float

  def log_n50(self, runs: _Runs) -> float:
    """Returns where the chance is 1/2; nan where that is nowhere near."""
    if abs(self.intercept) > _OPEN * self.slope:
      return math.nan
    return runs.centre - self.intercept / self.slope


def penalised_log_likelihood(
  log_dose_C: np.ndarray,
  success_C: np.ndarray,
  *,
  centre: float,
  intercept: float,
  slope: float,
) -> float:
  """Returns the log-likelihood plus half the log of the information's
  determinant, which does not depend on `centre`."""
  x_C = log_dose_C - centre
  logit_C = intercept + slope * x_C
  weight_C = scipy.special.expit(logit_C) * scipy.special.expit(-logit_C)
  total = weight_C.sum()
  mean = (weight_C * x_C).sum() / total if total > 0 else 0.0
  determinant = total * (weight_C * (x_C - mean) ** 2).sum()
  log_likelihood = np.sum(
    success_C * logit_C - np.logaddexp(0, logit_C), dtype=float
  )
  return float(log_likelihood + 0.5 * math.log(max(determinant, 1e-300)))


def _peak(runs: _Runs) -> _Peak:
  def negative(parameters) -> float:
    return -penalised_log_likelihood(
      runs.log_dose_C,
      runs.success_C,
      centre=runs.centre,
      intercept=parameters[0],
      slope=parameters[1] ** 2,
    )

  found = min(
    (
      scipy.optimize.minimize(negative, (0.0, root), method="BFGS")
      for root in (0.7, 1.7)
    ),
    key=lambda result: result.fun,
  )
  return _Peak(float(found.x[0]), float(found.x[1] ** 2), -float(found.fun))


def _profile(runs: _Runs, centre: float, logit: float) -> float:
  """Returns the maximum over slopes of a curve through `logit` at `centre`."""
  found = scipy.optimize.minimize_scalar(
    lambda root: (
      -penalised_log_likelihood(
        runs.log_dose_C,
        runs.success_C,
        centre=centre,
        intercept=logit,
        slope=root * root,
      )
    ),
    bounds=(0, math.sqrt(_STEEPEST)),
    method="bounded",
    options={"xatol": 1e-6},
  )
  return -float(found.fun)


def _n50_interval(
  runs: _Runs, peak: _Peak, *, critical: float, level: float
) -> Interval:
  estimate = peak.log_n50(runs)
  if math.isnan(estimate):
    return Interval(0.0, math.inf, level)

  @functools.cache
  def deviance(log_n50: float) -> float:
    return 2 * (peak.objective - _profile(runs, log_n50, 0.0))

  found = profile_interval(
    deviance,
    estimate,
    critical=critical,
    level=level,
    step=0.5,
    reach=_OPEN,
  )
  return Interval(math.exp(found.low), math.exp(found.high), level)


def _band(runs: _Runs, peak: _Peak, curve_D, *, critical, level):
  """Returns the ends of the chance's interval at each dose."""
  ends = []
  for log_dose in np.log(np.asarray(curve_D, float)):
    estimate = peak.intercept + peak.slope * (log_dose - runs.centre)

    @functools.cache
    def deviance(logit: float, log_dose=log_dose) -> float:
      return 2 * (peak.objective - _profile(runs, log_dose, logit))

    found = profile_interval(
      deviance,
      float(estimate),
      critical=critical,
      level=level,
      step=1.0,
      reach=_LOGIT_REACH,
    )
    ends.append((found.low, found.high))
  return tuple(scipy.special.expit(np.array(ends).T))


def _design_effect(runs: _Runs, seed_C: np.ndarray, peak: _Peak) -> float:
  """Returns the variance of seeds' residual sums over the binomial one."""
  chance_C = scipy.special.expit(
    peak.intercept + peak.slope * (runs.log_dose_C - runs.centre)
  )
  residual_C = runs.success_C - chance_C
  _, group_C = np.unique(seed_C, return_inverse=True)
  sums = np.bincount(group_C, weights=residual_C)
  if len(sums) < 2:
    return 1.0
  small = len(sums) / (len(sums) - 1)
  between = small * float(np.sum(sums**2))
  return max(1.0, between / float(np.sum(chance_C * (1 - chance_C))))


def _at_zero(success_C: np.ndarray, level: float) -> Share | None:
  if not len(success_C):
    return None
  return share(int(success_C.sum()), len(success_C), level=level)
