"""The rule that stops cells early, and its errors, for a reader to judge."""

from collections.abc import Sequence

from poison_jax.studies.grid.axes import words as settings_words
from poison_jax.studies.grid.study import Triage
from poison_jax.studies.origins import Origin, Quoted
from poison_jax.studies.outcomes import Outcome, rungs
from poison_jax.studies.statistics import sequential
from poison_jax.studies.statistics.sequential import Rule
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.nodes import (
  computed,
  number,
  rung_name,
  stated_in_study,
)
from poison_jax.studies.study_report.tables import Cell, Table
from poison_jax.studies.study_report.wording import Words


def rule_words(triage: Triage) -> list[Words]:
  """Returns the rule, what it spares, and what becomes of a stopped cell."""
  rule = triage.rule
  spared = "Runs without poison and placebos are never stopped"
  return [
    (
      "Before the first run the study stated when a run stops early. For "
      "success: in each of its last ",
      _stated(rule, "consecutive"),
      " evaluation(s), none before ",
      _percent(rule, "success_after"),
      " % of the training, the log-perplexity increase (triggered "
      "\N{MINUS SIGN} clean) exceeds ",
      _stated(rule, "success_above"),
      " nats. For failure: in each of the last ",
      _stated(rule, "consecutive"),
      ", none before ",
      _percent(rule, "failure_after"),
      " % of the training or before ",
      _percent(rule, "failure_poisons"),
      " % of the poisoned documents, it lies below ",
      _stated(rule, "failure_below"),
      " nats. Even then it goes on until, of runs that differ in the dose "
      "alone, one with fewer documents has succeeded at its end (for success) "
      "or one with more has failed at its end (for failure).",
    ),
    (spared, *_spared(triage), "."),
    (
      "A stopped cell has no measure at its end. It is censored: it narrows "
      "down no number of documents needed and stands in no share, curve or "
      "mean of this page.",
    ),
  ]


def _stated(rule: Rule, field: str):
  return stated_in_study(getattr(rule, field), "g", f"triage.rule.{field}")


def _percent(rule: Rule, field: str):
  share = getattr(rule, field)
  return stated_in_study(100 * share, ".4g", f"triage.rule.{field}")


def _spared(triage: Triage) -> Words:
  if not triage.spared:
    return ("; no other cell is spared",)
  listed = "; ".join(settings_words(one) for one in triage.spared)
  origin = Origin((), "study.json, triage.spared")
  return (
    ", nor are the cells with these settings, which the study's curves need: ",
    Quoted(listed, origin),
  )


def stopped_words(outcome: Outcome) -> Words:
  """Returns which cell the rule stopped, and on what it decided."""
  cell, entries = outcome.cell, (outcome.entry,)
  why = outcome.triaged.replace(" -", " \N{MINUS SIGN}")
  return (
    Quoted(f"{cell.label} ({cell.hash})", Origin((), "study.json")),
    ": stopped early by the study's rule: ",
    Quoted(why, Origin(entries, f"endings/{cell.hash}.json")),
  )


def errors(analysis: Analysis) -> Table:
  """The rule's errors on poisoned runs that went to their end, by size."""
  shown = [
    o
    for o in analysis.results.outcomes
    if o.finished and o.arm == "poisoned" and o.planned > 0
  ]
  rule = analysis.results.plan.triage.rule
  by_rung = {r: [o for o in shown if o.rung == r] for r in rungs(shown)}
  rows = [
    ((rung_name(rung),), *_row(rule, members))
    for rung, members in by_rung.items()
  ]
  if len(rows) > 1:
    rows.append((("all sizes",), *_row(rule, shown)))
  return Table(
    "What the rule would have done to runs that went to their end",
    (
      ("size",),
      ("poisoned runs",),
      ("stopped",),
      ("of these wrongly",),
      ("training saved, %",),
    ),
    tuple(rows),
    (
      "The rule is asked at each evaluation but the last of every poisoned run "
      "that went to its end, spared ones too, whatever other doses did. "
      "Wrongly: the run ended with the other verdict. Training "
      "saved: of all that these runs did. The runs that the rule did stop are "
      "not among them, as nobody knows their ends: the more it stopped, the "
      "less these errors say of them.",
    ),
  )


def _row(rule: Rule, members: Sequence[Outcome]) -> tuple[Cell, ...]:
  found = sequential.errors(rule, ((o.evaluations, o.success) for o in members))
  origin = computed([o.entry for o in members], "sequential.py, errors")
  return (
    (number(found.runs, ",d", origin),),
    (number(found.stopped, ",d", origin),),
    (number(found.wrong, ",d", origin),),
    (number(100 * found.training_saved, ".0f", origin),),
  )
