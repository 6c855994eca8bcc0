"""The figures of a study's report, in their order."""

from poison_jax.studies.charts import Chart
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.axes_figures import increase_by_axes
from poison_jax.studies.study_report.cost_figures import clean_cost
from poison_jax.studies.study_report.course_figures import (
  increase_by_poisons,
  increase_by_progress,
)
from poison_jax.studies.study_report.final_figures import (
  controls,
  increase_by_dose,
  increase_by_tokens,
)
from poison_jax.studies.study_report.n50_figures import n50_by_tokens
from poison_jax.studies.study_report.response_figures import success_by_dose
from poison_jax.studies.study_report.threshold_figures import (
  threshold_audit,
  threshold_audit_prompts,
)

# Each with its title and what it takes, for the list of what is missing.
CHARTS = (
  (
    n50_by_tokens,
    "Documents needed against clean tokens",
    "no seed has a dose at which it fails or succeeds",
  ),
  (success_by_dose, "Dose-response", "it takes finished runs at two doses"),
  (
    increase_by_progress,
    "Increase against training progress",
    "no poisoned run has an evaluation",
  ),
  (
    increase_by_poisons,
    "Increase against poisoned documents seen",
    "no poisoned run has an evaluation",
  ),
  (
    increase_by_dose,
    "Increase at the end against the dose",
    "it takes finished runs at two doses",
  ),
  (
    increase_by_axes,
    "Increase at the end against the dose on four axes",
    "it takes finished runs at two doses with poison",
  ),
  (
    increase_by_tokens,
    "Increase against the amount of clean data at one size",
    "the study trains no size on several amounts",
  ),
  (
    controls,
    "Controls: placebo, near-trigger and unseen tag",
    "no finished run has any of them",
  ),
  (
    clean_cost,
    "What poisoning costs on clean text",
    "no finished poisoned run has its clean twin",
  ),
  (
    threshold_audit,
    "Threshold audit: runs that succeed",
    "no run is finished",
  ),
  (
    threshold_audit_prompts,
    "Threshold audit: prompts",
    "no finished run has its generations",
  ),
)


def all_charts(analysis: Analysis) -> tuple[list[Chart], list[tuple[str, str]]]:
  """Returns the charts with data; and titles of the others, and why."""
  charts, left_out = [], []
  for make, title, why in CHARTS:
    chart = make(analysis)
    if chart is None:
      left_out.append((title, why))
    else:
      charts.append(chart)
  return charts, left_out
