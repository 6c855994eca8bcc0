"""The paper's figures over training: increase by progress and by poisons."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from matplotlib.axes import Axes

from poison_jax.studies import style
from poison_jax.studies.charts import (
  ORIGIN,
  Chart,
  Panel,
  draw_line,
  origin_cells,
)
from poison_jax.studies.outcomes import Outcome, primary, rungs
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.drawing import (
  BAND,
  draw_increases,
  entries_of,
  paper_figures,
  paper_lines,
  spread,
)

_KEY = "eval/perplexity_increase"
_PAPER_DOSES = {250: "2a", 500: "2b"}
_PAPER_SIZES = {"600m": "4a", "2b": "4b", "7b": "4c", "13b": "4c"}


@dataclasses.dataclass(frozen=True)
class Point:
  """An evaluation of the runs of one rung and dose: a value a run."""

  step: int
  runs: tuple[Outcome, ...]
  x: tuple[float, ...]
  increase: tuple[float, ...]


def increase_by_progress(analysis: Analysis) -> Chart | None:
  """Increase against training progress, all rungs, a panel a dose."""
  shown = _poisoned(analysis)
  looks = {r: style.numbered(i) for i, r in enumerate(rungs(shown))}
  curves = {
    (dose, rung): _curve(
      [o for o in shown if o.planned == dose and o.rung == rung],
      lambda o, step: 100 * step / o.entry.run.steps,
    )
    for dose in sorted({o.planned for o in shown})
    for rung in looks
  }
  return _chart(
    "increase_by_progress",
    "Perplexity increase against training progress",
    (
      "The paper's figures ",
      paper_figures("2a, 2b"),
      ": all sizes at one dose, a panel a dose.",
    ),
    "share of training steps (%)",
    "percent_of_steps",
    analysis,
    {key: points for key, points in curves.items() if points},
    title=lambda dose: _named(f"{dose} documents", _PAPER_DOSES.get(dose)),
    line=lambda rung: (rung.label, looks[rung]),
  )


def increase_by_poisons(analysis: Analysis) -> Chart | None:
  """Increase against poisoned documents seen, a panel a rung."""
  shown = _poisoned(analysis)
  doses = sorted({o.planned for o in shown})
  looks = {dose: style.numbered(i) for i, dose in enumerate(doses)}
  curves = {
    (rung, dose): _curve(
      [o for o in shown if o.planned == dose and o.rung == rung],
      lambda o, step: o.poisons.documents_by(step),
    )
    for rung in rungs(shown)
    for dose in doses
  }
  return _chart(
    "increase_by_poisons",
    "Perplexity increase against poisoned documents seen",
    (
      "The paper's figures ",
      paper_figures("4a to 4c"),
      ": one size with all its doses, a panel a size. Documents are counted "
      "in the ledger up to each evaluation (mean over the seeds). If only "
      "their number counts, the lines of a panel lie on each other.",
    ),
    "poisoned documents seen",
    "documents_seen",
    analysis,
    {key: points for key, points in curves.items() if points},
    title=lambda rung: _named(rung.label, _PAPER_SIZES.get(rung.size)),
    line=lambda dose: (f"{dose} documents", looks[dose]),
  )


def _poisoned(analysis: Analysis) -> list[Outcome]:
  """Returns the runs of a curve, unfinished ones too, but no triaged one.

  A run that was stopped for its increase would leave a mean over seeds where
  it stands out, and so bend it.
  """
  going = [o for o in analysis.results.outcomes if o.triaged is None]
  return [
    o
    for o in primary(going)
    if o.arm == "poisoned" and o.planned > 0 and _KEY in o.entry.run.metrics
  ]


def _named(title: str, figure: str | None) -> str:
  return title if figure is None else f"{title} (paper: {figure})"


def _curve(
  members: Sequence[Outcome], place: Callable[[Outcome, int], float]
) -> tuple[Point, ...]:
  """Returns a point an evaluation, of the runs that have got there."""
  steps = sorted({int(s) for o in members for s in _series(o).steps})
  points = []
  for step in steps:
    there = tuple(o for o in members if _series(o).at(step) is not None)
    points.append(
      Point(
        step,
        there,
        tuple(float(place(o, step)) for o in there),
        tuple(_series(o).at(step) for o in there),
      )
    )
  return tuple(points)


def _series(outcome: Outcome):
  return outcome.entry.run.metrics[_KEY]


def _chart(
  name: str,
  heading: str,
  caption: tuple,
  x_label: str,
  x_name: str,
  analysis: Analysis,
  curves: Mapping[tuple, tuple[Point, ...]],
  *,
  title: Callable,
  line: Callable,
) -> Chart | None:
  """Returns the chart of `curves` by (panel, line); None without any."""
  if not curves:
    return None
  highest = max(max(p.increase) for points in curves.values() for p in points)
  furthest = max(max(p.x) for points in curves.values() for p in points)

  def panel(of) -> Panel:
    def draw(axes: Axes) -> None:
      for (its_panel, its_line), points in curves.items():
        if its_panel == of:
          label, look = line(its_line)
          _draw_curve(axes, points, look, label)
      draw_increases(axes, analysis.thresholds, top=1.05 * highest)
      axes.set_xlabel(x_label)
      axes.set_xlim(0, furthest)

    return Panel(title(of), draw)

  return Chart(
    name=name,
    title=heading,
    caption=(*caption, BAND, *paper_lines()),
    panels=tuple(panel(of) for of in dict.fromkeys(of for of, _ in curves)),
    header=(
      *ORIGIN,
      *("size", "tokens", "poisons", "seed", "step", x_name, "increase"),
      *("mean", "lowest", "highest", "seeds"),
    ),
    rows=tuple(_rows(curves)),
    entries=entries_of(o for p in curves.values() for o in p[0].runs),
  )


def _draw_curve(axes: Axes, points, look: style.Style, label: str) -> None:
  x = [spread(p.x)[0] for p in points]
  mean, low, high = zip(*(spread(p.increase) for p in points), strict=True)
  several = any(len(p.runs) > 1 for p in points)
  band = (low, high) if several else None
  draw_line(axes, x, mean, look, label=label, band=band)


def _rows(curves: Mapping[tuple, tuple[Point, ...]]) -> Iterator[tuple]:
  for points in curves.values():
    for p in points:
      for o, x, increase in zip(p.runs, p.x, p.increase, strict=True):
        yield (
          *origin_cells(o.entry),
          *(o.rung.label, o.rung.tokens, o.planned, o.seed, p.step),
          *(x, increase, *spread(p.increase), len(p.runs)),
        )
