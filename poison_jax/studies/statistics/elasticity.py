"""The study's question as a pre-stated test: does N50 grow with the data?

The elasticity is e = d log N50 / d log(amount), the amount being the clean
tokens of a run (or its parameters). Rival laws, each with a free constant:

    count    e = 0, a constant number of documents
    share    e = 1, a constant share of the training data
    log log  N50 proportional to log log(clean tokens), the paper's appendix
    free     e estimated

The verdict, by rules fixed before any data, the first that applies:

    CONSTANT          the 90 % interval of e lies within +-margin: both of two
                      one-sided tests reject at 5 % (D. J. Schuirmann, J.
                      Pharmacokinet. Biopharm. 15, 1987, 657-680)
    PROPORTIONAL      the 90 % interval of e lies within 1 +- margin
    NEITHER           e = 0 and e = 1 are both rejected at 5 %; e may lie
                      between them, above 1, or below 0
    NOT_PROPORTIONAL  only e = 1 is rejected
    NOT_CONSTANT      only e = 0 is rejected
    UNDECIDED         neither is, or the data can't tell: a single amount, or
                      fewer than three N50s between two doses

So each claim errs with a chance of nominally 5 %: CONSTANT where e lies at
the margin or beyond, PROPORTIONAL likewise, NEITHER and NOT_CONSTANT where
e = 0. The levels are those of `level` = 0.95; another moves all of them.
Simulated studies (2,000 of each design, 2026-11-21): with fine doses the 95 %
interval held the truth in 95 to 97 %; with the doses 16, 32, 64, 128 and two
to five seeds a size in 94 to 99.7 %, but 93 % where most seeds of the outer
sizes lay outside the doses.

An N50 that is known from one side only says on which side of a dose it lies,
not how far seeds spread, in which any elasticity is measured. So it takes
three N50s between two doses, one more than the line has parameters; studies
with fewer, such as any with a single dose, are undecided for that reason,
however their shares of success differ (counts of those are for Fisher's
test). By a bound of the penalty instead, e = 0 was rejected in up to 13 % of
small designs where it was true; so it is in at most 3 % of them (600 studies
each of one to three doses, two or three sizes and seeds, 2026-11-22).
"""

import dataclasses
import enum
import math

import numpy as np
import scipy.stats

from poison_jax.studies.statistics import (
  censored_likelihood,
  identification,
  interval_regression,
  laws,
  margins,
)
from poison_jax.studies.statistics.intervals import Interval
from poison_jax.studies.statistics.laws import Law, LawFit


class Verdict(enum.Enum):
  """What the test says; the module's docstring has the rules."""

  CONSTANT = "constant"
  PROPORTIONAL = "proportional"
  NEITHER = "neither"
  NOT_PROPORTIONAL = "not proportional"
  NOT_CONSTANT = "not constant"
  UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class Elasticity:
  """The test's result.

  Attributes:
    verdict: by the rules.
    reason: the rule that applied, with its numbers, in one sentence.
    margin: of equivalence.
    estimate: e; nan where it can't be estimated, infinite where the likelihood
      rises towards ever steeper lines.
    interval: of e, at the level asked for.
    equivalence_interval: of e, at twice the error: within +-margin if and
      only if both one-sided tests reject.
    p_constant: of the equivalence test against 0, the larger one-sided one.
    p_proportional: likewise against 1.
    laws: by law; empty where nothing could be fitted.
    log_log_elasticities: the local e of the log log law at the smallest and
      the largest amount, `1 / (log n log log n)`; None for amounts up to e.
    p_straight: of the free law against a median for each amount, the test of
      lack of fit: small where sizes scatter about any power law and the
      interval is too narrow. It moves no verdict; None where too few.
    line: the free fit, for curves; None where nothing could be fitted.
  """

  verdict: Verdict
  reason: str
  margin: float
  estimate: float
  interval: Interval
  equivalence_interval: Interval
  p_constant: float
  p_proportional: float
  laws: dict[Law, LawFit]
  log_log_elasticities: tuple[float, float] | None
  p_straight: float | None
  line: interval_regression.Fit | None


