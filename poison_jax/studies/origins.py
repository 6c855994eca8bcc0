"""Numbers that carry their origin: run, config, ledger, code and command.

A report is made of these. `page` refuses a digit that comes without one, so a
number whose origin nobody knows can't reach a reader.
"""

import dataclasses
from collections.abc import Sequence

from poison_jax.studies.runs import Run

# An origin of more runs names them by their letters.
_WRITTEN_OUT = 3


@dataclasses.dataclass(frozen=True)
class Entry:
  """One run as the origins name it.

  Attributes:
    letter: A, B, ...: short for it on the page.
    run: the run.
  """

  letter: str
  run: Run

  def describe(self) -> str:
    """Returns one line: folder, hashes, code version and command."""
    run = self.run
    ledger = run.ledger.hash if run.ledger else "not written yet"
    return (
      f"run {self.letter}: {run.path}; config {run.config_hash}; "
      f"ledger {ledger}; code {run.code_version}; command: {run.command}"
    )


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where a number comes from.

  Attributes:
    entries: the runs it was measured in; none for a stated constant.
    source: the file, step and key; for a constant, who states it.
  """

  entries: tuple[Entry, ...]
  source: str

  def __post_init__(self):
    if not self.source.strip():
      raise ValueError("an origin must name its source")

  def describe(self) -> str:
    """Returns one line that names the source and each run.

    Of many runs the letters: the page lists their hashes and commands once.
    """
    if len(self.entries) > _WRITTEN_OUT:
      letters = " ".join(entry.letter for entry in self.entries)
      return (
        f"{self.source}; {len(self.entries)} runs, listed with hashes, code "
        f"and command at the end of this page: {letters}"
      )
    return "; ".join([self.source, *(e.describe() for e in self.entries)])


@dataclasses.dataclass(frozen=True)
class Number:
  """A number on its way to a reader.

  Attributes:
    value: the number itself, unrounded.
    format: how it is shown, a format specification such as ".1f".
    origin: where it comes from.
  """

  value: float
  format: str
  origin: Origin

  def __post_init__(self):
    if not isinstance(self.origin, Origin):
      raise TypeError(f"the number {self.value!r} has no origin")
    format(self.value, self.format)  # Raises here, where the cause is near.

  def __str__(self) -> str:
    return format(self.value, self.format).replace("-", "\N{MINUS SIGN}")


@dataclasses.dataclass(frozen=True)
class Quoted:
  """Text shown as it is, digits and all: a path, a setting, a generation."""

  text: str
  origin: Origin

  def __post_init__(self):
    if not isinstance(self.origin, Origin):
      raise TypeError(f"the quotation {self.text!r} has no origin")


def make_entries(runs: Sequence[Run]) -> list[Entry]:
  """Letters the runs in their order: A to Z, then AA, AB, ..."""

  def letter(i: int) -> str:
    tail = chr(ord("A") + i % 26)
    return tail if i < 26 else letter(i // 26 - 1) + tail

  return [Entry(letter(i), run) for i, run in enumerate(runs)]


def stated(value: float, spec: str, by: str) -> Number:
  """Returns a constant that a rule or a paper states, not a measurement."""
  return Number(value, spec, Origin((), by))


def measured(value: float, spec: str, entry: Entry, source: str) -> Number:
  """Returns a number out of one run."""
  return Number(value, spec, Origin((entry,), source))


def perplexity_format(value: float) -> str:
  """Returns a specification that shows about three digits."""
  if abs(value) >= 100:
    return ",.0f"
  return ".1f" if abs(value) >= 10 else ".2f"
