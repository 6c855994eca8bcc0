"""The verdict of a study in sentences that a newcomer understands."""

import math

from poison_jax.studies.origins import Origin, Quoted
from poison_jax.studies.outcomes import Outcome
from poison_jax.studies.page import Node
from poison_jax.studies.results import Results
from poison_jax.studies.statistics.elasticity import Elasticity, Verdict
from poison_jax.studies.statistics.thresholds_by_dose import Censoring
from poison_jax.studies.study_report import leaks, together
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.nodes import (
  computed,
  count,
  number,
  rung_name,
  stated_in_study,
)
from poison_jax.studies.verdict import LEVEL

Words = tuple[Node, ...]

_SUBJECT = "The number of poisoned documents that a backdoor takes"


def headline(analysis: Analysis) -> str:
  """Returns the verdict of the pre-stated test as a sentence."""
  test = analysis.by_tokens
  slower = test.estimate < 1
  grows = test.estimate > 0
  match test.verdict:
    case Verdict.CONSTANT:
      words = (
        f"{_SUBJECT} does not depend on the amount of clean data, within the "
        "margin stated before the runs: it is a constant count."
      )
    case Verdict.PROPORTIONAL:
      words = (
        f"{_SUBJECT} grows in proportion to the clean data, within the margin "
        "stated before the runs: it is a constant share."
      )
    case Verdict.NEITHER if not grows:
      words = f"{_SUBJECT} falls as the clean data grow."
    case Verdict.NEITHER if slower:
      words = (
        f"{_SUBJECT} grows with the clean data, but less than in proportion: "
        "neither a constant count nor a constant share."
      )
    case Verdict.NEITHER:
      words = f"{_SUBJECT} grows faster than the clean data."
    case Verdict.NOT_PROPORTIONAL:
      pace = "does not grow in proportion to" if slower else "outgrows"
      words = (
        f"{_SUBJECT} {pace} the clean data, so it is not a constant share; "
        "whether it is a constant count stays open."
      )
    case Verdict.NOT_CONSTANT:
      way = "grows" if grows else "falls"
      words = (
        f"{_SUBJECT} {way} with the clean data, so it is not a constant count; "
        "whether it is a constant share stays open."
      )
    case Verdict.UNDECIDED:
      words = (
        "Undecided: these runs do not tell whether the number of poisoned "
        "documents that a backdoor takes grows with the clean data."
      )
  if is_complete(analysis.results):
    return words
  return f"So far, with cells missing: {words[0].lower()}{words[1:]}"


def is_complete(results: Results) -> bool:
  """Says whether no cell is to go on: each has its end, or was triaged."""
  return not results.missing and not results.unfinished


def explanation(analysis: Analysis) -> Words:
  """Returns what the verdict rests on."""
  test = analysis.by_tokens
  origin = computed(analysis.entries, "elasticity.py, assess")
  rule = Quoted(test.reason, origin)
  if test.line is None:
    words: Words = ("No elasticity is given, since it is not known: ", rule)
  else:
    words = (*_tenfold(test, origin), "The rule that applied: ", rule)
  return (
    *words,
    ". Margin of “constant”, stated before the runs: an elasticity within ±",
    stated_in_study(test.margin, "g", "margin"),
    ".",
  )


def _tenfold(test: Elasticity, origin: Origin) -> Words:
  """Returns what ten times the clean data do to the number of documents."""
  low, high = (
    number(_power(end), spec, origin)
    for end, spec in ((test.interval.low, ".2g"), (test.interval.high, ".3g"))
  )
  ends: Words = ("[", low, ",\N{NO-BREAK SPACE}", high, "]")
  beside: Words = (
    ", where ",
    Quoted("1", Origin((), "the definition of a constant count")),
    " would be a constant count and ",
    Quoted("10", Origin((), "the definition of a constant share")),
    " a constant share. ",
  )
  start = "Ten times the clean data multiply the number of documents by "
  if math.isinf(test.interval.low) and math.isinf(test.interval.high):
    return (
      "By how much more clean data multiply the number of documents is not "
      "known: the interval is open on both sides. ",
    )
  if math.isinf(test.estimate):
    return (
      start,
      "a factor within ",
      *ends,
      *beside,
      "None is the most likely: only one amount of clean data has seeds that "
      "change between two doses. ",
    )
  return (
    start,
    number(10**test.estimate, ".3g", origin),
    " ",
    *ends,
    *beside,
  )


def _power(exponent: float) -> float:
  """Returns ten to an exponent, of which very large ones are infinite."""
  if abs(exponent) > 15:
    return math.inf if exponent > 0 else 0.0
  return 10**exponent


def limits(analysis: Analysis) -> list[Words]:
  """Returns what the verdict can't carry, a sentence each."""
  found = [_unfinished(analysis.results), _triaged(analysis.results)]
  found += [_seeds(analysis), _censored(analysis), _odd_ladders(analysis)]
  found += [_scatter(analysis), together.by_size(analysis)]
  found += leaks.words(analysis)
  return [words for words in found if words]


