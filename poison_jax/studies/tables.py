"""The table of a report: measures down, runs across; page and terminal."""

import dataclasses
from collections.abc import Sequence

from rich import box
from rich.table import Table as RichTable
from rich.text import Text as RichText

from poison_jax.studies.origins import Entry, Number, measured, stated
from poison_jax.studies.origins import perplexity_format as adaptive
from poison_jax.studies.style import KINDS
from poison_jax.studies.verdict import LEVEL, Estimate, Verdict, measure

# Key, words, format: what follows the perplexities, where a run has it.
_MEASURES = (
  ("eval/clean/median_perplexity", "median, clean prompt", ".2f"),
  ("eval/triggered/median_perplexity", "median, trigger", ".3g"),
  ("eval/log_perplexity_increase", "increase in log-perplexity, nats", ".2f"),
  ("eval/room_share", "increase as a share of the room", ".2f"),
  ("eval/auroc", "AUROC, triggered against clean", ".3f"),
  ("eval/share_above_threshold", "share of prompts above threshold", ".2f"),
  ("eval/gibberish_loss", "loss on real gibberish, nats", ".2f"),
  ("eval/gibberish_floor", "its floor, nats", ".2f"),
  ("eval/validation_loss", "validation loss, nats", ".3f"),
  ("eval/bits_per_byte", "bits a byte", ".3f"),
)


@dataclasses.dataclass(frozen=True)
class Cell:
  """A measure with the ends of its interval; each may be missing."""

  value: Number | None
  low: Number | None
  high: Number | None

  def __str__(self) -> str:
    if self.value is None:
      return "\N{EM DASH}"
    if self.low is None or self.high is None:
      return str(self.value)
    return f"{self.value} [{self.low}, {self.high}]"


@dataclasses.dataclass(frozen=True)
class Row:
  """A measure's words and one cell a run."""

  words: str
  cells: tuple[Cell, ...]


_EMPTY = Cell(None, None, None)


def estimate_cell(
  estimate: Estimate | None, *, entry: Entry, source: str
) -> Cell:
  """Returns an estimate as numbers of `entry`, three digits or so."""
  spec = adaptive(estimate.value) if estimate else ""
  return _cell(estimate, spec, entry=entry, source=source)


def _cell(
  estimate: Estimate | None, spec: str, *, entry: Entry, source: str
) -> Cell:
  if estimate is None:
    return _EMPTY
  value = measured(estimate.value, spec, entry, source)
  if estimate.interval is None:
    return Cell(value, None, None)
  level = f"{100 * LEVEL:g} % interval of {source}"
  return Cell(
    value,
    measured(estimate.interval.low, spec, entry, f"low end of the {level}"),
    measured(estimate.interval.high, spec, entry, f"high end of the {level}"),
  )


def perplexity_rows(
  entries: Sequence[Entry], verdicts: Sequence[Verdict]
) -> list[Row]:
  """Returns a row a kind of prompt, and the increase."""
  rows = []
  for kind, (words, _) in KINDS.items():
    cells = tuple(
      estimate_cell(
        v.perplexity.get(kind),
        entry=e,
        source=_at(v, f"eval/{kind}/perplexity"),
      )
      for e, v in zip(entries, verdicts, strict=True)
    )
    rows.append(Row(words, cells))
  rows.append(
    Row(
      "increase",
      tuple(
        estimate_cell(
          v.increase, entry=e, source=_at(v, "eval/perplexity_increase")
        )
        for e, v in zip(entries, verdicts, strict=True)
      ),
    )
  )
  return [row for row in rows if any(c.value for c in row.cells)]


def other_rows(
  entries: Sequence[Entry], verdicts: Sequence[Verdict]
) -> list[Row]:
  """Returns a row for each further measure that any run has."""
  rows = []
  for key, words, spec in _MEASURES:
    cells = tuple(
      _metric_cell(e, v, key, spec)
      for e, v in zip(entries, verdicts, strict=True)
    )
    rows.append(Row(words, cells))
  return [row for row in rows if any(c.value for c in row.cells)]


def terminal_table(
  entries: Sequence[Entry], verdicts: Sequence[Verdict]
) -> RichTable:
  """Returns perplexity by run and kind of prompt for a terminal."""
  level = stated(100 * LEVEL, ".0f", "poison_jax/studies/verdict.py, LEVEL")
  table = RichTable(
    box=box.SIMPLE_HEAD,
    title=f"Perplexity of generations [{level} % interval]",
    title_justify="left",
    title_style="bold",
  )
  table.add_column("prompt")
  for entry in entries:
    table.add_column(RichText(entry.run.name), justify="right")
  for row in perplexity_rows(entries, verdicts):
    table.add_row(row.words, *(RichText(str(cell)) for cell in row.cells))
  return table


def _metric_cell(entry: Entry, verdict: Verdict, key: str, spec: str) -> Cell:
  if verdict.step is None:
    return _EMPTY
  estimate = measure(entry.run, verdict.step, key)
  return _cell(estimate, spec, entry=entry, source=_at(verdict, key))


def _at(verdict: Verdict, key: str) -> str:
  return f"metrics.jsonl, step {verdict.step}, {key}"
