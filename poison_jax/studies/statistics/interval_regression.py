"""Regression of N50 where each one is known to lie between two doses.

    log N50 = intercept + slopes . x + sigma * error,   error standard normal

so the N50 of seeds at one x is log-normal, sigma its spread in nats. Left-,
right- and interval-censored and exact N50s mix freely. The likelihood is
penalised as `censored_likelihood` says, intervals are by profile likelihood,
their limit calibrated so that exact data give Student's intervals.

Observations count as independent: one N50 for each size and seed. A seed that
is hard or easy at every size moves no slope, so the interval errs on the wide
side there. Where several poison draws of one seed are given,
`bootstrap_slopes` resamples seeds.

Letters: N observations, P columns of x.
"""

import dataclasses
import functools

import numpy as np

from poison_jax.studies.statistics import censored_likelihood
from poison_jax.studies.statistics.intervals import (
  Interval,
  critical_deviance,
  profile_interval,
)

# A slope that moves N50 by this over the range of x, and an N50 this far
# from its estimate, is called unbounded: a factor of 7e10, in nats.
_OPEN = 25.0


@dataclasses.dataclass(frozen=True)
class Fit:
  """The most likely line.

  Attributes:
    intercept: log N50 where every x is 0, in nats.
    slopes_P: change of log N50 a unit of x.
    sigma: standard deviation of log N50 between seeds, in nats.
    log_likelihood: at the maximum, without the penalty.
    objective: with it; what deviances are differences of.
    degrees: of freedom; below 1, every interval is the whole line.
    low_N, high_N: logs of the bounds fitted.
    x_NP: what they were fitted on.
  """

  intercept: float
  slopes_P: np.ndarray
  sigma: float
  log_likelihood: float
  objective: float
  degrees: int
  low_N: np.ndarray
  high_N: np.ndarray
  x_NP: np.ndarray

  def n50(self, x_P: np.ndarray) -> float:
    """Returns the median N50 at `x_P`, in documents."""
    return float(np.exp(self.intercept + self.slopes_P @ np.asarray(x_P)))


def log_bounds(low_N, high_N) -> tuple[np.ndarray, np.ndarray]:
  """Returns natural logs of bounds in documents; a low of 0 gives -inf.

  Raises:
    ValueError: lengths differ, or a low above its high, below 0 or nan.
  """
  low_N, high_N = np.asarray(low_N, float), np.asarray(high_N, float)
  if low_N.shape != high_N.shape or low_N.ndim != 1:
    raise ValueError(f"bounds of shapes {low_N.shape} and {high_N.shape}")
  if not np.all((low_N >= 0) & (low_N <= high_N) & (high_N > 0)):
    raise ValueError("each N50 needs 0 <= low <= high, and high above 0")
  with np.errstate(divide="ignore"):
    return np.log(low_N), np.log(high_N)


def fit(low_N, high_N, x_NP) -> Fit:
  """Fits the line.

  Args:
    low_N: lower bounds of N50 in documents, 0 for none.
    high_N: upper bounds, inf for none; equal to the lower for an exact N50.
    x_NP: float [N, P], P may be 0: logs of tokens, of parameters, ...

  Raises:
    ValueError: bounds in the wrong order, lengths that differ, or columns of
      x that can't be told apart (a single size, say), or no bound at all.
  """
  low_N, high_N = log_bounds(low_N, high_N)
  x_NP = np.asarray(x_NP, float)
  if x_NP.ndim != 2 or len(x_NP) != len(low_N):
    raise ValueError(f"x of shape {x_NP.shape} for {len(low_N)} N50s")
  known_N = np.isfinite(low_N) | np.isfinite(high_N)
  low_N, high_N, x_NP = low_N[known_N], high_N[known_N], x_NP[known_N]
  if not len(x_NP):
    raise ValueError("no N50 has a bound")
  # Centred, so that Newton's steps are well scaled.
  centre_P = x_NP.mean(axis=0)
  design_NK = _with_intercept(x_NP - centre_P)
  if np.linalg.matrix_rank(design_NK) < design_NK.shape[1]:
    raise ValueError("columns of x that can't be told apart in these data")
  found = _maximise(
    low_N, high_N, design_NK, 0.0, coefficients=design_NK.shape[1]
  )
  slopes_P = found.coefficients_BK[0, 1:]
  return Fit(
    intercept=float(found.coefficients_BK[0, 0] - centre_P @ slopes_P),
    slopes_P=slopes_P,
    sigma=float(found.sigma_B[0]),
    log_likelihood=float(found.log_likelihood_B[0]),
    objective=float(found.objective_B[0]),
    degrees=int(
      censored_likelihood.degrees(
        low_N[None], high_N[None], coefficients=design_NK.shape[1]
      )[0]
    ),
    low_N=low_N,
    high_N=high_N,
    x_NP=x_NP,
  )


