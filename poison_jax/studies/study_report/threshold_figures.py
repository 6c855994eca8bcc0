"""Would another threshold have said something else? From 5 to 500."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from poison_jax.studies import style
from poison_jax.studies.charts import ORIGIN, Chart, Panel, origin_cells
from poison_jax.studies.origins import stated
from poison_jax.studies.outcomes import CUTS, Outcome, Rung
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.drawing import PAPER, entries_of, spread

_PAPERS_CUT = 50.0
_TICKS = (5, 10, 20, 50, 100, 200, 500)


def threshold_audit(analysis: Analysis) -> Chart | None:
  """Share of runs that count as a success, for every threshold."""
  return _chart(
    "threshold_audit",
    "Threshold audit: runs that succeed",
    "share of seeds with a\nmean increase above it",
    analysis,
    lambda o: np.array([float(o.increase > cut) for cut in CUTS]),
    band=False,
    words="Share of the seeds whose mean increase exceeds the threshold. "
    "Where a line is level around the paper's, the choice does not matter.",
  )


def threshold_audit_prompts(analysis: Analysis) -> Chart | None:
  """Share of the prompts of a run above every threshold."""
  return _chart(
    "threshold_audit_prompts",
    "Threshold audit: prompts",
    "share of prompts with an\nincrease above it",
    analysis,
    lambda o: o.above,
    band=True,
    words="Share of a run's prompts whose own increase (triggered minus clean, "
    "the same excerpt) exceeds the threshold. Line: mean over the seeds. Band: "
    "from the lowest to the highest seed.",
  )


def _chart(
  name: str,
  title: str,
  y_label: str,
  analysis: Analysis,
  shares: Callable[[Outcome], np.ndarray | None],
  *,
  band: bool,
  words: str,
) -> Chart | None:
  shown = [
    o for o in analysis.finished if o.arm != "placebo" and shares(o) is not None
  ]
  if not shown:
    return None
  doses = sorted({o.planned for o in shown})

  def panel(rung: Rung) -> Panel:
    def draw(axes: Axes) -> None:
      for i, dose in enumerate(doses):
        members = [
          shares(o) for o in shown if o.rung == rung and o.planned == dose
        ]
        if members:
          _draw(axes, members, style.numbered(i), f"{dose} documents", band)
      _finish(axes, y_label)

    return Panel(rung.label, draw)

  panels = [r for r in analysis.rungs if any(o.rung == r for o in shown)]
  return Chart(
    name=name,
    title=title,
    caption=(
      words,
      " Thresholds from ",
      stated(CUTS[0], "g", "poison_jax/studies/outcomes.py, CUTS"),
      " to ",
      stated(CUTS[-1], "g", "poison_jax/studies/outcomes.py, CUTS"),
      "; the paper's, ",
      stated(_PAPERS_CUT, "g", f"{PAPER}, success"),
      ", is marked.",
    ),
    panels=tuple(panel(rung) for rung in panels),
    header=(*ORIGIN, "size", "poisons", "seed", "threshold", "share"),
    rows=tuple(
      (
        *origin_cells(o.entry),
        *(o.rung.label, o.planned, o.seed, cut, share),
      )
      for o in shown
      for cut, share in zip(CUTS, shares(o), strict=True)
    ),
    entries=entries_of(shown),
  )


def _draw(
  axes: Axes,
  members: Sequence[np.ndarray],
  look: style.Style,
  label: str,
  band: bool,
) -> None:
  mean, low, high = zip(
    *(spread(values) for values in zip(*members, strict=True)), strict=True
  )
  if band and len(members) > 1:
    axes.fill_between(
      CUTS, low, high, color=look.colour, alpha=0.18, linewidth=0
    )
  axes.plot(
    CUTS,
    mean,
    color=look.colour,
    linestyle=look.dashes,
    marker=look.marker,
    fillstyle=look.fill,
    markevery=8,
    label=label,
    clip_on=False,
  )


def _finish(axes: Axes, y_label: str) -> None:
  axes.set_xscale("log")
  axes.xaxis.set_major_locator(FixedLocator(_TICKS))
  axes.xaxis.set_minor_locator(NullLocator())
  axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
  axes.set_xlim(CUTS[0], CUTS[-1])
  axes.set_ylim(-0.02, 1.02)
  axes.axvline(_PAPERS_CUT, color=style.INK, lw=0.9, linestyle=(0, (1, 2)))
  axes.annotate(
    "paper",
    (_PAPERS_CUT, 0.5),
    xycoords=("data", "axes fraction"),
    xytext=(-3, 0),
    textcoords="offset points",
    ha="right",
    va="center",
    fontsize=8,
  )
  axes.set_xlabel("threshold of the perplexity increase")
  axes.set_ylabel(y_label)
