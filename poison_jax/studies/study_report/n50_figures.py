"""N50 against clean tokens, with the laws that it might follow."""

import math
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes

from poison_jax.studies import style
from poison_jax.studies.charts import ORIGIN, Chart, Panel
from poison_jax.studies.grid.pricing import short
from poison_jax.studies.origins import stated
from poison_jax.studies.outcomes import Rung
from poison_jax.studies.statistics import interval_regression
from poison_jax.studies.statistics.laws import Law
from poison_jax.studies.study_report.analysis import Analysis, Ladder
from poison_jax.studies.study_report.drawing import origins, unique
from poison_jax.studies.verdict import LEVEL

_GRID = 25  # Clean tokens at which curves are computed.
# Amounts of clean tokens that lie closer share a place on the axis.
_CLOSE = 1.08
# Places that lie closer, as a share of the axis, get slanted names.
_CROWDED = 0.22
_LAWS = {
  Law.COUNT: "a constant count",
  Law.SHARE: "a constant share",
  Law.LOG_LOG: "log log of the tokens",
}


def n50_by_tokens(analysis: Analysis) -> Chart | None:
  """N50 of each size and seed against clean tokens, with the rival laws."""
  ladders = [m for m in analysis.ladders if _bounded(m)]
  if not ladders:
    return None
  curves = list(_curves(analysis, ladders))

  def draw(axes: Axes) -> None:
    bottom, top = _limits(ladders)
    for i, (label, x, y, band) in enumerate(curves):
      look = style.numbered(i)
      if band is not None:
        low, high = np.clip(band, bottom / 10, top * 10)
        axes.fill_between(
          x, low, high, color=look.colour, alpha=0.18, linewidth=0
        )
      axes.plot(x, y, color=look.colour, linestyle=look.dashes, label=label)
    for place, ladder in zip(_places(ladders), ladders, strict=True):
      _draw_ladder(axes, place, ladder, bottom=bottom, top=top)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    axes.minorticks_off()
    _name_rungs(axes, ladders)
    bounds = {b for m in ladders for b in (m.n50.low, m.n50.high)}
    ticks = sorted(b for b in bounds if 0 < b < math.inf)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("clean tokens of training")
    axes.set_ylabel("poisoned documents\nthat it takes (N50)")

  return Chart(
    name="n50_by_tokens",
    title="How many documents it takes, against the clean tokens",
    caption=(
      "A bar is one seed of one size: from the dose that was not enough to "
      "the dose that was. An arrow: the end lies beyond the study's doses, "
      "which is all that they tell. Lines: the most likely law of each kind, "
      "fitted to the bars; only the free one has a band, the ",
      stated(100 * LEVEL, "g", "poison_jax/studies/verdict.py, LEVEL"),
      " % profile-likelihood interval of its median.",
    ),
    panels=(Panel("", draw),),
    header=(
      *ORIGIN,
      *("series", "size", "seed", "tokens", "n50_low", "n50", "n50_high"),
    ),
    rows=tuple(_rows(analysis, ladders, curves)),
    entries=unique(e for m in ladders for e in m.entries),
  )


def _bounded(ladder: Ladder) -> bool:
  return ladder.n50.low > 0 or not math.isinf(ladder.n50.high)


def _limits(ladders: list[Ladder]) -> tuple[float, float]:
  """Returns an axis that leaves room for arrows beyond the doses."""
  bounds = [b for m in ladders for b in (m.n50.low, m.n50.high)]
  finite = [b for b in bounds if 0 < b < math.inf]
  return min(finite) / 2.5, max(finite) * 2.5


def _places(ladders: list[Ladder]) -> list[float]:
  """Returns where each bar stands: side by side at a rung's clean tokens."""
  at = {
    rung: place.tokens
    for place, rungs in _by_place(ladders).items()
    for rung in rungs
  }
  places = []
  for ladder in ladders:
    tokens = at[ladder.rung]
    siblings = [m for m in ladders if at[m.rung] == tokens]
    shift = siblings.index(ladder) - (len(siblings) - 1) / 2
    # All of a place's bars stay within about an eighth of its tokens.
    apart = min(1.05, 1.12 ** (1 / max(1, len(siblings) - 1)))
    places.append(tokens * apart**shift)
  return places


