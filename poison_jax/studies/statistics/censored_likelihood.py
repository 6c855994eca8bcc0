"""Maximum likelihood for normal data that are known as intervals.

Observation n lies between `low` and `high`; its distribution is normal with
mean `offset + design @ coefficients` and standard deviation sigma. Many
problems of one shape are solved at once, each by Newton's method.

Letters: B problems, N observations, K coefficients, J = K + 1 parameters, the
last being log sigma.

The objective is penalised. Where a line passes through all the intervals the
likelihood rises to 1 as sigma falls to 0, and where nearly all are censored
to one side sigma is free to grow. So `power * log(sigma)` is added, which
keeps sigma off 0 (Y. Chung et al., Psychometrika 78, 2013, 685-709) and,
with `power` the number of coefficients, makes the variance of exact data that
of restricted likelihood, `RSS / (N - K)` (H. D. Patterson, R. Thompson,
Biometrika 58, 1971, 545-554). And `-(sigma / WIDEST)^2 / 2` bounds it. Only
observations bounded on both sides say how wide sigma is, so `power` never
exceeds their number less one: where all are bounded from one side, nothing
rewards a wide sigma and the line goes freely beyond the doses.
"""

import dataclasses

import numpy as np
import scipy.special

# In nats of N50: a factor of 20 between seeds as one standard deviation.
WIDEST = 3.0

_LOG_ROOT_2PI = 0.5 * np.log(2 * np.pi)
_STEPS = 80
_HALVINGS = 12
_CONVERGED = 1e-9  # Rise of the objective that a Newton step promises.
_SIGMA_STARTS = (0.1, 1.0)


@dataclasses.dataclass(frozen=True)
class Solution:
  """The maxima.

  Attributes:
    coefficients_BK: float64.
    sigma_B: float64.
    log_likelihood_B: without the penalty.
    objective_B: with it.
  """

  coefficients_BK: np.ndarray
  sigma_B: np.ndarray
  log_likelihood_B: np.ndarray
  objective_B: np.ndarray


def log_likelihood(
  low_BN: np.ndarray, high_BN: np.ndarray, mean_BN: np.ndarray, sigma_B1
) -> np.ndarray:
  """Returns float64 [B, N]: the log of each observation's probability.

  Args:
    low_BN: lower bounds; -inf for none. Equal to `high_BN` for exact data,
      which give a density.
    high_BN: upper bounds; inf for none.
    mean_BN: of the normal distribution.
    sigma_B1: its standard deviation.
  """
  a_BN, b_BN = (low_BN - mean_BN) / sigma_B1, (high_BN - mean_BN) / sigma_B1
  exact_BN = low_BN == high_BN
  # Both ends in the lower tail, where the difference keeps its digits.
  swap_BN = a_BN + np.where(np.isinf(b_BN), 0, b_BN) > 0
  swap_BN |= np.isinf(b_BN) & (b_BN > 0) & np.isfinite(a_BN)
  lower_BN = np.where(swap_BN, -b_BN, a_BN)
  upper_BN = np.where(swap_BN, -a_BN, b_BN)
  upper_log_BN = scipy.special.log_ndtr(upper_BN)
  gap_BN = scipy.special.log_ndtr(lower_BN) - upper_log_BN
  gap_BN = np.where(exact_BN, -1.0, np.minimum(gap_BN, -1e-300))
  interval_BN = upper_log_BN + np.log(-np.expm1(gap_BN))
  density_BN = -0.5 * np.where(exact_BN, a_BN, 0.0) ** 2 - _LOG_ROOT_2PI
  return np.where(exact_BN, density_BN - np.log(sigma_B1), interval_BN)