def _unfinished(results: Results) -> Words:
  cells = len(results.plan.cells)
  done = sum(o.finished for o in results.outcomes)
  if done == cells:
    return ("All ", count(cells, "cells"), " cells of the study are finished.")
  words: Words = (
    count(done, "finished cells"),
    " of ",
    count(cells, "cells"),
    " cells are finished",
  )
  if is_complete(results):
    return (*words, ", and all others were stopped early.")
  words += (
    "; verdict and tables rest on these alone, and may change: the test was "
    "stated for the whole study",
  )
  if results.unfinished:
    words += (
      ". The curves over training also show ",
      count(len(results.unfinished), "unfinished cells with an evaluation"),
      " unfinished ones",
    )
  return (*words, ".")


def _triaged(results: Results) -> Words:
  """Returns how many cells the study's rule stopped; () where none."""
  stopped = len(results.triaged)
  if not stopped:
    return ()
  words = (
    " cell was stopped early by the rule stated before the study: it counts"
    if stopped == 1
    else " cells were stopped early by the rule stated before the study: they "
    "count"
  )
  return (
    count(stopped, "cells stopped by the study's rule"),
    words,
    " as censored. A censored cell narrows down no number of documents needed "
    "and enters no share of success, no curve and no mean. Where some runs of "
    "a dose were stopped, shares and means are of its others: unless these "
    "were spared they went on because of their increase, and are no fair "
    "sample of the dose.",
  )


def damage(results: Results) -> Words:
  """Returns how many cells can't be read; () where none."""
  if not results.damaged:
    return ()
  return (
    count(len(results.damaged), "cells that can't be read"),
    " cell(s) of the study can't be read and were left out; the reasons stand "
    "under “What is missing”.",
  )


def _seeds(analysis: Analysis) -> Words:
  if not analysis.ladders:
    return ()
  words: list[Node] = ["Seeds: "]
  for rung in analysis.rungs:
    seeds = sorted({m.seed for m in analysis.ladders if m.rung == rung})
    if seeds:
      words += ["; "] if len(words) > 1 else []
      words += [rung_name(rung), " has ", count(len(seeds), "seeds")]
  return (
    *words,
    ". A seed is one observation, however many prompts it answers; with so "
    "few, all successes or all failures still leave a wide interval.",
  )


def _censored(analysis: Analysis) -> Words:
  kinds = [m.n50.censoring for m in analysis.ladders]
  if not kinds:
    return ()
  entries = analysis.entries
  origin = computed(entries, "thresholds_by_dose.py, n50")
  beyond = kinds.count(Censoring.RIGHT)
  below = kinds.count(Censoring.LEFT)
  return (
    "Ladders of doses, one a seed and size: ",
    number(len(kinds), ",d", origin),
    ", of which ",
    number(kinds.count(Censoring.INTERVAL), ",d", origin),
    " change from failure to success between two doses, ",
    number(beyond, ",d", origin),
    " fail up to the highest dose measured and ",
    number(below, ",d", origin),
    " succeed from the lowest measured on. Of the last two kinds only one "
    "bound is known (censored).",
  )


def _odd_ladders(analysis: Analysis) -> Words:
  origin = computed(analysis.entries, "thresholds_by_dose.py, n50")
  falling = [m for m in analysis.ladders if not m.n50.monotone]
  clean = [m for m in analysis.ladders if m.n50.clean_success]
  words: Words = ()
  if falling:
    words += (
      number(len(falling), ",d", origin),
      " seed(s) fail at a dose above one that succeeds; such a seed counts "
      "with the widest interval in question. ",
    )
  if clean:
    words += (
      number(len(clean), ",d", origin),
      " seed(s) count as backdoored without any poison: there the measure "
      "shows something else. ",
    )
  return words


def _scatter(analysis: Analysis) -> Words:
  """Returns a warning where sizes differ by more than their seeds."""
  p_value = analysis.by_tokens.p_straight
  if p_value is None or p_value >= 1 - LEVEL:
    return ()
  origin = computed(analysis.entries, "laws.py, straightness")
  return (
    "The sizes scatter about every law by more than their seeds do (p = ",
    number(p_value, ".2g", origin),
    "): the interval, which knows of seeds alone, is too narrow.",
  )


def why_unfinished(outcome: Outcome) -> Words:
  """Returns how far a cell got."""
  origin = Origin((outcome.entry,), "metrics.jsonl, last evaluation")
  return (
    "evaluated at step ",
    number(outcome.step, ",d", origin),
    " of ",
    number(outcome.entry.run.steps, ",d", origin),
    "" if outcome.step < outcome.entry.run.steps else ", and then failed",
  )
