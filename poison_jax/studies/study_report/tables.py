"""The tables of a study's report."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from poison_jax.studies.grid.pricing import short
from poison_jax.studies.grid.versions import code_hash
from poison_jax.studies.origins import Entry, Number, Origin, Quoted
from poison_jax.studies.outcomes import Rung
from poison_jax.studies.page import Node
from poison_jax.studies.statistics import interval_regression
from poison_jax.studies.statistics.thresholds_by_dose import (
  Censored,
  Censoring,
)
from poison_jax.studies.study_report.analysis import Analysis, Group
from poison_jax.studies.study_report.nodes import (
  DASH,
  computed,
  count,
  interval,
  number,
  of,
  percent,
  rung_name,
  soft,
)
from poison_jax.studies.verdict import LEVEL

Cell = tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of the page.

  Attributes:
    title: what it shows, without digits.
    head: a cell a column.
    rows: their cells; the first names the row.
    caption: how to read it.
  """

  title: str
  head: tuple[Cell, ...]
  rows: tuple[tuple[Cell, ...], ...]
  caption: Cell


def success(analysis: Analysis) -> Table:
  """Successes by rung and dose, with Clopper and Pearson's intervals."""
  groups = {(g.rung, g.dose): g for g in analysis.groups}
  columns = sorted({g.dose for g in analysis.groups})
  rows = tuple(
    (
      (rung_name(rung),),
      *(_share(groups.get((rung, dose))) for dose in columns),
    )
    for rung in _rungs(analysis)
  )
  return Table(
    "Runs that succeed, by size and poisoned documents",
    (("size",), *((count(dose, "a dose of the study"),) for dose in columns)),
    rows,
    (
      "Success: the mean perplexity increase exceeds ",
      *_thresholds(analysis),
      ". A run is a seed; in brackets the ",
      percent(LEVEL),
      " % interval of Clopper and Pearson for the chance of success.",
      *mixed_code(analysis),
    ),
  )


def mixed_code(analysis: Analysis) -> Cell:
  """Says which versions of the code trained the cells; () where it is one."""
  trained: dict[str, list[Entry]] = {}
  for entry in analysis.results.entries:
    for version in entry.run.code_version.split(" "):
      trained.setdefault(code_hash(version), []).append(entry)
  if len(trained) < 2:
    return ()
  words: list[Node] = [" More than one version of the code trained these cells"]
  for version, entries in trained.items():
    source = of(entries, "endings/, code_versions; else config.json")
    words += [
      ": " if len(words) == 1 else "; ",
      Quoted(version, source),
      " (",
      Number(len(entries), "d", source),
      " cell(s))",
    ]
  return (*words, ". What differs between cells may be the code's doing.")


def success_words(group: Group | None) -> Cell:
  """Returns "2 of 3"."""
  if group is None:
    return (DASH,)
  origin = of(group.entries, "metrics.jsonl, eval/perplexity_increase, counted")
  return (
    Number(group.share.successes, "d", origin),
    " of ",
    Number(group.share.runs, "d", origin),
  )


def _share(group: Group | None) -> Cell:
  if group is None:
    return (DASH,)
  origin = computed(group.entries, "proportions.py, share")
  ends = interval(group.share.interval, ".2f", origin)
  return (*success_words(group), " ", soft(*ends))


def needed(analysis: Analysis) -> Table:
  """Documents needed by rung and seed, and over the seeds of a rung."""
  seeds = sorted({m.seed for m in analysis.ladders})
  settings = Origin((), "study.json, settings of the cells")
  found = {(m.rung, m.seed): m for m in analysis.ladders}
  rows = []
  for rung in _rungs(analysis):
    ladders = [m for m in analysis.ladders if m.rung == rung]
    if ladders:
      cells = (found.get((rung, seed)) for seed in seeds)
      rows.append(
        (
          (rung_name(rung),),
          (Quoted(short(rung.tokens), of(_of(ladders), "ledger.parquet")),),
          *((DASH,) if m is None else _bounds(m.n50, m.entries) for m in cells),
          _median(ladders),
        )
      )
  return Table(
    "Poisoned documents that a backdoor takes, by size and seed",
    (
      ("size",),
      ("clean tokens",),
      *(("seed ", Quoted(str(seed), settings)) for seed in seeds),
      ("all seeds",),
    ),
    tuple(rows),
    (
      "From the last dose that was not enough to the first that was; “above” "
      "and “at most”: the number lies beyond the study's doses (censored). All "
      "seeds: the median over seeds by interval-censored regression, with its ",
      percent(LEVEL),
      " % profile-likelihood interval, in which an open end means that the "
      "doses set none.",
    ),
  )


def _of(ladders) -> list[Entry]:
  return [entry for ladder in ladders for entry in ladder.entries]


def _bounds(found: Censored, entries: Sequence[Entry]) -> Cell:
  origin = computed(entries, "thresholds_by_dose.py, n50")
  low, high = (number(end, "g", origin) for end in (found.low, found.high))
  words: Cell = {
    Censoring.INTERVAL: (low, " to ", high),
    Censoring.RIGHT: ("above ", low),
    Censoring.LEFT: ("at most ", high),
    Censoring.UNOBSERVED: ("unknown",),
  }[found.censoring]
  if not found.monotone:
    words += (" (not monotone)",)
  return words


def _median(ladders) -> Cell:
  known = [m for m in ladders if m.n50.censoring is not Censoring.UNOBSERVED]
  if not known:
    return (DASH,)
  fit = interval_regression.fit(
    [m.n50.low for m in known],
    [m.n50.high for m in known],
    np.empty((len(known), 0)),
  )
  origin = computed(_of(known), "interval_regression.py, fit, n50_interval")
  ends = interval_regression.n50_interval(fit, [], level=LEVEL)
  if all(math.isinf(m.n50.high) for m in known):
    return ("above the doses",)
  if all(m.n50.low == 0 for m in known):
    return ("below the doses",)
  return (
    number(fit.n50([]), ".0f", origin),
    " ",
    soft(*interval(ends, ".0f", origin)),
  )


def _thresholds(analysis: Analysis) -> Cell:
  words: list[Node] = []
  for threshold in analysis.thresholds:
    entries = [
      o.entry for o in analysis.results.outcomes if o.threshold == threshold
    ]
    words += [" or "] if words else []
    words.append(
      Number(threshold, "g", of(entries, "config.json, evaluation.threshold"))
    )
  return tuple(words)


def _rungs(analysis: Analysis) -> list[Rung]:
  return [
    r for r in analysis.rungs if any(g.rung == r for g in analysis.groups)
  ]