@dataclasses.dataclass(frozen=True)
class PValues:
  """P-values of many data sets at once, [B] each."""

  estimate_B: np.ndarray
  constant_B: np.ndarray  # Equivalence to 0.
  proportional_B: np.ndarray  # Equivalence to 1.
  zero_B: np.ndarray  # e = 0, two-sided.
  one_B: np.ndarray  # e = 1, two-sided.


def assess(
  low_N, high_N, amount_N, *, margin: float, level: float
) -> Elasticity:
  """Tests how N50 depends on an amount.

  Args:
    low_N: lower bounds of the seeds' N50s in documents, 0 for none.
    high_N: upper bounds, inf for none.
    amount_N: clean tokens of the run (or its parameters), above 0.
    margin: |e| below it counts as constant; above 0, below 1/2.
    level: of the interval, 0.95 for the rules as stated.

  Raises:
    ValueError: a margin or amount outside its range, bounds in the wrong
      order, or lengths that differ.
  """
  _check(margin, amount_N)
  low_log_N, high_log_N = interval_regression.log_bounds(low_N, high_N)
  log_amount_N = np.log(np.asarray(amount_N, float))
  if log_amount_N.shape != low_log_N.shape:
    raise ValueError(f"{len(low_log_N)} N50s, {len(log_amount_N)} amounts")
  reason = identification.too_little(low_log_N, high_log_N, log_amount_N)
  if reason:
    return _nothing(reason, margin, level)
  line = interval_regression.fit(low_N, high_N, log_amount_N[:, None])
  tests = p_values(
    line.low_N[None], line.high_N[None], line.x_NP[:, 0], margin=margin
  )
  verdict = decide(tests, level=level)[0]
  interval = interval_regression.slope_interval(line, 0, level=level)
  equivalence = interval_regression.slope_interval(line, 0, level=2 * level - 1)
  return Elasticity(
    verdict=verdict,
    reason=_reason(verdict, tests, interval, equivalence, margin),
    margin=margin,
    estimate=identification.runaway(line) or float(line.slopes_P[0]),
    interval=interval,
    equivalence_interval=equivalence,
    p_constant=float(tests.constant_B[0]),
    p_proportional=float(tests.proportional_B[0]),
    laws=laws.compare(
      line, p_count=float(tests.zero_B[0]), p_share=float(tests.one_B[0])
    ),
    log_log_elasticities=laws.log_log_elasticities(line.x_NP[:, 0]),
    p_straight=laws.straightness(line),
    line=line,
  )


def p_values(
  low_BN: np.ndarray,
  high_BN: np.ndarray,
  log_amount_N: np.ndarray,
  *,
  margin: float,
) -> PValues:
  """Tests many data sets on the same amounts at once.

  Args:
    low_BN: logs of lower bounds, -inf for none.
    high_BN: logs of upper bounds, inf for none.
    log_amount_N: at least two different ones.
    margin: of equivalence.
  """
  centred_N = log_amount_N - log_amount_N.mean()
  design_NK = np.column_stack([np.ones_like(centred_N), centred_N])
  free = laws.maximise(low_BN, high_BN, design_NK, 0 * centred_N)
  estimate_B = free.coefficients_BK[:, 1]
  degrees_B = censored_likelihood.degrees(low_BN, high_BN, coefficients=2)

  def above(value: float) -> np.ndarray:
    """Returns the one-sided p-value of e <= value against e > value."""
    at = laws.maximise(low_BN, high_BN, design_NK[:, :1], value * centred_N)
    deviance_B = np.maximum(2 * (free.objective_B - at.objective_B), 0)
    return _one_sided(deviance_B, estimate_B - value, degrees_B)

  zero_B, one_B = above(0.0), above(1.0)
  return PValues(
    estimate_B=estimate_B,
    constant_B=np.maximum(above(-margin), 1 - above(margin)),
    proportional_B=np.maximum(above(1 - margin), 1 - above(1 + margin)),
    zero_B=2 * np.minimum(zero_B, 1 - zero_B),
    one_B=2 * np.minimum(one_B, 1 - one_B),
  )


