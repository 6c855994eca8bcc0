"""Elasticities of N50 by clean tokens and by parameters, each at fixed other.

    log N50 = constant + a log(tokens) + b log(parameters) + sigma * error

The elasticity by one of them alone (`elasticity`) is marginal: where larger
models see more tokens it takes in what the other does. Here `a` is at fixed
parameters and `b` at fixed tokens, as far as the sizes let the two be told
apart.
"""

import dataclasses

import numpy as np

from poison_jax.studies.statistics import interval_regression
from poison_jax.studies.statistics.intervals import Interval

# At fixed parameters the tokens must differ by this factor, and parameters at
# fixed tokens.
APART = 1.1

_LEAST = 4  # N50s between two doses: a plane has three coefficients.


@dataclasses.dataclass(frozen=True)
class Slope:
  """One elasticity with its profile-likelihood interval."""

  estimate: float
  interval: Interval


@dataclasses.dataclass(frozen=True)
class Joint:
  """Both elasticities.

  Attributes:
    by_tokens: at fixed parameters; None where they can't be told apart.
    by_parameters: at fixed tokens; likewise.
    reason: why they can't, in a sentence's part; "" where they can.
  """

  by_tokens: Slope | None
  by_parameters: Slope | None
  reason: str


def assess(low_N, high_N, tokens_N, parameters_N, *, level: float) -> Joint:
  """Fits both elasticities at once.

  Args:
    low_N: lower bounds of the seeds' N50s in documents, 0 for none.
    high_N: upper bounds, inf for none.
    tokens_N: clean tokens of the run of each, above 0.
    parameters_N: of its model, above 0.
    level: of the intervals.

  Raises:
    ValueError: bounds in the wrong order, lengths that differ, or an amount
      that is not above 0.
  """
  low_log_N, high_log_N = interval_regression.log_bounds(low_N, high_N)
  x_N2 = np.column_stack(
    [np.asarray(tokens_N, float), np.asarray(parameters_N, float)]
  )
  if len(x_N2) != len(low_log_N):
    raise ValueError(f"{len(low_log_N)} N50s, {len(x_N2)} amounts")
  if not np.all(x_N2 > 0):
    raise ValueError("amounts must be above 0")
  x_N2 = np.log(x_N2)
  reason = _reason(x_N2[np.isfinite(low_log_N) & np.isfinite(high_log_N)])
  if reason:
    return Joint(None, None, reason)
  plane = interval_regression.fit(low_N, high_N, x_N2)
  tokens, parameters = (
    Slope(
      float(plane.slopes_P[column]),
      interval_regression.slope_interval(plane, column, level=level),
    )
    for column in (0, 1)
  )
  return Joint(tokens, parameters, "")


def _reason(x_M2: np.ndarray) -> str:
  """Returns why the columns can't be told apart, or "".

  Args:
    x_M2: logs of tokens and parameters of the N50s between two doses, which
      alone keep every slope finite.
  """
  if len(x_M2) < _LEAST:
    return (
      f"{len(x_M2)} seeds change from failure to success between two doses; "
      f"it takes {_LEAST}"
    )
  for column, name, other in (
    (0, "clean tokens", "parameters"),
    (1, "parameters", "clean tokens"),
  ):
    given_M2 = np.column_stack([np.ones(len(x_M2)), x_M2[:, 1 - column]])
    fitted_2 = np.linalg.lstsq(given_M2, x_M2[:, column], rcond=None)[0]
    factor = np.exp(np.ptp(x_M2[:, column] - given_M2 @ fitted_2))
    if factor < APART:
      return f"at fixed {other} the {name} hardly vary"
  return ""
