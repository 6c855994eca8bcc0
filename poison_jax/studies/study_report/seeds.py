"""What seeds and poison draws do, and how many seeds would settle it."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from poison_jax.studies.origins import Quoted
from poison_jax.studies.outcomes import Outcome
from poison_jax.studies.page import Node
from poison_jax.studies.statistics import interval_regression, power, variance
from poison_jax.studies.statistics.elasticity import Verdict
from poison_jax.studies.statistics.power import Design, Row
from poison_jax.studies.statistics.proportions import Share
from poison_jax.studies.statistics.variance import Component, Components
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.nodes import (
  DASH,
  computed,
  count,
  interval,
  number,
  percent,
  soft,
)
from poison_jax.studies.study_report.tables import Table
from poison_jax.studies.verdict import LEVEL

_MORE_SEEDS = (5, 10, 20)  # Of each size, beside the study's own.
_TRUTHS = (0.0, 0.5, 1.0)  # Elasticities to simulate.
_REPLICATES = 200
_SHOWN = (
  Verdict.CONSTANT,
  Verdict.NOT_PROPORTIONAL,
  Verdict.NEITHER,
  Verdict.NOT_CONSTANT,
  Verdict.PROPORTIONAL,
  Verdict.UNDECIDED,
)


@dataclasses.dataclass(frozen=True)
class Draws:
  """The runs with pinned draws, and what they say of the variances."""

  outcomes: tuple[Outcome, ...]
  components: Components


def compare_draws(analysis: Analysis) -> Draws:
  """Returns the variances of draws and seeds, of runs with pinned draws."""
  members = [
    o
    for o in analysis.results.outcomes
    if o.finished and o.arm == "poisoned" and o.draw and o.nats is not None
  ]
  return Draws(
    tuple(members),
    variance.components(
      [o.nats for o in members],
      [o.draw for o in members],
      [o.seed for o in members],
      [(o.rung.label, o.planned) for o in members],
      level=LEVEL,
    ),
  )


def variances(draws: Draws) -> Table:
  """The sources of variance of the increase."""
  found = draws.components
  entries = [o.entry for o in draws.outcomes]
  origin = computed(entries, "variance.py, components")
  sources = (
    ("poison draw", found.draw),
    ("training seed", found.seed),
    ("the rest of a run", found.residual),
  )
  caption: tuple[Node, ...] = (
    "Standard deviations of the increase in nats at the end, within runs of "
    "one size and dose, by restricted maximum likelihood; in brackets ",
    percent(LEVEL),
    " % profile intervals. Draw: which documents are the poison's and where "
    "they lie. From ",
    number(found.runs, "d", origin),
    " runs with pinned draws.",
  )
  if found.reason:
    caption += (" ", Quoted(found.reason, origin), ".")
  return Table(
    "Poison draws against training seeds",
    (("source",), ("standard deviation, nats",)),
    tuple(
      ((words,), _component(component, origin))
      for words, component in sources
      if draws.outcomes
    ),
    caption,
  )


def _component(component: Component | None, origin) -> tuple[Node, ...]:
  if component is None:
    return ("not told apart",)
  return (
    number(component.deviation, ".2f", origin),
    " ",
    *interval(component.interval, ".2f", origin),
  )


def power_table(analysis: Analysis) -> Table:
  """How often studies with more seeds would reach each verdict.

  Simulated with the study's sizes, each with the doses measured at it, and
  with the spread between seeds that its own fit has. No rows where nothing
  could be fitted.
  """
  title = "How many seeds would settle it"
  if analysis.by_tokens.line is None:
    return Table(title, (), (), ())
  design = _design(analysis)
  own = tuple(
    sum(m.rung == rung for m in analysis.ladders) for rung in _rungs(analysis)
  )
  tried = [own, *((n,) * len(own) for n in _MORE_SEEDS if n > max(own))]
  rows = power.power_table(
    design,
    elasticities=_TRUTHS,
    seeds=tried,
    margin=analysis.results.plan.margin,
    level=LEVEL,
    replicates=_REPLICATES,
    # Fixed, so that a report made again says the same.
    rng=np.random.default_rng(0),
  )
  origin = computed(analysis.entries, "power.py, power_table")
  verdicts = [v for v in _SHOWN if any(r.verdicts[v].successes for r in rows)]
  return Table(
    title,
    (
      ("seeds a size",),
      ("true elasticity",),
      *((verdict.value,) for verdict in verdicts),
    ),
    tuple(_power_row(row, verdicts, origin) for row in rows),
    (
      "Share of simulated studies, in percent, that reach each verdict, with "
      "the ",
      percent(LEVEL),
      " % interval of Clopper and Pearson; ",
      count(_REPLICATES, "simulated studies a row"),
      " studies a row, with the sizes of this one, each with the doses that "
      "were measured at it. They assume what this study's own fit says: a "
      "median of ",
      number(design.n50, ".0f", origin),
      " documents, and a standard deviation of its logarithm between seeds of ",
      number(design.sigma, ".2f", origin),
      " nats. An elasticity of zero is a constant count, of one a constant "
      "share.",
    ),
  )


def _design(analysis: Analysis) -> Design:
  ladders, rungs = analysis.ladders, _rungs(analysis)
  pooled = interval_regression.fit(
    [m.n50.low for m in ladders],
    [m.n50.high for m in ladders],
    np.empty((len(ladders), 0)),
  )
  return Design(
    amounts=tuple(float(rung.tokens) for rung in rungs),
    doses=tuple(
      tuple(sorted(float(g.dose) for g in analysis.groups if g.rung == rung))
      for rung in rungs
    ),
    n50=pooled.n50([]),
    sigma=analysis.by_tokens.line.sigma,
  )


def _rungs(analysis: Analysis):
  return [
    r for r in analysis.rungs if any(m.rung == r for m in analysis.ladders)
  ]


def _power_row(row: Row, verdicts: Sequence[Verdict], origin):
  seeds: list[Node] = []
  # One number where all sizes have as many.
  for n in row.seeds if len(set(row.seeds)) > 1 else row.seeds[:1]:
    seeds += [", "] if seeds else []
    seeds.append(number(n, "d", origin))
  return (
    tuple(seeds),
    (number(row.elasticity, "g", origin),),
    *(_percent(row.verdicts[verdict], origin) for verdict in verdicts),
  )


def _percent(share: Share, origin) -> tuple[Node, ...]:
  if not share.successes:
    return (DASH,)
  low, high = share.interval.low, share.interval.high
  return (
    number(100 * share.value, ".1f", origin),
    " ",
    soft(
      "[",
      number(100 * low, ".1f", origin),
      ",\N{NO-BREAK SPACE}",
      number(100 * high, ".1f", origin),
      "]",
    ),
  )
