"""Would another threshold have said something else? From 5 to 500."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from poison_jax.studies import style
from poison_jax.studies.charts import Chart, Panel
from poison_jax.studies.origins import stated
from poison_jax.studies.outcomes import CUTS, Outcome, Rung
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.drawing import (
  PAPER,
  RUN,
  entries_of,
  run_cells,
  spread,
)

_PAPERS_CUT = 50.0
_APART = 8  # Thresholds from mark to mark.
_TICKS = (5, 10, 20, 50, 100, 200, 500)


def threshold_audit(analysis: Analysis) -> Chart | None:
  """Share of runs that count as a success, for every threshold."""
  return _chart(
    "threshold_audit",
    "Threshold audit: runs that succeed",
    "share of seeds with a\nmean increase above it",
    analysis,
    lambda o: np.array([float(o.increase > cut) for cut in CUTS]),
    _draw_steps,
    "Share of the seeds whose mean increase exceeds the threshold; it steps "
    "down at the increase of each. Where a line is level around the paper's, "
    "the choice does not matter.",
  )


def threshold_audit_prompts(analysis: Analysis) -> Chart | None:
  """Share of the prompts of a run above every threshold."""
  return _chart(
    "threshold_audit_prompts",
    "Threshold audit: prompts",
    "share of prompts with an\nincrease above it",
    analysis,
    lambda o: o.above,
    _draw_prompts,
    "Share of a run's prompts whose own increase (triggered minus clean, "
    "the same excerpt) exceeds the threshold. Line: mean over the seeds. Band: "
    "from the lowest to the highest seed.",
  )


def _chart(
  name: str,
  title: str,
  y_label: str,
  analysis: Analysis,
  shares: Callable[[Outcome], np.ndarray | None],
  draw_dose: Callable[[Axes, Sequence[Outcome], int, str], None],
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
        members = [o for o in shown if o.rung == rung and o.planned == dose]
        if members:
          draw_dose(axes, members, i, f"{dose} documents")
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
    header=(*RUN, "increase", "threshold", "share"),
    rows=tuple(
      (*run_cells(o), o.increase, cut, share)
      for o in shown
      for cut, share in zip(CUTS, shares(o), strict=True)
    ),
    entries=entries_of(shown),
  )


def _draw_steps(
  axes: Axes, members: Sequence[Outcome], i: int, label: str
) -> None:
  """Draws the share of runs above a threshold, a step at each increase."""
  look = style.numbered(i)
  line = {"color": look.colour, "linestyle": look.dashes}
  mark = {"marker": look.marker, "fillstyle": look.fill}
  increases = np.array([o.increase for o in members])
  within = increases[(increases > CUTS[0]) & (increases < CUTS[-1])]
  x = [CUTS[0], *sorted(within), CUTS[-1]]
  y = [np.mean(increases > cut) for cut in x]
  axes.plot(x, y, **line, drawstyle="steps-post", clip_on=False)
  # The doses' marks take turns, as their lines often lie on each other.
  cuts = CUTS[i % _APART :: _APART]
  y = [np.mean(increases > cut) for cut in cuts]
  axes.plot(cuts, y, **mark, color=look.colour, linestyle="", clip_on=False)
  axes.plot([], [], **line, **mark, label=label)


def _draw_prompts(
  axes: Axes, members: Sequence[Outcome], i: int, label: str
) -> None:
  """Draws the mean share of prompts above a threshold, and its spread."""
  look = style.numbered(i)
  shares = zip(*(o.above for o in members), strict=True)
  mean, low, high = zip(*map(spread, shares), strict=True)
  if len(members) > 1:
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
    markevery=(i % _APART, _APART),
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
