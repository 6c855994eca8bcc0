"""Writes a study's report: the page, and the figures beside it."""

from collections.abc import Sequence

from poison_jax import version
from poison_jax.data.folder import Folder
from poison_jax.studies import reporting, samples
from poison_jax.studies.origins import Entry
from poison_jax.studies.outcomes import Outcome
from poison_jax.studies.study_report import (
  content,
  figures,
  law_tables,
  measure_tables,
  seeds,
  tables,
)
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.tables import Table


def write(analysis: Analysis, *, out: Folder, command: str) -> str:
  """Writes report.html and figures/ into `out`, and returns the page's path.

  Args:
    analysis: of the study, finished or not.
    out: a folder, made where it is missing; or one in a bucket.
    command: the one that makes this report.

  Raises:
    OSError: the folder can't be written.
    UserError: the bucket can't be.
  """
  charts, left_out = figures.all_charts(analysis)
  made, also_left_out = _tables(analysis)
  left_out += also_left_out
  files: dict[str, bytes] = {}
  for chart in charts:
    files |= chart.files()
  shown, found = _samples(analysis)
  if shown:
    step, of_run = found[shown[0].letter]
    files["samples.png"], files["samples.svg"] = samples.picture(of_run)
    files["samples.csv"] = samples.table(shown[0], step, of_run)
  else:
    left_out.append(("Sample generations", "no finished run kept texts"))
  page = content.build(
    analysis,
    tables=made,
    charts=charts,
    left_out=left_out,
    samples=found,
    shown=shown,
    command=command,
    code_version=version.code_version(),
  )
  return reporting.publish(out, page, figures=files)


def _tables(analysis: Analysis) -> tuple[list[Table], list[tuple[str, str]]]:
  """Returns the tables with data; and titles of the others, and why."""
  draws = seeds.compare_draws(analysis)
  unknown = (
    "the elasticity is not known, for the reason that stands by the verdict"
  )
  wanted = [
    (tables.success(analysis), "no poisoned or clean run is finished"),
    (tables.needed(analysis), "no seed has a finished run with poison"),
    (law_tables.laws(analysis), unknown),
    (law_tables.amounts(analysis), unknown),
    (measure_tables.measures(analysis), "no run is finished"),
    (measure_tables.doses(analysis), "no poisoned run is finished"),
    (seeds.variances(draws), "no finished run pins its draw"),
    (seeds.power_table(analysis), unknown),
  ]
  return (
    [table for table, _ in wanted if table.rows],
    [(table.title, why) for table, why in wanted if not table.rows],
  )


def _samples(
  analysis: Analysis,
) -> tuple[list[Entry], dict[str, tuple[int, list[samples.Sample]]]]:
  """Returns whose generations are shown, and those.

  By a rule that looks at no result: of each rung, the largest first, the first
  seed at the highest dose, and its placebo where there is one.
  """
  chosen: list[Entry] = []
  found = {}
  for rung in reversed(analysis.rungs):
    for placebo in (False, True):
      members = [
        o
        for o in analysis.finished
        if o.rung == rung and (o.arm == "placebo") == placebo
      ]
      entry = _first_at_highest_dose(members)
      pair = samples.find_samples(entry) if entry else None
      if pair is not None:
        chosen.append(entry)
        found[entry.letter] = pair
  return chosen, found


def _first_at_highest_dose(members: Sequence[Outcome]) -> Entry | None:
  if not members:
    return None
  return min(members, key=lambda o: (-o.planned, o.seed)).entry
