"""The figures of a report, in their order."""

from collections.abc import Sequence

from poison_jax.studies.charts import Chart
from poison_jax.studies.course_figures import (
  enter_and_stay,
  losses,
  perplexity_by_kind,
)
from poison_jax.studies.dose_figures import (
  increase_by_poisons,
  increase_by_progress,
)
from poison_jax.studies.origins import Entry

CHARTS = (
  increase_by_poisons,
  increase_by_progress,
  perplexity_by_kind,
  enter_and_stay,
  losses,
)


def all_charts(entries: Sequence[Entry]) -> list[Chart]:
  """Returns the charts for which the runs have numbers."""
  made = (make(entries) for make in CHARTS)
  return [chart for chart in made if chart is not None]
