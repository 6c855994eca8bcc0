"""Rival laws of how N50 depends on an amount, compared by likelihood.

    count    N50 = c
    share    N50 = c * amount
    log log  N50 = c * log log(amount), the appendix of arXiv 2510.07192
    free     N50 = c * amount^e

The amount is the clean tokens of a run; logarithms are natural.
"""

import dataclasses
import enum
import math

import numpy as np
import scipy.stats

from poison_jax.studies.statistics import (
  censored_likelihood,
  interval_regression,
)


class Law(enum.Enum):
  """How N50 may depend on the amount."""

  COUNT = "count"
  SHARE = "share"
  LOG_LOG = "log log"
  FREE = "free"


@dataclasses.dataclass(frozen=True)
class LawFit:
  """How well a law describes the N50s.

  Attributes:
    law: which.
    constant: the law's free constant, in nats of N50.
    exponent: of the amount; None for log log, which has none.
    objective: penalised log-likelihood at its maximum. Differences between
      laws are log-likelihood ratios: all are penalised alike.
    aic_difference: Akaike's criterion less that of the best law; 0 is best.
    p_value: of the law against the free one, two-sided; None for the free
      law, and for log log, which is no special case of it.
  """

  law: Law
  constant: float
  exponent: float | None
  objective: float
  aic_difference: float
  p_value: float | None

  def n50(self, amount_G) -> np.ndarray:
    """Returns the N50s that the law gives, in documents, at amounts above e."""
    log_amount_G = np.log(np.asarray(amount_G, float))
    if self.exponent is None:
      return np.exp(self.constant) * np.log(log_amount_G)
    return np.exp(self.constant + self.exponent * log_amount_G)


def compare(
  line: interval_regression.Fit, *, p_count: float, p_share: float
) -> dict[Law, LawFit]:
  """Fits every law to the N50s of the free one.

  Args:
    line: the free law's fit, on the log of the amount alone. Log log is left
      out where an amount is not above e.
    p_count: p-value of e = 0 against the free law.
    p_share: of e = 1.
  """
  log_amount_N = line.x_NP[:, 0]
  # Of each law: exponent, what is known of log N50, p-value.
  known = {
    Law.COUNT: (0.0, 0 * log_amount_N, p_count),
    Law.SHARE: (1.0, log_amount_N, p_share),
  }
  if log_amount_N.min() > 1:
    known[Law.LOG_LOG] = (None, np.log(np.log(log_amount_N)), None)
  ones_NK = np.ones((len(log_amount_N), 1))
  slope = float(line.slopes_P[0])
  fits = [LawFit(Law.FREE, line.intercept, slope, line.objective, 0.0, None)]
  for law, (exponent, offset_N, p_value) in known.items():
    found = maximise(line.low_N[None], line.high_N[None], ones_NK, offset_N)
    fits.append(
      LawFit(
        law=law,
        constant=float(found.coefficients_BK[0, 0]),
        exponent=exponent,
        objective=float(found.objective_B[0]),
        aic_difference=0.0,
        p_value=p_value,
      )
    )
  aic = {
    f.law: 2 * (3 if f.law is Law.FREE else 2) - 2 * f.objective for f in fits
  }
  best = min(aic.values())
  return {
    f.law: dataclasses.replace(f, aic_difference=aic[f.law] - best)
    for f in fits
  }


def straightness(line: interval_regression.Fit) -> float | None:
  """Returns the p-value of the free law against a median for each amount.

  A small one says that sizes scatter about the line by more than their seeds
  do, so the interval of the elasticity is too narrow. It is the F test of
  lack of fit, exact for exact data; None where the amounts or the N50s are
  too few to tell.
  """
  log_amount_N = line.x_NP[:, 0]
  groups_S, group_N = np.unique(log_amount_N, return_inverse=True)
  extra = len(groups_S) - 2
  low_BN, high_BN = line.low_N[None], line.high_N[None]
  within = int(
    censored_likelihood.degrees(low_BN, high_BN, coefficients=len(groups_S))[0]
  )
  if extra < 1 or within < 1:
    return None
  each_NS = np.eye(len(groups_S))[group_N]
  apart = maximise(low_BN, high_BN, each_NS, 0 * log_amount_N)
  deviance = max(2 * (float(apart.objective_B[0]) - line.objective), 0.0)
  ratio = np.expm1(min(deviance / line.degrees, 500)) * within / extra
  return float(scipy.stats.f.sf(ratio, extra, within))


def maximise(low_BN, high_BN, design_NK, offset_N):
  """Returns the maxima of many data sets under one law, all penalised alike."""
  batch = len(low_BN)
  return censored_likelihood.maximise(
    low_BN,
    high_BN,
    np.broadcast_to(design_NK, (batch, *design_NK.shape)),
    np.broadcast_to(offset_N, low_BN.shape),
    coefficients=2,
  )


def log_log_elasticities(log_amount_N) -> tuple[float, float] | None:
  """Returns the log log law's local elasticity at the ends of the amounts."""
  smallest, largest = float(log_amount_N.min()), float(log_amount_N.max())
  if smallest <= 1:
    return None
  return tuple(1 / (n * math.log(n)) for n in (smallest, largest))
