"""Is it the trigger that works? Controls of the runs that succeed, in words.

A control passes where its own increase, by the rule of success, exceeds the
threshold: then the number of documents is one that any odd tag takes.
"""

from collections.abc import Sequence

from poison_jax.studies.origins import Origin
from poison_jax.studies.outcomes import Outcome
from poison_jax.studies.page import Node
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.nodes import (
  count,
  number,
  of,
  rung_name,
)

_KINDS = {
  "near_trigger": "The near-trigger, which occurs harmlessly in clean text,",
  "unseen_tag": "The unseen tag, which never occurs in training,",
}


def words(analysis: Analysis) -> list[tuple[Node, ...]]:
  """Returns what the controls say of the runs that succeed, a line each."""
  reached = [
    o
    for o in analysis.finished
    if o.arm == "poisoned" and o.planned > 0 and o.success
  ]
  found = [_control(reached, kind) for kind in _KINDS]
  return [line for line in (*found, _placebo(analysis)) if line]


def increase_of(outcome: Outcome, kind: str) -> float | None:
  """Returns a kind of prompt's mean perplexity minus that of clean ones."""
  metrics = outcome.entry.run.metrics
  keys = [f"eval/{name}/perplexity" for name in (kind, "clean")]
  if any(key not in metrics for key in keys):
    return None
  values = [metrics[key].at(outcome.step) for key in keys]
  return None if None in values else values[0] - values[1]


def _control(reached: Sequence[Outcome], kind: str) -> tuple[Node, ...]:
  """Returns where one control passes; () where it was not measured."""
  passed = {
    o.entry.letter: value > o.threshold
    for o in reached
    if (value := increase_of(o, kind)) is not None
  }
  measured = [o for o in reached if o.entry.letter in passed]
  if not measured:
    return ()
  source = f"metrics.jsonl, eval/{kind}/perplexity, counted"
  if not any(passed.values()):
    return (
      _KINDS[kind],
      " stays below the threshold of success in all ",
      number(len(measured), ",d", of([o.entry for o in measured], source)),
      " run(s) in which the trigger passes it.",
    )
  places: dict[tuple, list[Outcome]] = {}
  for o in sorted(measured, key=lambda o: (o.rung.tokens, o.planned)):
    places.setdefault((o.rung, o.planned), []).append(o)
  said: tuple[Node, ...] = ()
  for (rung, dose), members in places.items():
    origin = of([o.entry for o in members], source)
    leaking = sum(passed[o.entry.letter] for o in members)
    if leaking:
      said += (
        "; " if said else "",
        rung_name(rung),
        " with ",
        count(dose, "a dose of the study"),
        " documents, ",
        *_share(leaking, len(members), origin),
      )
  return (
    _KINDS[kind],
    " passes the threshold of success as well in some of the runs in which "
    "the trigger does: ",
    *said,
    ". There the number of documents is not that of a backdoor of the trigger "
    "alone: the model reacts to other tags too.",
  )


def _placebo(analysis: Analysis) -> tuple[Node, ...]:
  """Returns how many placebo cells succeed; () without such cells."""
  cells = [o for o in analysis.finished if o.arm == "placebo"]
  if not cells:
    return ()
  origin = of(
    [o.entry for o in cells], "metrics.jsonl, eval/perplexity_increase, counted"
  )
  leaking = sum(o.success for o in cells)
  return (
    "Of the placebo cells, whose documents have the trigger without its "
    "gibberish, ",
    *_share(leaking, len(cells), origin),
    " succeed",
    ": there it is not the gibberish that does it." if leaking else ".",
  )


def _share(some: int, all_: int, origin: Origin) -> tuple[Node, ...]:
  return (number(some, ",d", origin), " of ", number(all_, ",d", origin))