def slope_interval(line: Fit, column: int, *, level: float) -> Interval:
  """Returns the profile-likelihood interval of one slope.

  An end is infinite where the likelihood stays flat however steep the line.
  """
  span = np.ptp(line.x_NP[:, column])
  design_NK = _with_intercept(line.x_NP - line.x_NP.mean(axis=0))
  return _profile(
    line,
    design_NK,
    column + 1,
    float(line.slopes_P[column]),
    level=level,
    reach=_OPEN / span,
  )


def n50_interval(line: Fit, x_P, *, level: float) -> Interval:
  """Returns the interval of the median N50 at `x_P`, in documents.

  Its low is 0 and its high inf where the data set no such end.
  """
  x_P = np.asarray(x_P, float)
  estimate = line.intercept + float(line.slopes_P @ x_P)
  found = _profile(
    line,
    _with_intercept(line.x_NP - x_P),
    0,
    estimate,
    level=level,
    reach=_OPEN,
  )
  return Interval(float(np.exp(found.low)), float(np.exp(found.high)), level)


def bootstrap_slopes(
  line: Fit, clusters_N, *, resamples: int, rng: np.random.Generator
) -> np.ndarray:
  """Returns float64 [R, P]: slopes of resampled clusters (seeds).

  Whole clusters are drawn with replacement among those at the same x, so no
  resample loses a size. Quantiles of the slopes make an interval that allows
  for draws of one seed being alike. With G clusters at an x its variance is
  too small by about (G - 1) / G: a check, not the pre-stated interval.

  Args:
    line: of all observations with a bound.
    clusters_N: of each observation of `line`: any label; a label at another x
      is another cluster.
    resamples: R.
    rng: draws them.
  """
  _, place_N = np.unique(line.x_NP, axis=0, return_inverse=True)
  members: dict[int, dict[object, list[int]]] = {}
  for n, (place, cluster) in enumerate(zip(place_N, clusters_N, strict=True)):
    members.setdefault(int(place), {}).setdefault(cluster, []).append(n)
  weights_RN = np.zeros((resamples, len(line.low_N)), int)
  for groups in members.values():
    groups = list(groups.values())
    chosen_RG = rng.integers(len(groups), size=(resamples, len(groups)))
    for g, group in enumerate(groups):
      weights_RN[:, group] = np.sum(chosen_RG == g, axis=1)[:, None]
  return np.stack([_slopes_of(line, weights_N) for weights_N in weights_RN])


def _slopes_of(line: Fit, weights_N: np.ndarray) -> np.ndarray:
  low_N, high_N, x_NP = (
    np.repeat(array, weights_N, axis=0)
    for array in (line.low_N, line.high_N, line.x_NP)
  )
  design_NK = _with_intercept(x_NP - line.x_NP.mean(axis=0))
  found = _maximise(
    low_N, high_N, design_NK, 0.0, coefficients=design_NK.shape[1]
  )
  return found.coefficients_BK[0, 1:]


def _profile(
  line: Fit,
  design_NK: np.ndarray,
  column: int,
  estimate: float,
  *,
  level: float,
  reach: float,
) -> Interval:
  if line.degrees < 1:
    return Interval(-np.inf, np.inf, level)
  others_NK = np.delete(design_NK, column, axis=1)

  @functools.cache
  def deviance(value: float) -> float:
    found = _maximise(
      line.low_N,
      line.high_N,
      others_NK,
      value * design_NK[:, column],
      coefficients=design_NK.shape[1],
    )
    return 2 * (line.objective - float(found.objective_B[0]))

  spread = np.sqrt(np.mean(design_NK[:, column] ** 2) * len(line.low_N))
  return profile_interval(
    deviance,
    estimate,
    critical=critical_deviance(level, line.degrees),
    level=level,
    step=float(max(2 * line.sigma / spread, reach / 500)),
    reach=reach,
  )


def _with_intercept(x_NP: np.ndarray) -> np.ndarray:
  return np.column_stack([np.ones(len(x_NP)), x_NP])


def _maximise(low_N, high_N, design_NK, offset_N, *, coefficients: int):
  offset_N = np.broadcast_to(np.asarray(offset_N, float), low_N.shape)
  return censored_likelihood.maximise(
    low_N[None],
    high_N[None],
    design_NK[None],
    offset_N[None],
    coefficients=coefficients,
  )
