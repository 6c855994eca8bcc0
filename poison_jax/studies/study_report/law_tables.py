"""Tables of how the number of documents depends on tokens and parameters."""

from poison_jax.studies.statistics.laws import Law
from poison_jax.studies.study_report import together
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.nodes import (
  DASH,
  computed,
  number,
  optional,
  percent,
)
from poison_jax.studies.study_report.tables import Cell, Table
from poison_jax.studies.verdict import LEVEL

_LAWS = {
  Law.COUNT: "a constant count",
  Law.SHARE: "a constant share",
  Law.LOG_LOG: "log log of the clean tokens (the paper's appendix)",
  Law.FREE: "free elasticity",
}


def laws(analysis: Analysis) -> Table:
  """The rival laws of the number of documents against clean tokens."""
  test = analysis.by_tokens
  origin = computed(analysis.entries, "elasticity.py, assess")
  rows = [
    (
      (_LAWS[law],),
      _law_elasticity(analysis, law),
      (number(fit.objective, ".2f", origin),),
      (number(fit.aic_difference, ".1f", origin),),
      (optional(fit.p_value, ".2g", origin),),
    )
    for law, fit in test.laws.items()
  ]
  caption: Cell = (
    "Elasticity: the power of the clean tokens with which the number of "
    "documents grows, with its ",
    percent(test.interval.level),
    " % profile-likelihood interval. Akaike's difference: the best law has "
    "none, one of more than about ten is out. The last column is the chance "
    "of data at least as "
    "far from the law, against the free one; the log log law is no special "
    "case of that. Equivalence to a constant count: ",
    number(test.p_constant, ".2g", origin),
    "; to a constant share: ",
    number(test.p_proportional, ".2g", origin),
    " (the larger of two one-sided tests).",
  )
  return Table(
    "Rival laws",
    (
      ("law",),
      ("elasticity",),
      ("log-likelihood, penalised",),
      ("Akaike's difference",),
      ("p against free",),
    ),
    tuple(rows),
    caption,
  )


def _law_elasticity(analysis: Analysis, law: Law) -> Cell:
  test = analysis.by_tokens
  origin = computed(analysis.entries, "elasticity.py, assess")
  if law is Law.FREE:
    return together.alone(analysis, test)
  if law is Law.LOG_LOG:
    low, high = test.log_log_elasticities
    return (number(low, ".3f", origin), " to ", number(high, ".3f", origin))
  return (number(float(law is Law.SHARE), "g", origin), " by definition")


def amounts(analysis: Analysis) -> Table:
  """Elasticities by clean tokens and by parameters, marginal and joint."""
  joint = analysis.joint
  rows = tuple(
    (
      (name,),
      together.alone(analysis, test),
      (test.verdict.value,),
      (DASH,) if slope is None else together.fixed(analysis, slope),
    )
    for name, test, slope in (
      ("clean tokens", analysis.by_tokens, joint.by_tokens),
      ("parameters", analysis.by_parameters, joint.by_parameters),
    )
    if test.line is not None
  )
  caption: Cell = (
    "The power of each with which the number of documents grows, with its ",
    percent(LEVEL),
    " % profile-likelihood interval. By one alone it is marginal: it takes in "
    "what the other does, as far as the two grow together in this study. With "
    "the other held fixed: both in one fit.",
  )
  if joint.reason:
    caption += (" Not told apart: ", together.reason(analysis), ".")
  return Table(
    "Clean tokens and parameters",
    (
      ("elasticity by",),
      ("alone",),
      ("verdict on it alone",),
      ("with the other held fixed",),
    ),
    rows,
    caption,
  )
