"""Reports a study: the page and its figures, and a few lines in the terminal.

A damaged cell takes nothing away from the others: the report is made without
it, says so on top, and the caller ends with an error that names it.
"""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from poison_jax.data.folder import Folder
from poison_jax.studies import results
from poison_jax.studies.grid.plan import Plan
from poison_jax.studies.study_report import nodes, wording, writing
from poison_jax.studies.study_report.analysis import Analysis, analyse
from poison_jax.studies.study_report.tables import mixed_code, success_words


def report(
  plan: Plan, *, out: Folder, command: str, console: Console
) -> list[str]:
  """Writes report.html and figures/ into `out`; returns what is damaged.

  Args:
    plan: of the study, of which any part may be there.
    out: a folder, made where it is missing; or one in a bucket.
    command: the one that makes this report.
    console: says the verdict.

  Returns:
    a line for each cell that can't be read: which, the file, and why.

  Raises:
    OSError: the folder can't be written.
    UserError: the bucket can't be.
  """
  analysis = analyse(results.read(plan))
  _say(console, analysis)
  written = writing.write(analysis, out=out, command=command)
  console.print(Text(f"Report: {written}"))
  return _damage(analysis)


def _say(console: Console, analysis: Analysis) -> None:
  """Prints the successes, the verdict and what it can't carry."""
  if analysis.groups:
    console.print(_table(analysis))
  console.print(Text(wording.headline(analysis), style="bold"))
  console.print(Text(nodes.text(wording.explanation(analysis))))
  for words in wording.limits(analysis):
    console.print(Text(f"  {nodes.text(words)}"))
  mixed = nodes.text(mixed_code(analysis)).strip()
  if mixed:
    console.print(Text(f"note: {mixed}"))
  for line in _damage(analysis):
    console.print(Text(f"note: {line}"))


def _damage(analysis: Analysis) -> list[str]:
  return [f"{m.cell.label}: {m.reason}" for m in analysis.results.damaged]


def _table(analysis: Analysis) -> Table:
  """Returns the successes by rung and dose."""
  table = Table(
    box=box.SIMPLE_HEAD,
    title="Runs that succeed, by size and poisoned documents",
    title_justify="left",
    title_style="bold",
  )
  groups = {(g.rung, g.dose): g for g in analysis.groups}
  doses = sorted({g.dose for g in analysis.groups})
  table.add_column("size")
  for dose in doses:
    table.add_column(str(dose), justify="right")
  for rung in dict.fromkeys(g.rung for g in analysis.groups):
    cells = (success_words(groups.get((rung, dose))) for dose in doses)
    table.add_row(rung.label, *(nodes.text(cell) for cell in cells))
  return table