def _by_place(ladders: list[Ladder]) -> dict[Rung, list[Rung]]:
  """Returns the rungs at each place of the axis, by the place's first."""
  places: dict[Rung, list[Rung]] = {}
  first = None
  for rung in _rungs(ladders):
    if first is None or rung.tokens > _CLOSE * first.tokens:
      first = rung
    places.setdefault(first, []).append(rung)
  return places


def _rungs(ladders: list[Ladder]) -> list[Rung]:
  """Returns the rungs of ladders by clean tokens, each once."""
  return sorted(dict.fromkeys(m.rung for m in ladders), key=lambda r: r.tokens)


def _name_rungs(axes: Axes, ladders: list[Ladder]) -> None:
  """Writes the rungs below the axis, slanted where they would overlap."""
  places = _by_place(ladders)
  at = np.log([first.tokens for first in places])
  gaps = np.diff(at) / max(at[-1] - at[0], 1e-9)
  crowded = len(gaps) > 0 and min(gaps) < _CROWDED
  slanted = {
    "rotation": 45,
    "rotation_mode": "anchor",
    "ha": "right",
    "fontsize": 8,
  }
  names = [", ".join(r.label for r in members) for members in places.values()]
  axes.set_xticks(
    [first.tokens for first in places],
    [
      f"{name}: {short(first.tokens)}"
      if crowded
      else f"{short(first.tokens)}\n({name})"
      for first, name in zip(places, names, strict=True)
    ],
    **(slanted if crowded else {}),
  )


def _draw_ladder(
  axes: Axes, x: float, ladder: Ladder, *, bottom: float, top: float
) -> None:
  """Draws a bar with a dash at each dose, an arrow for an open end."""
  low, high = ladder.n50.low, ladder.n50.high
  ends = (low or bottom * 1.25, top / 1.25 if math.isinf(high) else high)
  axes.plot([x, x], ends, color=style.INK, linewidth=2.2, zorder=4)
  marks = ("v" if low == 0 else "_", "^" if math.isinf(high) else "_")
  for y, mark in zip(ends, marks, strict=True):
    axes.plot([x], [y], color=style.INK, marker=mark, markersize=6, zorder=4)


def _curves(analysis: Analysis, ladders: list[Ladder]) -> Iterator[tuple]:
  """Yields (label, tokens, N50, band) of the laws and of the free fit."""
  test = analysis.by_tokens
  if test.line is None:
    return
  tokens = [m.rung.tokens for m in ladders]
  grid = np.geomspace(min(tokens) / 1.3, max(tokens) * 1.3, _GRID)
  for law, words in _LAWS.items():
    if law in test.laws:
      yield words, grid, test.laws[law].n50(grid), None
  if math.isinf(test.estimate):
    return
  band = [
    interval_regression.n50_interval(test.line, [math.log(x)], level=LEVEL)
    for x in grid
  ]
  ends = np.array([[b.low, b.high] for b in band]).T
  yield "free elasticity", grid, test.laws[Law.FREE].n50(grid), ends


def _rows(
  analysis: Analysis, ladders: list[Ladder], curves: list[tuple]
) -> Iterator[tuple]:
  for m in ladders:
    yield (
      *origins(m.entries),
      *("seed", m.rung.label, m.seed, m.rung.tokens),
      *(m.n50.low, "", m.n50.high),
    )
  behind = origins(analysis.entries)
  for label, x, y, band in curves:
    ends = [("", "")] * len(x) if band is None else zip(*band, strict=True)
    for tokens, n50, (low, high) in zip(x, y, ends, strict=True):
      yield (*behind, label, "", "", tokens, low, n50, high)
