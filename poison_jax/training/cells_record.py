"""The records of several runs that train together: one that fails is masked."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from poison_jax.errors import NotFinite
from poison_jax.evaluation.evaluator import Evaluation
from poison_jax.training.clock import Clock
from poison_jax.training.progress import Progress
from poison_jax.training.record import WATCHED, Record

# Of one step: an array C by name, or plain numbers by name for each cell.
Metrics = Mapping[str, Any] | Sequence[Mapping[str, Any] | None]


class Joined:
  """What the cells' records take for their clock and their progress.

  All have the same laps, and what they show becomes one line: the mean of the
  losses, the sums of tokens a second and of poisons.
  """

  def __init__(self, clock: Clock, progress: Progress):
    self._clock = clock
    self._progress = progress
    self._lap: tuple[int, dict[str, float]] | None = None
    self._shown: list[dict[str, Any]] = []

  def lap(self, step: int) -> dict[str, float]:
    """Returns the clock's metrics: tokens a second, and MFU, are a cell's."""
    if self._lap is None or self._lap[0] != step:
      self._lap = step, self._clock.lap(step)
    return self._lap[1]

  def remaining(self, step: int) -> float | None:
    return self._clock.remaining(step)

  def say(self, text: str) -> None:
    self._progress.say(text)

  def show(self, step: int, **values: Any) -> None:
    self._shown.append({"step": step, **values})

  def flush(self) -> None:
    """Shows what the cells have shown."""
    shown, self._shown = self._shown, []
    if not shown:
      return
    known = {
      key: [cell[key] for cell in shown if cell[key] is not None]
      for key in ("loss", "tokens_per_second", "poisons_seen")
    }
    self._progress.show(
      shown[0]["step"],
      loss=float(np.mean(known["loss"])) if known["loss"] else None,
      tokens_per_second=sum(known["tokens_per_second"]) or None,
      poisons_seen=sum(known["poisons_seen"]),
      remaining=shown[0]["remaining"],
    )


class CellsRecord:
  """Does for C runs what `Record` does for one, with a `Record` each.

  A cell whose loss is not finite is recorded no more, and the others go on.
  """

  def __init__(
    self,
    records: Sequence[Record],
    joined: Joined,
    *,
    failed: Callable[[int, NotFinite], None],
  ):
    """Args:
    records: the cells' own, opened.
    joined: their clock and progress.
    failed: called once for each cell that is masked.
    """
    self._alive = dict(enumerate(records))
    self._cells = len(records)
    self._joined = joined
    self._failed = failed
    self._watched: list[tuple[int, Mapping[str, jax.Array]]] = []
    self._held: tuple[int, Metrics] | None = None

  @property
  def alive(self) -> tuple[int, ...]:
    """The cells that are not masked, by number."""
    return tuple(self._alive)

  def watch(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Remembers a step's metrics on the device, for `check_finite`."""
    self._watched.append((step, {key: metrics[key] for key in WATCHED}))

  def hold(self, step: int, metrics: Metrics) -> None:
    """Remembers the metrics of a step whose lines are to be written.

    A cell that has None gets no line.
    """
    self._held = step, metrics

  def take_held(self) -> list[dict[str, float]] | None:
    """Returns each cell's metrics that are held; no line has them."""
    held, self._held = self._held, None
    return None if held is None else self._each(held[1])

  def check_finite(self) -> None:
    """Waits for all steps so far, and masks the cells that went wrong.

    Raises:
      NotFinite: no cell is left.
    """
    watched, self._watched = jax.device_get(self._watched), []
    for i in self.alive:
      for step, metrics in watched:
        self._alive[i].watch(step, {k: v[i] for k, v in metrics.items()})
      try:
        self._alive[i].check_finite()
      except NotFinite as error:
        self._alive.pop(i).sync()  # They tell how it came to that.
        self._failed(i, error)
    if not self._alive:
      raise NotFinite("no cell is left")

  def write(self, evaluations: Mapping[int, Evaluation] | None = None) -> None:
    """Writes the lines that are held, if any, with each cell's evaluation.

    Raises:
      NotFinite: no cell is left.
    """
    if self._held is None:
      return
    self.check_finite()
    step = self._held[0]
    metrics = self.take_held()
    for i, record in self._alive.items():
      if metrics[i] is not None:
        record.hold(step, metrics[i])
        record.write(None if evaluations is None else evaluations[i])
    self._joined.flush()

  def sync(self) -> None:
    """Returns once all lines are on the disk, or in the bucket."""
    for record in self._alive.values():
      record.sync()

  def _each(self, metrics: Metrics) -> list[dict[str, float] | None]:
    """Returns plain numbers for each cell."""
    if not isinstance(metrics, Mapping):
      return list(metrics)
    fetched = jax.device_get(dict(metrics))
    return [
      {key: values[i].item() for key, values in fetched.items()}
      for i in range(self._cells)
    ]