def maximise(
  low_BN: np.ndarray,
  high_BN: np.ndarray,
  design_BNK: np.ndarray,
  offset_BN: np.ndarray,
  *,
  coefficients: int,
) -> Solution:
  """Returns the maximum of each problem's penalised likelihood.

  Args:
    low_BN: lower bounds, -inf for none.
    high_BN: upper bounds, inf for none; equal to `low_BN` for exact data.
    design_BNK: the columns that the coefficients multiply; K may be 0.
    offset_BN: the part of the mean that is given.
    coefficients: how many the largest model compared has, so that all its
      restrictions are penalised alike; 0 for no power of sigma.
  """
  batch, columns = design_BNK.shape[0], design_BNK.shape[2]
  two_sided_B = np.sum(np.isfinite(low_BN) & np.isfinite(high_BN), axis=1)
  power_B = np.clip(two_sided_B - 1, 0, coefficients)
  start_BK = _start(low_BN, high_BN, design_BNK, offset_BN)
  best_BJ = np.zeros((batch, columns + 1))
  best_B = np.full(batch, -np.inf)
  problem = (low_BN, high_BN, design_BNK, offset_BN, power_B)
  for sigma in _SIGMA_STARTS:
    start_BJ = np.column_stack([start_BK, np.full(batch, np.log(sigma))])
    found_BJ, value_B = _climb(problem, start_BJ)
    better_B = value_B > best_B
    best_BJ = np.where(better_B[:, None], found_BJ, best_BJ)
    best_B = np.where(better_B, value_B, best_B)
  return Solution(
    coefficients_BK=best_BJ[:, :-1],
    sigma_B=np.exp(best_BJ[:, -1]),
    log_likelihood_B=best_B - _penalty(best_BJ[:, -1], power_B),
    objective_B=best_B,
  )


def degrees(
  low_BN: np.ndarray, high_BN: np.ndarray, *, coefficients: int
) -> np.ndarray:
  """Returns int64 [B]: degrees of freedom to calibrate deviances with.

  Only observations bounded on both sides tell sigma, so it is their number
  less the coefficients. Where that is below 1 sigma is the penalty's, and so
  would be the interval of any slope. A median alone is bounded from one side
  by all that lie there, whatever sigma is, as the sign test has it: with one
  coefficient it is at least 1 where that leaves any observation over.
  """
  low_known_BN, high_known_BN = np.isfinite(low_BN), np.isfinite(high_BN)
  both_B = np.sum(low_known_BN & high_known_BN, axis=1) - coefficients
  if coefficients > 1:
    return both_B
  known_B = np.sum(low_known_BN | high_known_BN, axis=1) - coefficients
  return np.minimum(known_B, np.maximum(both_B, 1))


def _penalty(log_sigma_B: np.ndarray, power_B: np.ndarray) -> np.ndarray:
  return power_B * log_sigma_B - np.exp(2 * log_sigma_B) / (2 * WIDEST**2)


def _start(low_BN, high_BN, design_BNK, offset_BN) -> np.ndarray:
  """Returns least squares on the middles, or half a nat inside one bound."""
  low, high = np.isfinite(low_BN), np.isfinite(high_BN)
  safe_low, safe_high = np.where(low, low_BN, 0), np.where(high, high_BN, 0)
  middle_BN = np.where(
    low & high,
    (safe_low + safe_high) / 2,
    np.where(low, safe_low + 0.5, safe_high - 0.5),
  )
  known_BN = low | high
  target_BN = np.where(known_BN, middle_BN - offset_BN, 0.0)
  weighted_BNK = design_BNK * known_BN[:, :, None]
  return (np.linalg.pinv(weighted_BNK) @ target_BN[:, :, None])[:, :, 0]


def _climb(problem, parameters_BJ: np.ndarray):
  """Returns where Newton's method ends, and the objective there."""
  parameters_BJ = parameters_BJ.copy()
  value_B = _objective(problem, parameters_BJ)
  active = np.arange(len(value_B))
  for _ in range(_STEPS):
    part = tuple(array[active] for array in problem)
    gradient, hessian = _derivatives(part, parameters_BJ[active])
    step, promise = _newton(gradient, hessian)
    going = promise > _CONVERGED
    active, part = active[going], tuple(array[going] for array in part)
    if not active.size:
      break
    moved, value = _search(
      part,
      parameters_BJ[active],
      value_B[active],
      step[going],
    )
    risen = value > value_B[active]
    parameters_BJ[active], value_B[active] = moved, value
    active = active[risen]
    if not active.size:
      break
  return parameters_BJ, value_B


def _objective(problem, parameters_BJ: np.ndarray) -> np.ndarray:
  low_BN, high_BN, design_BNK, offset_BN, power_B = problem
  mean_BN = offset_BN + np.einsum(
    "bnk,bk->bn", design_BNK, parameters_BJ[:, :-1]
  )
  log_sigma_B = parameters_BJ[:, -1]
  each_BN = log_likelihood(
    low_BN, high_BN, mean_BN, np.exp(log_sigma_B)[:, None]
  )
  return each_BN.sum(axis=1) + _penalty(log_sigma_B, power_B)


