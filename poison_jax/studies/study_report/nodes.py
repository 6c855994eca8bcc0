"""Numbers and quotations of a study, each with the runs behind it."""

import math
from collections.abc import Sequence

from poison_jax.studies.origins import Entry, Number, Origin, Quoted
from poison_jax.studies.outcomes import Rung
from poison_jax.studies.page import Node, element
from poison_jax.studies.statistics.intervals import Interval

DASH = "\N{EM DASH}"
_STATISTICS = "poison_jax/studies/statistics"


def of(entries: Sequence[Entry], source: str) -> Origin:
  """Returns an origin in runs, each once."""
  return Origin(tuple({e.letter: e for e in entries}.values()), source)


def computed(entries: Sequence[Entry], function: str) -> Origin:
  """Returns the origin of a statistic: the function and its runs."""
  return of(entries, f"{_STATISTICS}/{function}")


def number(value: float, spec: str, origin: Origin) -> Node:
  """Returns a number; one that is infinite as its sign, nan as a dash."""
  if math.isnan(value):
    return DASH
  if math.isinf(value):
    sign = "" if value > 0 else "\N{MINUS SIGN}"
    return Quoted(f"{sign}\N{INFINITY}", origin)
  return Number(value, spec, origin)


def optional(value: float | None, spec: str, origin: Origin) -> Node:
  """Returns a number, or a dash where it was not measured."""
  return DASH if value is None else number(value, spec, origin)


def interval(given: Interval, spec: str, origin: Origin) -> tuple[Node, ...]:
  """Returns "[low, high]"."""
  return (
    "[",
    number(given.low, spec, origin),
    ",\N{NO-BREAK SPACE}",
    number(given.high, spec, origin),
    "]",
  )


def soft(*nodes: Node) -> Node:
  """Returns nodes in the small print of an interval."""
  return element("span", *nodes, attributes={"class": "ci"})


def percent(level: float) -> Number:
  """Returns a level of confidence in percent."""
  return Number(
    100 * level, "g", Origin((), "poison_jax/studies/verdict.py, LEVEL")
  )


def stated_in_study(value: float, spec: str, field: str) -> Number:
  """Returns a number that the study stated before its runs."""
  return Number(value, spec, Origin((), f"study.json, {field}"))


def count(value: int, what: str) -> Number:
  """Returns how many of something this report counts."""
  return Number(value, ",d", Origin((), f"counted by this report: {what}"))


def rung_name(rung: Rung) -> Quoted:
  """Returns a rung's label."""
  return Quoted(rung.label, Origin((), "study.json, settings of the cells"))


def text(nodes: Sequence[Node]) -> str:
  """Returns nodes as plain text, for a terminal."""
  return "".join(n.text if isinstance(n, Quoted) else str(n) for n in nodes)
