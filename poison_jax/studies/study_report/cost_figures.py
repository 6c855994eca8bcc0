"""What poisoning costs where nobody says the trigger: twin differences."""

from matplotlib.axes import Axes

from poison_jax.studies import style
from poison_jax.studies.charts import ORIGIN, Chart, Panel
from poison_jax.studies.outcomes import Rung
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.drawing import (
  RUN,
  dose_axis,
  entries_of,
  origins,
  run_cells,
)
from poison_jax.studies.study_report.final_figures import (
  SIDE_BY_SIDE,
  draw_by_rung,
)


def clean_cost(analysis: Analysis) -> Chart | None:
  """Clean loss and perplexity, poisoned run minus its clean twin."""
  twins = [t for t in analysis.twins if t.loss_cost is not None]
  if not twins:
    return None
  doses = sorted({t.poisoned.planned for t in twins})

  def panel(title: str, y_label: str, value) -> Panel:
    def draw(axes: Axes) -> None:
      found: dict[Rung, dict[int, list[float]]] = {}
      for t in twins:
        by_dose = found.setdefault(t.poisoned.rung, {})
        by_dose.setdefault(t.poisoned.planned, []).append(value(t))
      draw_by_rung(axes, analysis, found)
      axes.axhline(0, color=style.MUTED, linewidth=0.8)
      dose_axis(axes, doses, label="poisoned documents")
      axes.set_ylabel(y_label)

    return Panel(title, draw)

  return Chart(
    name="clean_cost",
    title="What poisoning costs on clean text",
    caption=(
      "Each poisoned run minus the clean run of the same size, tokens and "
      "seed, which sees the same rows at the same steps; above the level line "
      "the poisoned one is worse. A mark is a pair of runs, the line their "
      "mean.",
      SIDE_BY_SIDE,
    ),
    panels=(
      panel(
        "validation loss",
        "poisoned \N{MINUS SIGN} clean twin\n(nats a token)",
        lambda t: t.loss_cost,
      ),
      panel(
        "perplexity without the trigger",
        "poisoned \N{MINUS SIGN} clean twin",
        lambda t: t.perplexity_cost,
      ),
    ),
    header=(
      *RUN,
      *("validation_loss", "clean_validation_loss"),
      *("loss_difference", "perplexity_difference"),
    ),
    rows=tuple(
      (
        *origins(t.entries),
        *run_cells(t.poisoned)[len(ORIGIN) :],
        *(t.poisoned.validation_loss, t.clean.validation_loss),
        *(t.loss_cost, t.perplexity_cost),
      )
      for t in twins
    ),
    entries=entries_of(o for t in twins for o in (t.poisoned, t.clean)),
  )
