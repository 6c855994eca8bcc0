"""Draws runs and puts their verdict in words.

Usage:
  python -m poison_jax.report RUN [RUN ...] [--out=DIR] [--tensorboard]

Writes report.html (one file, no network) and figures/ (PNG, SVG and the
numbers as CSV) into DIR: by default into the run itself where one is given;
several need --out. Runs that go on or stopped early are drawn as far as they
got.
"""

import shlex

from absl import flags
from rich.console import Console
from rich.text import Text

from poison_jax import command
from poison_jax.data.folder import Folder
from poison_jax.errors import UserError
from poison_jax.studies import reporting, tables, wording
from poison_jax.studies.origins import Entry, make_entries
from poison_jax.studies.runs import read_runs
from poison_jax.studies.verdict import Verdict, judge

_OUT = flags.DEFINE_string(
  "out", None, "Folder of the report; one run: the run itself by default."
)
_TENSORBOARD = flags.DEFINE_boolean(
  "tensorboard", False, "Also write each run's metrics to RUN/tensorboard."
)


def main(arguments: list[str]) -> None:
  """Reads the runs, prints the verdict and writes the report.

  Raises:
    UserError: no run, not a run, damaged metrics, several without --out.
    CheckFailed: a damaged ledger.
    OSError: the report can't be written.
  """
  entries = make_entries(read_runs(arguments))
  if _OUT.value is None and len(entries) > 1:
    raise UserError(
      "several runs: name the folder of their report with --out=DIR"
    )
  out = Folder(_OUT.value or arguments[0])
  verdicts = [judge(entry.run) for entry in entries]
  console = Console(highlight=False, soft_wrap=True)
  _say(console, entries, verdicts)
  line = ["python", "-m", "poison_jax.report", *arguments]
  if _OUT.value is not None:
    line.append(f"--out={_OUT.value}")
  written = reporting.write(
    entries, verdicts, out=out, command=shlex.join(line)
  )
  console.print(Text(f"Report: {written}"))
  if _TENSORBOARD.value:
    # Half a second, for those who ask for it.
    from poison_jax.studies import events

    for entry in entries:
      console.print(Text(f"TensorBoard: {events.write(entry.run)}"))


def _say(console: Console, entries: list[Entry], verdicts: list[Verdict]):
  """Prints the table and the verdict of each run."""
  if any(verdict.step is not None for verdict in verdicts):
    console.print(tables.terminal_table(entries, verdicts))
  for entry, verdict in zip(entries, verdicts, strict=True):
    name = Text(entry.run.name, style="bold")
    console.print(name + Text(f": {wording.headline(verdict)}."))
    behind = wording.plain(wording.unfinished(entry, verdict))
    if behind:
      console.print(Text(f"  {behind}"))
    for bar in verdict.bars:
      words = wording.plain(wording.bar_words(entry, verdict, bar))
      console.print(Text(f"  {words}"))
    for note in (*entry.run.notes, *verdict.notes):
      console.print(Text(f"  note: {note}"))


if __name__ == "__main__":
  command.run(main)
