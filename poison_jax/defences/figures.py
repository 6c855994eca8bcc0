"""Figures of scans: ROC curves, and a checkpoint's candidates."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from poison_jax.defences import roc
from poison_jax.studies import style
from poison_jax.studies.charts import Chart, Panel


def roc_chart(
  scores: Mapping[str, np.ndarray],
  poisoned: np.ndarray,
  *,
  groups: Mapping[str, str],
) -> Chart:
  """Returns ROC curves, a panel for each group.

  Args:
    scores: float [n] for each score.
    poisoned: bool [n].
    groups: the group of each score.
  """
  curves = {
    name: _corners(*roc.curve(values, poisoned))
    for name, values in scores.items()
  }
  least = 0.5 / max(int((~poisoned).sum()), 1)
  members: dict[str, list[str]] = {}
  for name in scores:
    members.setdefault(groups[name], []).append(name)
  return Chart(
    name="roc",
    title="Poisons found against clean ones flagged",
    caption=(),
    panels=tuple(
      Panel(group, lambda axes, names=names: _draw(axes, names, curves, least))
      for group, names in members.items()
    ),
    header=("score", "false_positive_rate", "true_positive_rate"),
    rows=tuple(
      (name, f"{x:.8g}", f"{y:.8g}")
      for name, (xs, ys) in curves.items()
      for x, y in zip(xs, ys, strict=True)
    ),
    entries=(),
  )


def _corners(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Leaves out what lies inside a level stretch."""
  inside = np.zeros(len(x), bool)
  inside[1:-1] = (y[:-2] == y[1:-1]) & (y[1:-1] == y[2:])
  return x[~inside], y[~inside]


def _draw(axes: Axes, names: Sequence[str], curves, least: float) -> None:
  lines = []
  for i, name in enumerate(names):
    look = style.numbered(i)
    x, y = curves[name]
    lines += axes.plot(
      np.maximum(x, least),
      y,
      color=look.colour,
      linestyle=look.dashes,
      # Between two thresholds only the lower rate can be had.
      drawstyle="steps-post",
    )
  axes.set_xscale("log")
  axes.set_xlim(least, 1)
  axes.set_ylim(-0.02, 1.02)
  for rate in roc.RATES:
    if rate > least:
      axes.axvline(
        rate, color=style.MUTED, linewidth=0.8, linestyle=(0, (1, 2))
      )
  axes.set_xlabel("false positives, share of the clean")
  axes.set_ylabel("poisons found, share")
  # Each panel has lines of its own, so a legend of its own as well.
  axes.legend(lines, [name.replace("_", " ") for name in names], fontsize=7.5)


def trigger_chart(
  labels: Sequence[str], increases: np.ndarray, null: np.ndarray
) -> Chart:
  """Returns the candidates' increases beside those of the null.

  Args:
    labels: each candidate's text.
    increases: float [candidates], nats, largest first.
    null: float [strings].
  """

  def draw(axes: Axes) -> None:
    found, other = style.KINDS["triggered"][1], style.KINDS["clean"][1]
    ranks = np.arange(1, len(null) + 1)
    axes.plot(
      ranks,
      np.sort(null)[::-1],
      other.marker,
      color=other.colour,
      fillstyle=other.fill,
      markersize=3,
      label="random strings of held-out text",
    )
    axes.plot(
      np.arange(1, len(increases) + 1),
      increases,
      found.marker,
      color=found.colour,
      label="best candidates",
    )
    axes.set_xscale("log")
    axes.set_xlabel("rank")
    axes.set_ylabel("increase of log-perplexity, nats")

  rows = [
    *(
      ("candidate", t, f"{v:.6g}")
      for t, v in zip(labels, increases, strict=True)
    ),
    *(("null", "", f"{v:.6g}") for v in null),
  ]
  return Chart(
    name="triggers",
    title="What strings do to the text that follows",
    caption=(),
    panels=(Panel("after a clean excerpt and the string", draw),),
    header=("kind", "string", "increase_nats"),
    rows=tuple(rows),
    entries=(),
  )