def _derivatives(problem, parameters_BJ: np.ndarray):
  """Returns the objective's gradient [B, J] and Hessian [B, J, J]."""
  low_BN, high_BN, design_BNK, offset_BN, power_B = problem
  log_sigma_B = parameters_BJ[:, -1]
  sigma_B1 = np.exp(log_sigma_B)[:, None]
  mean_BN = offset_BN + np.einsum(
    "bnk,bk->bn", design_BNK, parameters_BJ[:, :-1]
  )
  m, u, mm, mu, uu = _each(low_BN, high_BN, mean_BN, sigma_B1)
  gradient_BJ = np.column_stack(
    [np.einsum("bnk,bn->bk", design_BNK, m), u.sum(axis=1)]
  )
  columns = design_BNK.shape[2]
  hessian_BJJ = np.empty((len(low_BN), columns + 1, columns + 1))
  hessian_BJJ[:, :-1, :-1] = np.einsum(
    "bnk,bn,bnl->bkl", design_BNK, mm, design_BNK
  )
  cross_BK = np.einsum("bnk,bn->bk", design_BNK, mu)
  hessian_BJJ[:, :-1, -1] = hessian_BJJ[:, -1, :-1] = cross_BK
  bound_B = np.exp(2 * log_sigma_B) / WIDEST**2
  gradient_BJ[:, -1] += power_B - bound_B
  hessian_BJJ[:, -1, -1] = uu.sum(axis=1) - 2 * bound_B
  return gradient_BJ, hessian_BJJ


def _each(low_BN, high_BN, mean_BN, sigma_B1):
  """Returns each term's derivatives by mean (m) and log sigma (u), [B, N].

  With a and b the standardised ends and w the density at an end over the
  probability: d/dm = (w_a - w_b) / sigma, d/du = a w_a - b w_b.
  """
  each_BN = log_likelihood(low_BN, high_BN, mean_BN, sigma_B1)

  def end(bound_BN):
    finite = np.isfinite(bound_BN)
    z = np.where(finite, (np.where(finite, bound_BN, 0) - mean_BN), 0)
    z = z / sigma_B1
    log_density = -0.5 * z * z - _LOG_ROOT_2PI
    w = np.where(finite, np.exp(np.minimum(log_density - each_BN, 300)), 0)
    return z, w

  (a, wa), (b, wb) = end(low_BN), end(high_BN)
  s0, s1 = wa - wb, a * wa - b * wb
  s2, s3 = a * a * wa - b * b * wb, a**3 * wa - b**3 * wb
  exact = low_BN == high_BN
  m = np.where(exact, a, s0) / sigma_B1
  u = np.where(exact, a * a - 1, s1)
  mm = np.where(exact, -1, s1 - s0 * s0) / sigma_B1**2
  mu = np.where(exact, -2 * a, s2 - s0 - s0 * s1) / sigma_B1
  uu = np.where(exact, -2 * a * a, s3 - s1 - s1 * s1)
  return m, u, mm, mu, uu


def _newton(gradient_BJ: np.ndarray, hessian_BJJ: np.ndarray):
  """Returns a step uphill, and the rise that it promises.

  Directions in which the objective is not concave are walked by the size of
  their curvature; log sigma moves by at most one.
  """
  values_BJ, vectors_BJJ = np.linalg.eigh(hessian_BJJ)
  size_BJ = np.maximum(np.abs(values_BJ), 1e-8)
  along_BJ = np.einsum("bij,bi->bj", vectors_BJJ, gradient_BJ)
  step_BJ = np.einsum("bij,bj->bi", vectors_BJJ, along_BJ / size_BJ)
  promise_B = np.einsum("bj,bj->b", along_BJ, along_BJ / size_BJ) / 2
  factor_B = 1 / np.maximum(1, np.abs(step_BJ[:, -1]))
  return step_BJ * factor_B[:, None], promise_B


def _search(problem, from_BJ, value_B, step_BJ):
  """Returns the first of the step's halvings that rises, and its value."""
  best_BJ, best_B = from_BJ.copy(), value_B.copy()
  open_ = np.arange(len(value_B))
  for halving in range(_HALVINGS):
    tried = from_BJ[open_] + step_BJ[open_] * 0.5**halving
    part = tuple(array[open_] for array in problem)
    value = _objective(part, tried)
    risen = value > value_B[open_]
    best_BJ[open_[risen]], best_B[open_[risen]] = tried[risen], value[risen]
    open_ = open_[~risen]
    if not open_.size:
      break
  return best_BJ, best_B
