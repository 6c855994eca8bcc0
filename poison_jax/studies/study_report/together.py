"""Elasticities in words: of one amount alone, and with the other held fixed."""

import math

from poison_jax.studies.origins import Origin, Quoted
from poison_jax.studies.page import Node
from poison_jax.studies.statistics.elasticity import Elasticity
from poison_jax.studies.statistics.joint_elasticity import Slope
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.nodes import (
  computed,
  interval,
  number,
)

Words = tuple[Node, ...]


def by_size(analysis: Analysis) -> Words:
  """Returns the sizes' range, and what tokens and parameters do apart."""
  rungs = list(dict.fromkeys(m.rung for m in analysis.ladders))
  if len(rungs) < 2:
    return ()
  origin = Origin((), "config.json of the cells")
  said: Words = (
    "The sizes reach from ",
    number(min(r.parameters for r in rungs), ",d", origin),
    " to ",
    number(max(r.parameters for r in rungs), ",d", origin),
    " parameters; the runs say nothing of other sizes.",
  )
  if analysis.by_tokens.line is None:
    return said
  said += (
    " The elasticity by clean tokens is marginal: parameters are not held "
    "fixed in it.",
  )
  joint = analysis.joint
  if joint.reason:
    return (
      *said,
      " What the parameters do can't be told from what the clean tokens do "
      "here: ",
      reason(analysis),
      ".",
    )
  return (
    *said,
    " At fixed parameters it is ",
    *fixed(analysis, joint.by_tokens),
    ", and that by parameters at fixed clean tokens ",
    *fixed(analysis, joint.by_parameters),
    ".",
  )


def reason(analysis: Analysis) -> Quoted:
  """Returns why tokens and parameters can't be told apart."""
  origin = computed(analysis.entries, "joint_elasticity.py, assess")
  return Quoted(analysis.joint.reason, origin)


def alone(analysis: Analysis, test: Elasticity) -> Words:
  """Returns the elasticity by one amount with its interval."""
  origin = computed(analysis.entries, "elasticity.py, assess")
  ends = interval(test.interval, ".2f", origin)
  if math.isinf(test.estimate):
    return ("no finite one is the most likely ", *ends)
  return (number(test.estimate, ".2f", origin), " ", *ends)


def fixed(analysis: Analysis, slope: Slope) -> Words:
  """Returns the elasticity by one amount at a fixed other."""
  origin = computed(analysis.entries, "joint_elasticity.py, assess")
  return (
    number(slope.estimate, ".2f", origin),
    " ",
    *interval(slope.interval, ".2f", origin),
  )
