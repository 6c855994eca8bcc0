"""Figures of the last evaluation: increase by dose and by clean tokens."""

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from poison_jax.studies import style
from poison_jax.studies.charts import Chart, Panel
from poison_jax.studies.grid.pricing import short
from poison_jax.studies.outcomes import Outcome, Rung
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.drawing import (
  MEASURES,
  RUN,
  dose_axis,
  draw_increases,
  draw_too_few,
  entries_of,
  measure_cells,
  paper_lines,
  run_cells,
  rung_looks,
)

_MARKS = " A mark is a seed, the line their mean."
# Points between the marks of neighbouring sizes at one dose.
_APART = 3.0
SIDE_BY_SIDE = " Sizes stand side by side about their dose."


def increase_by_dose(analysis: Analysis) -> Chart | None:
  """The increase at the end against the dose, in both measures."""
  shown = [o for o in analysis.finished if o.arm != "placebo"]
  doses = sorted({o.planned for o in shown})
  if len(doses) < 2:
    return None
  top = 1.05 * max(o.increase for o in shown)

  def perplexity(axes: Axes) -> None:
    _draw_rungs(axes, analysis, shown, lambda o: o.increase)
    draw_increases(axes, analysis.thresholds, top=top)
    dose_axis(axes, doses, label="poisoned documents")
    draw_too_few(axes)

  def nats(axes: Axes) -> None:
    _draw_rungs(axes, analysis, shown, lambda o: o.nats)
    axes.set_ylabel("log-perplexity increase\n(nats a token)")
    dose_axis(axes, doses, label="poisoned documents")

  panels = [Panel("perplexity", perplexity)]
  if any(o.nats is not None for o in shown):
    panels.append(Panel("nats", nats))
  return Chart(
    name="increase_by_dose",
    title="Increase at the end of training against the dose",
    caption=(
      "Both measures at the last evaluation. The increase in nats and the "
      "share of the room to the ceiling compare models and vocabularies that "
      "perplexity does not.",
      _MARKS,
      SIDE_BY_SIDE,
      *paper_lines(),
    ),
    panels=tuple(panels),
    header=(*RUN, *MEASURES),
    rows=tuple((*run_cells(o), *measure_cells(o)) for o in shown),
    entries=entries_of(shown),
  )


def _draw_rungs(
  axes: Axes,
  analysis: Analysis,
  shown: Sequence[Outcome],
  value: Callable[[Outcome], float | None],
) -> None:
  """Draws a mark a seed and a line through their means, a rung each."""
  by_rung: dict[Rung, dict[int, list[float]]] = {}
  for o in shown:
    if value(o) is not None:
      doses = by_rung.setdefault(o.rung, {})
      doses.setdefault(o.planned, []).append(value(o))
  draw_by_rung(axes, analysis, by_rung)


def draw_by_rung(
  axes: Axes,
  analysis: Analysis,
  found: Mapping[Rung, Mapping[int, list[float]]],
) -> None:
  """Draws each rung's values by dose and their means, rungs side by side."""
  looks = rung_looks(analysis.rungs)
  for i, (rung, look) in enumerate(looks.items()):
    shift = _APART * (i - (len(looks) - 1) / 2)
    draw_means(axes, found.get(rung, {}), look, rung.label, shift=shift)


def draw_means(
  axes: Axes,
  found: Mapping[float, list[float]],
  look: style.Style,
  label: str,
  *,
  shift: float,
) -> None:
  """Draws each value by x, and a line through the means.

  Args:
    axes: to be drawn on.
    found: values by x.
    look: of the line and its marks.
    label: for the legend.
    shift: points by which all of it stands to the right of x.
  """
  if not found:
    return
  x = sorted(found)
  line = {"color": look.colour, "linestyle": look.dashes}
  mark = {"marker": look.marker, "fillstyle": look.fill}
  drawn = axes.plot(x, [sum(found[one]) / len(found[one]) for one in x], **line)
  drawn += axes.plot(
    [one for one in x for _ in found[one]],
    [y for one in x for y in found[one]],
    **mark,
    color=look.colour,
    linestyle="",
    clip_on=False,
    zorder=3,
  )
  # After the plot, so that the axes' limits are those of the values.
  aside = ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
  for artist in drawn:
    artist.set_transform(axes.transData + aside)
  axes.plot([], [], **line, **mark, label=label)


