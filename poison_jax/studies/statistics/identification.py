"""What the N50s of a study can say of its elasticity e at all."""

import math

import numpy as np

from poison_jax.studies.statistics import interval_regression

_LEAST = 3  # N50s between two doses: an intercept, a slope and a spread.


def too_little(low_N, high_N, log_amount_N) -> str:
  """Returns why e can't be known, or "".

  Args:
    low_N: logs of lower bounds, -inf for none.
    high_N: logs of upper bounds, inf for none.
    log_amount_N: of the run of each.
  """
  known_N = np.isfinite(low_N) | np.isfinite(high_N)
  if not known_N.any():
    return "no seed gives N50 a bound"
  if np.ptp(log_amount_N[known_N]) < 1e-9:
    return "all bounds on N50 come from a single amount"
  both = int(np.sum(np.isfinite(low_N) & np.isfinite(high_N)))
  if both < _LEAST:
    return (
      f"{both} of {len(low_N)} seeds change from failure to success between "
      f"two doses; it takes {_LEAST} to know how far seeds spread"
    )
  return ""


def runaway(line: interval_regression.Fit) -> float:
  """Returns inf or -inf where no finite slope is the most likely, else 0.

  The likelihood rises for ever where some line through all the intervals can
  be turned without leaving any one-sided bound (M. J. Silvapulle, J. Burridge,
  J. R. Stat. Soc. B 48, 1986, 100-106): where all N50s between two doses
  belong to one amount, and those at the others are bounded from above on one
  side of it and from below on the other.
  """
  x_N = line.x_NP[:, 0]
  below_N, above_N = np.isfinite(line.low_N), np.isfinite(line.high_N)
  pivots = x_N[below_N & above_N]
  if np.ptp(pivots) > 1e-9:
    return 0.0
  turn_N = x_N - pivots[0]
  if np.all(turn_N[below_N] >= -1e-9) and np.all(turn_N[above_N] <= 1e-9):
    return math.inf
  if np.all(turn_N[below_N] <= 1e-9) and np.all(turn_N[above_N] >= -1e-9):
    return -math.inf
  return 0.0
