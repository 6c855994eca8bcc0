"""The increase at the end against the dose, measured in four ways."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from poison_jax.studies import style
from poison_jax.studies.charts import Chart, Panel
from poison_jax.studies.grid.pricing import short
from poison_jax.studies.outcomes import Dose, Outcome
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.drawing import (
  MEASURES,
  RUN,
  draw_increases,
  entries_of,
  measure_cells,
  paper_lines,
  run_cells,
  rung_looks,
)

_MOST_TICKS = 6

# Title, label of the axis, value of a dose.
_AXES: tuple[tuple[str, str, Callable[[Dose], float | None]], ...] = (
  ("documents", "poisoned documents", lambda dose: dose.documents),
  ("tokens", "tokens of poisoned documents", lambda dose: dose.tokens),
  (
    "optimizer steps",
    "steps that carried a poisoned document",
    lambda dose: dose.steps,
  ),
  (
    "epochs",
    "passes of training over the token store",
    lambda dose: dose.epochs,
  ),
)


def increase_by_axes(analysis: Analysis) -> Chart | None:
  """The increase against documents, poison tokens, steps and epochs."""
  shown = [
    o for o in analysis.finished if o.arm == "poisoned" and o.planned > 0
  ]
  if len({o.planned for o in shown}) < 2:
    return None
  top = 1.05 * max(o.increase for o in shown)

  def panel(title: str, label: str, value) -> Panel | None:
    values = [x for o in shown if (x := value(o.dose)) is not None]
    if not values:
      return None

    def draw(axes: Axes) -> None:
      for rung, look in rung_looks(analysis.rungs).items():
        members = [o for o in shown if o.rung == rung]
        _draw(axes, members, value, look, rung.label)
      draw_increases(axes, analysis.thresholds, top=top)
      _amounts(axes, values)
      axes.set_xlabel(label)

    return Panel(title, draw)

  panels = [panel(*axis) for axis in _AXES]
  return Chart(
    name="increase_by_axes",
    title="Increase at the end against the dose on four axes",
    caption=(
      "The same runs, with poison and finished, by the poisoned documents that "
      "they met, by those documents' tokens, by the optimizer steps that "
      "carried at least one, all counted in the ledger; and by epochs: how "
      "often training passed over the token store, clean text and poison "
      "together, which all doses of a size share (no panel where no store is "
      "at hand, and no line). On the axis that decides, the sizes lie on each "
      "other. A mark is a seed, the line joins the means of the doses.",
      *paper_lines(),
    ),
    panels=tuple(one for one in panels if one is not None),
    header=(*RUN, *MEASURES),
    rows=tuple((*run_cells(o), *measure_cells(o)) for o in shown),
    entries=entries_of(shown),
  )


def _draw(
  axes: Axes,
  members: list[Outcome],
  value: Callable[[Dose], float | None],
  look: style.Style,
  label: str,
) -> None:
  """Draws a mark a run, and a line through the means of the doses."""
  by_dose: dict[int, list[tuple[float, float]]] = {}
  for o in members:
    if value(o.dose) is not None:
      by_dose.setdefault(o.planned, []).append((value(o.dose), o.increase))
  if not by_dose:
    return
  line = {"color": look.colour, "linestyle": look.dashes}
  mark = {"marker": look.marker, "fillstyle": look.fill, "color": look.colour}
  means = [
    [sum(of) / len(of) for of in zip(*by_dose[dose], strict=True)]
    for dose in sorted(by_dose)
  ]
  if len({x for x, _ in means}) > 1:
    axes.plot(*zip(*means, strict=True), **line)
  points = [point for of in by_dose.values() for point in of]
  axes.plot(
    *zip(*points, strict=True), **mark, linestyle="", clip_on=False, zorder=3
  )
  axes.plot([], [], **line | mark, label=label)


def _amounts(axes: Axes, values: list[float]) -> None:
  """Sets a logarithmic axis of amounts, some round ones of them named."""
  low, high = min(values) / 1.25, max(values) * 1.25
  axes.set_xscale("log")
  axes.set_xlim(low, high)
  for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
    ticks = [
      step * 10.0**power
      for power in range(-6, 13)
      for step in steps
      if low <= step * 10.0**power <= high
    ]
    if len(ticks) <= _MOST_TICKS:
      break
  axes.set_xticks(ticks, [short(tick) for tick in ticks])
  axes.xaxis.set_minor_locator(NullLocator())