def decide(tests: PValues, *, level: float) -> list[Verdict]:
  """Returns the verdict on each data set, by the module's rules."""
  alpha = 1 - level
  return [
    _rule(constant < alpha, proportional < alpha, zero < alpha, one < alpha)
    for constant, proportional, zero, one in zip(
      tests.constant_B,
      tests.proportional_B,
      tests.zero_B,
      tests.one_B,
      strict=True,
    )
  ]


def _rule(constant, proportional, not_zero, not_one) -> Verdict:
  if constant:
    return Verdict.CONSTANT
  if proportional:
    return Verdict.PROPORTIONAL
  if not_zero and not_one:
    return Verdict.NEITHER
  if not_one:
    return Verdict.NOT_PROPORTIONAL
  return Verdict.NOT_CONSTANT if not_zero else Verdict.UNDECIDED


def _one_sided(deviance_B, distance_B, degrees_B) -> np.ndarray:
  """Returns the chance of an estimate at least so far above the value.

  The inverse of `critical_deviance`, signed by the side of the estimate; 1/2
  without degrees of freedom.
  """
  safe_B = np.maximum(degrees_B, 1)
  t_B = np.sqrt(safe_B * np.expm1(np.minimum(deviance_B / safe_B, 500)))
  p_B = scipy.stats.t.sf(np.sign(distance_B) * t_B, safe_B)
  return np.where(degrees_B >= 1, p_B, 0.5)


def _check(margin: float, amount_N) -> None:
  if not margins.LEAST < margin < margins.MOST:
    raise ValueError(
      f"margin {margin} does not lie between {margins.LEAST:g} and "
      f"{margins.MOST:g}"
    )
  if not np.all(np.asarray(amount_N, float) > 0):
    raise ValueError("amounts must be above 0")


def _nothing(reason: str, margin: float, level: float) -> Elasticity:
  return Elasticity(
    verdict=Verdict.UNDECIDED,
    reason=reason,
    margin=margin,
    estimate=math.nan,
    interval=Interval(-math.inf, math.inf, level),
    equivalence_interval=Interval(-math.inf, math.inf, 2 * level - 1),
    p_constant=1.0,
    p_proportional=1.0,
    laws={},
    log_log_elasticities=None,
    p_straight=None,
    line=None,
  )


def _reason(verdict, tests, interval, equivalence, margin) -> str:
  wide, narrow = _ends(interval), _ends(equivalence)
  percent = f"the {100 * equivalence.level:.3g} % interval, {narrow}, lies"
  tail = f"{100 * interval.level:.3g} % interval {wide}"
  zero, one = (_typeset(f"{p_B[0]:.2g}") for p_B in (tests.zero_B, tests.one_B))
  return {
    Verdict.CONSTANT: f"{percent} within ±{margin:g}",
    Verdict.PROPORTIONAL: f"{percent} within 1 ± {margin:g}",
    Verdict.NEITHER: f"0 (p = {zero}) and 1 (p = {one}) are rejected; " + tail,
    Verdict.NOT_PROPORTIONAL: f"1 is rejected (p = {one}), 0 is neither "
    f"rejected nor shown; {tail}",
    Verdict.NOT_CONSTANT: f"0 is rejected (p = {zero}), 1 is neither "
    f"rejected nor shown; {tail}",
    Verdict.UNDECIDED: f"neither 0 nor 1 is rejected; {tail}",
  }[verdict]


def _ends(interval: Interval) -> str:
  return _typeset(f"{interval.low:.2f} to {interval.high:.2f}")


def _typeset(numbers: str) -> str:
  """Returns numbers with the signs that a reader knows."""
  signs = {"-": "\N{MINUS SIGN}", "inf": "\N{INFINITY}"}
  for ascii_sign, sign in signs.items():
    numbers = numbers.replace(ascii_sign, sign)
  return numbers
