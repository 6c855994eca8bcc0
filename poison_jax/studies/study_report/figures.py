"""The figures of a study's report, in their order."""

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

CHARTS = (
  n50_by_tokens,
  success_by_dose,
  increase_by_progress,
  increase_by_poisons,
  increase_by_dose,
  increase_by_tokens,
  controls,
  clean_cost,
  threshold_audit,
  threshold_audit_prompts,
)