def increase_by_tokens(analysis: Analysis) -> Chart | None:
  """The increase at the end against clean tokens, where they vary."""
  shown = [
    o
    for o in analysis.finished
    if o.arm != "placebo" and _token_counts(analysis, o.rung.size) > 1
  ]
  if not shown:
    return None
  doses = sorted({o.planned for o in shown})
  top = 1.05 * max(o.increase for o in shown)

  def panel(size: str) -> Panel:
    def draw(axes: Axes) -> None:
      ticks = {o.rung.tokens: short(o.rung.tokens) for o in shown}
      for i, dose in enumerate(doses):
        found: dict[float, list[float]] = {}
        for o in shown:
          if o.rung.size == size and o.planned == dose:
            found.setdefault(o.rung.tokens, []).append(o.increase)
        draw_means(axes, found, style.numbered(i), f"{dose} documents", shift=0)
      draw_increases(axes, analysis.thresholds, top=top)
      axes.set_xscale("log")
      axes.minorticks_off()
      here = sorted({o.rung.tokens for o in shown if o.rung.size == size})
      axes.set_xticks(here, [ticks[tokens] for tokens in here])
      axes.set_xlabel("clean tokens of training")

    return Panel(size, draw)

  return Chart(
    name="increase_by_tokens",
    title="Increase against the amount of clean data at one size",
    caption=(
      "The same model and doses with less and more clean text. If the count "
      "of poisoned documents decides, the lines are level.",
      _MARKS,
      *paper_lines(),
    ),
    panels=tuple(panel(s) for s in dict.fromkeys(o.rung.size for o in shown)),
    header=(*RUN, *MEASURES),
    rows=tuple((*run_cells(o), *measure_cells(o)) for o in shown),
    entries=entries_of(shown),
  )


def _token_counts(analysis: Analysis, size: str) -> int:
  return len({r.tokens for r in analysis.rungs if r.size == size})


def controls(analysis: Analysis) -> Chart | None:
  """Trigger, near-trigger, unseen tag and placebo: is it the poison?"""
  lines = {
    "triggered": "trigger",
    "near_trigger": "near-trigger",
    "unseen_tag": "unseen tag",
  }
  points = [
    (o, words, increase)
    for o in analysis.finished
    for kind, words in lines.items()
    if (increase := _increase_of(o, kind)) is not None
    and (o.arm != "placebo" or kind == "triggered")
  ]
  wanted = [o for o, words, _ in points if words != "trigger"]
  wanted += [o for o, _, _ in points if o.arm == "placebo"]
  if not wanted:
    return None
  doses = sorted({o.planned for o, _, _ in points})
  bottom, top = (pick(i for _, _, i in points) for pick in (min, max))
  room = 0.06 * (top - min(bottom, 0))

  def panel(rung) -> Panel:
    def draw(axes: Axes) -> None:
      series = [(words, "poisoned") for words in lines.values()]
      for i, (words, arm) in enumerate([*series, ("trigger", "placebo")]):
        found: dict[float, list[float]] = {}
        for o, its_words, increase in points:
          its_arm = "placebo" if o.arm == "placebo" else "poisoned"
          if (o.rung, its_words, its_arm) == (rung, words, arm):
            found.setdefault(o.planned, []).append(increase)
        label = f"{words}, placebo arm" if arm == "placebo" else words
        draw_means(axes, found, style.numbered(i), label, shift=0)
      axes.axhline(0, color=style.MUTED, linewidth=0.8)
      dose_axis(axes, doses, label="poisoned documents")
      axes.set_ylim(min(bottom, 0) - room, top + room)
      axes.set_ylabel("log-perplexity over that of\nclean prompts (nats)")

    return Panel(rung.label, draw)

  shown_rungs = [r for r in analysis.rungs if any(o.rung == r for o in wanted)]
  return Chart(
    name="controls",
    title="Controls: placebo, near-trigger and unseen tag",
    caption=(
      "Mean log-perplexity of what follows each kind of prompt, minus that "
      "after the same excerpts alone. Near-trigger: a tag of the trigger's "
      "form that occurs harmlessly in clean text. Unseen tag: one that never "
      "occurs in training. Placebo arm: the poisoned documents' prefixes and "
      "triggers, without gibberish. A backdoor raises the trigger alone.",
      _MARKS,
    ),
    panels=tuple(panel(rung) for rung in shown_rungs),
    header=(*RUN, "prompt", "nats"),
    rows=tuple((*run_cells(o), words, nats) for o, words, nats in points),
    entries=entries_of(o for o, _, _ in points),
  )


def _increase_of(outcome: Outcome, kind: str) -> float | None:
  """Returns a kind's mean log-perplexity minus that of clean prompts."""
  metrics = outcome.entry.run.metrics
  keys = [f"eval/{name}/log_perplexity" for name in (kind, "clean")]
  if any(key not in metrics for key in keys):
    return None
  values = [metrics[key].at(outcome.step) for key in keys]
  return None if None in values else values[0] - values[1]
