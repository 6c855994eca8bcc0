"""The paper's figures over training: increase by progress and by poisons."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from matplotlib.axes import Axes

from poison_jax.studies import style
from poison_jax.studies.charts import Chart, Panel, draw_line
from poison_jax.studies.outcomes import Outcome, Rung, primary, rungs
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.drawing import (
  BAND,
  BY_POISONS,
  BY_PROGRESS,
  RUN,
  draw_increases,
  entries_of,
  is_papers,
  paper_figures,
  paper_lines,
  run_cells,
  rung_looks,
  spread,
  titled,
  variant,
)

_KEY = "eval/perplexity_increase"


@dataclasses.dataclass(frozen=True)
class Point:
  """An evaluation of the runs of one rung and dose: a value a run."""

  step: int
  runs: tuple[Outcome, ...]
  x: tuple[float, ...]
  increase: tuple[float, ...]


def increase_by_progress(analysis: Analysis) -> Chart | None:
  """Increase against training progress, a panel a dose and budget."""
  shown = _poisoned(analysis)
  looks = rung_looks(analysis.rungs)
  curves = {
    ((dose, budget), rung): _curve(
      [o for o in shown if o.planned == dose and o.rung == rung],
      lambda o, step: 100 * step / o.entry.run.steps,
    )
    for dose in sorted({o.planned for o in shown})
    for budget in sorted({variant(rung) for rung in rungs(shown)})
    for rung in rungs(shown)
    if variant(rung) == budget
  }
  curves = {key: points for key, points in curves.items() if points}
  panels: dict[tuple[int, str], list[Rung]] = {}
  for panel, rung in curves:
    panels.setdefault(panel, []).append(rung)
  titles = titled(
    {(d, v): f"{d} documents" + (f", {v}" if v else "") for d, v in panels},
    {
      (dose, budget): BY_PROGRESS[dose]
      for (dose, budget), members in panels.items()
      if dose in BY_PROGRESS and all(map(is_papers, members))
    },
  )
  return _chart(
    "increase_by_progress",
    "Perplexity increase against training progress",
    (
      "As in the paper's figures ",
      paper_figures("2a (250 documents) and 2b (500)"),
      ": all sizes at one dose; a panel a dose, and a budget of tokens where "
      "there are several.",
    ),
    "share of training steps (%)",
    "percent_of_steps",
    analysis,
    curves,
    titles=titles,
    line=lambda rung: (rung.label, looks[rung]),
  )


def increase_by_poisons(analysis: Analysis) -> Chart | None:
  """Increase against poisoned documents seen, a panel a rung.

  Sizes that share a figure of the paper share a panel here.
  """
  shown = _poisoned(analysis)
  doses = sorted({o.planned for o in shown})
  panels = _by_figure(rungs(shown))
  curves = {
    (panel, (dose, rung)): _curve(
      [o for o in shown if o.planned == dose and o.rung == rung],
      lambda o, step: o.poisons.documents_by(step),
    )
    for panel in panels
    for rung in panel
    for dose in doses
  }
  panel_of = {rung: panel for panel in panels for rung in panel}

  def line(key: tuple[int, Rung]) -> tuple[str, style.Style]:
    (dose, rung), i = key, doses.index(key[0])
    panel = panel_of[rung]
    if len(panel) == 1:
      return f"{dose} documents", style.numbered(i)
    look = style.crossed(i % style.COLOURS, panel.index(rung))
    return f"{dose} documents, {rung.label}", look

  return _chart(
    "increase_by_poisons",
    "Perplexity increase against poisoned documents seen",
    (
      "As in the paper's figures ",
      paper_figures("4a (600M), 4b (2B) and 4c (7B and 13B)"),
      ": one size with all its doses, a panel a size. Documents are counted "
      "in the ledger up to each evaluation (mean over the seeds). If only "
      "their number counts, the lines of a panel lie on each other.",
    ),
    "poisoned documents seen",
    "documents_seen",
    analysis,
    {key: points for key, points in curves.items() if points},
    titles=titled(
      {panel: " and ".join(r.label for r in panel) for panel in panels},
      {p: BY_POISONS[p[0].size] for p in panels if is_papers(p[0])},
    ),
    line=line,
  )


def _by_figure(shown: Sequence[Rung]) -> list[tuple[Rung, ...]]:
  """Returns the rungs, those of several sizes in one paper's figure together.

  Two that the paper can't mean at once, as they are of one size, stay apart.
  """
  groups: dict[str, list[Rung]] = {}
  for rung in shown:
    figure = BY_POISONS[rung.size] if is_papers(rung) else rung.label
    groups.setdefault(figure, []).append(rung)
  panels = []
  for group in groups.values():
    alike = len({rung.size for rung in group}) < len(group)
    panels += [(rung,) for rung in group] if alike else [tuple(group)]
  return panels


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
  titles: Mapping,
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

    return Panel(titles[of], draw)

  return Chart(
    name=name,
    title=heading,
    caption=(*caption, BAND, *paper_lines()),
    panels=tuple(panel(of) for of in dict.fromkeys(of for of, _ in curves)),
    header=(
      *RUN,
      *("step", x_name, "increase", "mean", "lowest", "highest", "seeds"),
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
          *run_cells(o),
          *(p.step, x, increase, *spread(p.increase), len(p.runs)),
        )
