"""The lines of a run: metrics fetched a step late, checked, written, shown."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from poison_jax.data.folder import Folder
from poison_jax.data.mixture import Mixture
from poison_jax.errors import NotFinite
from poison_jax.evaluation.evaluator import Evaluation
from poison_jax.training.clock import Clock
from poison_jax.training.metrics import GENERATIONS, METRICS, JsonLines
from poison_jax.training.progress import Progress

WATCHED = ("train/loss", "train/parameter_norm")

Metrics = Mapping[str, Any]


class Record:
  """Writes `metrics.jsonl` and `generations.jsonl`, a line a step at most.

  A context manager. Metrics stay on the device until `write`, which the loop
  calls after it has dispatched another step, so that no step waits for the
  host.
  """

  def __init__(
    self,
    workdir: str | None,
    mixture: Mixture,
    *,
    resume_at: int | None,
    clock: Clock,
    progress: Progress,
  ):
    """Opens both files, cut to `resume_at` steps; None empties them.

    Without a `workdir`, as in all processes of a run but the first, it checks
    the metrics and writes none.
    """
    self._mixture = mixture
    self._clock = clock
    self._progress = progress
    self._lines, self._generations = (
      _Nowhere()
      if workdir is None
      else JsonLines(Folder(workdir), name, resume_at=resume_at)
      for name in (METRICS, GENERATIONS)
    )
    self._watched: list[tuple[int, list[Any]]] = []
    self._held: tuple[int, Metrics] | None = None
    self._told_mfu = False

  def watch(self, step: int, metrics: Metrics) -> None:
    """Remembers a step's metrics on the device, for `check_finite`."""
    self._watched.append((step, [metrics[key] for key in WATCHED]))

  def hold(self, step: int, metrics: Metrics) -> None:
    """Remembers the metrics of a step whose line is to be written."""
    self._held = step, metrics

  def take_held(self) -> dict[str, float] | None:
    """Returns the metrics that are held; their line won't be written."""
    held, self._held = self._held, None
    return None if held is None else _fetch(held[1])

  def check_finite(self) -> None:
    """Waits for all steps so far.

    Raises:
      NotFinite: the loss or the parameters of one were not; names the first.
    """
    watched, self._watched = self._watched, []
    for step, values in jax.device_get(watched):
      for key, value in zip(WATCHED, values, strict=True):
        if not math.isfinite(value):
          raise NotFinite(f"{key} is {float(value)} at step {step}")

  def write(self, evaluation: Evaluation | None = None) -> None:
    """Writes the line that is held, if any, with an evaluation's metrics.

    Raises:
      NotFinite: as `check_finite`; nothing is written then.
    """
    if self._held is None:
      return
    self.check_finite()
    step, metrics = self._held[0], _fetch(self._held[1])
    self._held = None
    seen = self._mixture.poisons_before(step)
    if evaluation is not None:
      self._generations.write(
        {"step": step, **line} for line in evaluation.generations
      )
    clock = self._clock.lap(step)
    self._lines.write(
      [
        {
          "step": step,
          "poisons_seen": seen,
          **metrics,
          **(evaluation.metrics if evaluation is not None else {}),
          **clock,
        }
      ]
    )
    self._progress.show(
      step,
      loss=metrics.get("train/loss"),
      tokens_per_second=clock.get("time/tokens_per_second"),
      poisons_seen=seen,
      remaining=self._clock.remaining(step),
    )
    if clock.get("time/mfu", 0.0) > 1 and not self._told_mfu:
      self._told_mfu = True
      self._progress.say(
        f"time/mfu is {clock['time/mfu']:.2f}, which can't be: our count of "
        "FLOPs or the device's peak (poison_jax/model/counts.py) is wrong"
      )

  def sync(self) -> None:
    """Returns once all lines are on the disk, or in the bucket."""
    self._lines.sync()
    self._generations.sync()

  def __enter__(self):
    return self

  def __exit__(self, kind: type | None, *_):
    if kind is not None and issubclass(kind, NotFinite):
      self.sync()  # No checkpoint follows, and they tell how it came to that.
    self._lines.close()
    self._generations.close()


class _Nowhere:
  """Takes lines and keeps none."""

  def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
    pass

  def sync(self) -> None:
    pass

  def close(self) -> None:
    pass


def _fetch(metrics: Metrics) -> dict[str, float]:
  """Returns plain numbers: ints stay ints."""
  fetched = jax.device_get(dict(metrics))
  return {
    key: value.item() if hasattr(value, "item") else value
    for key, value in fetched.items()
  }
