"""Dose-response: the share of seeds that succeed, against the dose."""

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes

from poison_jax.studies import style
from poison_jax.studies.charts import ORIGIN, Chart, Panel
from poison_jax.studies.origins import stated
from poison_jax.studies.outcomes import Rung
from poison_jax.studies.study_report.analysis import Analysis, Group
from poison_jax.studies.study_report.drawing import (
  dose_axis,
  draw_too_few,
  origins,
  unique,
)
from poison_jax.studies.verdict import LEVEL

_SEED, _SHARE = style.numbered(1), style.numbered(0)


def success_by_dose(analysis: Analysis) -> Chart | None:
  """Seeds, their share with its interval, and the curve; a panel a rung."""
  groups = analysis.groups
  doses = sorted({group.dose for group in groups})
  if len(doses) < 2:
    return None

  def panel(rung: Rung) -> Panel:
    here = [group for group in groups if group.rung == rung]

    def draw(axes: Axes) -> None:
      _draw_response(axes, analysis, rung)
      _draw_shares(axes, here)
      _draw_seeds(axes, here, least=min(d for d in doses if d > 0))
      dose_axis(axes, doses, label="poisoned documents")
      axes.set_ylim(-0.08, 1.08)
      axes.set_ylabel("share of seeds\nbackdoored")
      draw_too_few(axes)

    return Panel(rung.label, draw)

  shown = [r for r in analysis.rungs if any(g.rung == r for g in groups)]
  return Chart(
    name="success_by_dose",
    title="Dose-response: which seeds are backdoored",
    caption=(
      "Hollow squares: seeds, backdoored above or not below. Dots: their "
      "share, with the interval of Clopper and Pearson. Curve and band: "
      "logistic in the logarithm of the dose (Firth), drawn where a size has "
      "two doses; seeds are its units and dose zero stands apart. All "
      "intervals: ",
      stated(100 * LEVEL, "g", "poison_jax/studies/verdict.py, LEVEL"),
      " %.",
    ),
    panels=tuple(panel(rung) for rung in shown),
    header=(
      *ORIGIN,
      *("series", "size", "poisons", "successes", "seeds"),
      *("share", "low", "high"),
    ),
    rows=tuple(_rows(analysis)),
    entries=unique(e for group in groups for e in group.entries),
  )


def _draw_response(axes: Axes, analysis: Analysis, rung: Rung) -> None:
  found = analysis.responses.get(rung)
  if found is None:
    return
  axes.fill_between(
    found.dose_D,
    found.low_D,
    found.high_D,
    color=_SHARE.colour,
    alpha=0.15,
    linewidth=0,
  )
  axes.plot(found.dose_D, found.chance_D, color=_SHARE.colour, label="curve")


def _draw_shares(axes: Axes, groups: Sequence[Group]) -> None:
  values = [group.share.value for group in groups]
  ends = [(g.share.interval.low, g.share.interval.high) for g in groups]
  axes.errorbar(
    [group.dose for group in groups],
    values,
    yerr=[
      [value - low for value, (low, _) in zip(values, ends, strict=True)],
      [high - value for value, (_, high) in zip(values, ends, strict=True)],
    ],
    color=_SHARE.colour,
    linestyle="",
    marker=_SHARE.marker,
    elinewidth=1,
    capsize=2.5,
    label="share",
    clip_on=False,
    zorder=4,
  )


def _draw_seeds(axes: Axes, groups: Sequence[Group], *, least: int) -> None:
  """Draws a mark a seed at 0 or 1, side by side about the dose."""
  x, y = [], []
  for group in groups:
    for i, outcome in enumerate(group.outcomes):
      shift = i - (len(group.outcomes) - 1) / 2
      apart = 0.09 * least * shift if group.dose == 0 else 0
      x.append(group.dose * 1.09**shift + apart)
      y.append(1.04 if outcome.success else -0.04)
  axes.plot(
    x,
    y,
    color=_SEED.colour,
    linestyle="",
    marker=_SEED.marker,
    fillstyle=_SEED.fill,
    label="seeds",
    clip_on=False,
    zorder=5,
  )


def _rows(analysis: Analysis) -> Iterator[tuple]:
  for group in analysis.groups:
    share = group.share
    yield (
      *origins(group.entries),
      *("seeds", group.rung.label, group.dose, share.successes, share.runs),
      *(share.value, share.interval.low, share.interval.high),
    )
  for rung, found in analysis.responses.items():
    behind = origins(
      [e for g in analysis.groups if g.rung == rung for e in g.entries]
    )
    for dose, chance, low, high in zip(
      found.dose_D, found.chance_D, found.low_D, found.high_D, strict=True
    ):
      yield (*behind, "curve", rung.label, dose, "", "", chance, low, high)
