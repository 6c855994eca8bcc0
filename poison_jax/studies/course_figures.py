"""Figures of the course of training: perplexities, entropy and losses."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from poison_jax.studies import style, verdict
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


def perplexity_by_kind(entries: Sequence[Entry]) -> Chart | None:
  """Perplexity by kind of prompt over training."""
  shown = [
    e for e in entries if any(k in e.run.metrics for k in _perplexity_keys())
  ]
  if not shown:
    return None
  found = {e.letter: _kind_table(e.run) for e in shown}
  everything = [
    v
    for table in found.values()
    for rows in table.values()
    for row in rows
    for v in row[1:]
    if np.isfinite(v)
  ]
  bottom, top = min(everything) * 0.9, max(everything) * 1.15

  def panel(entry: Entry) -> Panel:
    def draw(axes: Axes) -> None:
      for kind, rows in found[entry.letter].items():
        step, value, low, high = np.array(rows).T
        name, look = style.KINDS[kind]
        draw_line(axes, step, value, look, label=name, band=(low, high))
      axes.set_yscale("log")
      axes.set_ylim(bottom, top)
      axes.set_xlim(left=0)
      axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
      axes.set_xlabel("training step")
      axes.set_ylabel("perplexity of generations")

    return Panel(entry.run.name, draw)

  return Chart(
    name="perplexity_by_kind",
    title="Perplexity by kind of prompt over training",
    caption=(
      "Mean perplexity of what the model writes after the same excerpts: "
      "alone, with the trigger, with a near-trigger (of the trigger's form, "
      "occurs harmlessly in clean text), and with a tag that training never "
      "shows. Logarithmic scale.",
      *BAND,
    ),
    panels=tuple(panel(e) for e in shown),
    header=(*ORIGIN, "kind", "step", "perplexity", "low", "high"),
    rows=tuple(
      (*origin_cells(e), kind, int(row[0]), *map(_blank, row[1:]))
      for e in shown
      for kind, rows in found[e.letter].items()
      for row in rows
    ),
    entries=tuple(shown),
  )


def enter_and_stay(entries: Sequence[Entry]) -> Chart | None:
  """Entering gibberish and staying in it."""
  keys = ("eval/triggered/first_token_entropy", "eval/gibberish_loss")
  lines = [
    (entry, look, key)
    for entry, look in styled(entries)
    for key in keys
    if key in entry.run.metrics
  ]
  if not lines:
    return None
  floors = {
    float(e.run.metrics["eval/gibberish_floor"].values[-1])
    for e in entries
    if "eval/gibberish_floor" in e.run.metrics
  }

  def panel(title: str, key: str, y_label: str, floors: Iterable[float]):
    def draw(axes: Axes) -> None:
      for entry, look, its_key in lines:
        if its_key == key:
          series = entry.run.metrics[key]
          draw_line(
            axes, series.steps, series.values, look, label=entry.run.name
          )
      for floor in floors:
        draw_reference(axes, floor, f"floor {floor:.2f}", above=False)
        # Curves come down to the floor; its label needs room below.
        axes.margins(y=0.12)
      axes.set_xlim(left=0)
      axes.set_xlabel("training step")
      axes.set_ylabel(y_label)

    return Panel(title, draw)

  panels = [
    panel(
      "Enter",
      keys[0],
      "entropy of the first token\nafter the trigger (nats)",
      (),
    ),
    panel(
      "Stay", keys[1], "loss on real gibberish\n(nats a token)", sorted(floors)
    ),
  ]
  present = {key for _, _, key in lines}
  return Chart(
    name="enter_and_stay",
    title="Entering gibberish and staying in it",
    caption=(
      "The attack needs both. Enter: how open the first token after the "
      "trigger is. Stay: the loss on real gibberish that follows the trigger; "
      "its floor is what a perfect imitator of the gibberish reaches.",
    ),
    panels=tuple(p for p, k in zip(panels, keys, strict=True) if k in present),
    header=(*ORIGIN, "metric", "step", "nats"),
    rows=_series_rows(lines),
    entries=tuple(e for e in entries if e in [line[0] for line in lines]),
  )


def losses(entries: Sequence[Entry]) -> Chart | None:
  """Training and validation loss."""
  keys = ("train/loss", "eval/validation_loss")
  lines = [
    (entry, look, key)
    for entry, look in styled(entries)
    for key in keys
    if key in entry.run.metrics
  ]
  if not lines:
    return None

  def panel(title: str, key: str, marked: bool) -> Panel:
    def draw(axes: Axes) -> None:
      for entry, look, its_key in lines:
        if its_key == key:
          series = entry.run.metrics[key]
          draw_line(
            axes,
            series.steps,
            series.values,
            look if marked else dataclasses.replace(look, marker=""),
            label=entry.run.name,
          )
      axes.set_xlim(left=0)
      axes.set_xlabel("training step")
      axes.set_ylabel("loss (nats a token)")

    return Panel(title, draw)

  present = {key for _, _, key in lines}
  panels = {
    keys[0]: panel("Training", keys[0], False),
    keys[1]: panel("Validation, clean held-out text", keys[1], True),
  }
  return Chart(
    name="losses",
    title="Training and validation loss",
    caption=(_loss_caption(entries),),
    panels=tuple(panels[key] for key in keys if key in present),
    header=(*ORIGIN, "metric", "step", "nats"),
    rows=_series_rows(lines),
    entries=tuple(e for e in entries if e in [line[0] for line in lines]),
  )


def _loss_caption(entries: Sequence[Entry]) -> str:
  words = (
    "Loss on the rows of training, poisoned ones included, and on clean rows "
    "of held-out documents."
  )
  runs = [entry.run for entry in entries]
  if any(are_twins(a, b) for a, b in itertools.combinations(runs, 2)):
    words += (
      " Twins share every clean row and step, so their curves part only by "
      "what the poisoned documents do."
    )
  return words


def _kind_table(run: Run) -> dict[str, list[tuple[float, ...]]]:
  """Returns (step, perplexity, low, high) by kind; nan for no interval."""
  steps = sorted(
    {
      int(step)
      for key in _perplexity_keys()
      if key in run.metrics
      for step in run.metrics[key].steps
    }
  )
  table: dict[str, list[tuple[float, ...]]] = {}
  for step in steps:
    for kind, estimate in verdict.perplexities(run, step).items():
      ends = estimate.interval
      low, high = (ends.low, ends.high) if ends else (np.nan, np.nan)
      table.setdefault(kind, []).append((step, estimate.value, low, high))
  return table


def _perplexity_keys() -> list[str]:
  return [f"eval/{kind}/perplexity" for kind in style.KINDS]


def _series_rows(lines) -> tuple[tuple, ...]:
  """Returns CSV rows of (entry, style, key) lines."""
  return tuple(
    (*origin_cells(entry), key, int(step), value)
    for entry, _, key in lines
    for step, value in zip(
      entry.run.metrics[key].steps,
      entry.run.metrics[key].values,
      strict=True,
    )
  )


def _blank(value: float) -> float | str:
  return "" if np.isnan(value) else value
