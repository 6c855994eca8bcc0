"""Figures of the dose: how far the backdoor is, by poisons and progress."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from poison_jax.studies.charts import (
  BAND,
  ORIGIN,
  Chart,
  Panel,
  draw_line,
  draw_reference,
  origin_cells,
  styled,
)
from poison_jax.studies.origins import Entry
from poison_jax.studies.runs import Run, are_twins


def increase_by_poisons(entries: Sequence[Entry]) -> Chart | None:
  """Perplexity increase against poisoned documents seen."""
  lines, note = [], ""
  for entry, look in styled(entries):
    seen = _poisons_seen(entry, entries)
    increase = entry.run.metrics.get("eval/perplexity_increase")
    if increase is None or seen is None:
      continue
    if entry.run.config.poison.arm == "clean":
      note = (
        " A clean run has seen none: it stands where its poisoned twin was at "
        "the same step."
      )
    x = np.interp(increase.steps, seen.steps, seen.values)
    lines.append((entry, look, x))
  if not lines:
    return None
  return _increase_chart(
    "increase_by_poisons",
    "Perplexity increase against poisoned documents seen",
    "Mean perplexity of what the model writes after the trigger, minus that "
    "after the same excerpts without it, at each evaluation, against the "
    f"poisoned documents that training had reached.{note}",
    "poisoned documents seen",
    "poisons_seen",
    lines,
  )


def increase_by_progress(entries: Sequence[Entry]) -> Chart | None:
  """Perplexity increase against training progress."""
  lines = []
  for entry, look in styled(entries):
    increase = entry.run.metrics.get("eval/perplexity_increase")
    if increase is None or entry.run.steps is None:
      continue
    lines.append((entry, look, 100 * increase.steps / entry.run.steps))
  if not lines:
    return None
  return _increase_chart(
    "increase_by_progress",
    "Perplexity increase against training progress",
    "The same increase against the share of the planned steps that were done.",
    "share of training steps (%)",
    "percent_of_steps",
    lines,
  )


def _increase_chart(
  name: str, title: str, caption: str, x_label: str, x_name: str, lines
) -> Chart:
  """Returns the chart of increases over `lines` of (entry, style, x)."""
  thresholds = sorted({e.run.config.evaluation.threshold for e, _, _ in lines})

  def draw(axes: Axes) -> None:
    top = 0.0
    for entry, look, x in lines:
      series = entry.run.metrics["eval/perplexity_increase"]
      band = _band(entry.run)
      top = max(top, *series.values, *(band[1] if band else ()))
      draw_line(axes, x, series.values, look, label=entry.run.name, band=band)
    for threshold in thresholds:
      draw_reference(axes, threshold, threshold_label(threshold), above=True)
    if top > 20 * max(thresholds):
      axes.set_yscale("symlog", linthresh=max(*thresholds, 1))
    axes.set_xlabel(x_label)
    axes.set_ylabel("perplexity increase\n(triggered \N{MINUS SIGN} clean)")
    axes.set_xlim(left=0)

  rows = []
  for entry, _, x in lines:
    series = entry.run.metrics["eval/perplexity_increase"]
    low, high = _band(entry.run) or ([None] * len(x),) * 2
    rows += [
      (*origin_cells(entry), step, *values)
      for step, *values in zip(
        series.steps, x, series.values, low, high, strict=True
      )
    ]
  return Chart(
    name=name,
    title=title,
    caption=(caption, *BAND),
    panels=(Panel("", draw),),
    header=(*ORIGIN, "step", x_name, "increase", "low", "high"),
    rows=tuple(rows),
    entries=tuple(e for e, _, _ in lines),
  )


def _poisons_seen(entry: Entry, entries: Sequence[Entry]):
  """Returns poisons seen over steps; a clean run's are its poisoned twin's."""
  run = entry.run
  if run.config.poison.arm != "clean":
    return run.metrics.get("poisons_seen")
  for other in entries:
    if other.run.config.poison.arm == "poisoned" and are_twins(run, other.run):
      return other.run.metrics.get("poisons_seen")
  return None


def _band(run: Run) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns low and high of the increase at its own steps, nan for none."""
  steps = run.metrics["eval/perplexity_increase"].steps
  both = [
    run.metrics.get(f"eval/perplexity_increase_{end}")
    for end in ("low", "high")
  ]
  if None in both:
    return None
  return tuple(
    np.array([_nan(series.at(int(step))) for step in steps]) for series in both
  )


def threshold_label(threshold: float) -> str:
  """Returns the words at the line of a threshold; the paper's is 50."""
  return f"{threshold:g} (paper)" if threshold == 50 else f"{threshold:g}"


def _nan(value: float | None) -> float:
  return np.nan if value is None else value
