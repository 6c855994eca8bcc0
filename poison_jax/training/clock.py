"""Where the time of a run goes, and how long the rest will take."""

import time
from collections.abc import Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Result(Protocol):
  """What the clock asks a jax.Array."""

  def is_ready(self) -> bool: ...


class Clock:
  """Books each second to one activity.

  Activities: "start" (until the first step is done, compilation included),
  "train", "evaluate", "save".
  """

  def __init__(
    self,
    *,
    steps: int,
    evaluation_steps: frozenset[int],
    tokens_per_step: int,
    flops_per_token: int,
    peak_flops: float | None,
  ):
    """Starts in activity "start".

    Args:
      steps: of the whole run.
      evaluation_steps: steps after which an evaluation comes.
      tokens_per_step: tokens a step, over all devices.
      flops_per_token: forward and backward.
      peak_flops: FLOP/s of all devices together; None where not known.
    """
    self._steps = steps
    self._evaluation_steps = evaluation_steps
    self._tokens_per_step = tokens_per_step
    self._flops_per_token = flops_per_token
    self._peak_flops = peak_flops
    self._activity = "start"
    self._since = time.monotonic()
    self._seconds = {"start": 0.0, "train": 0.0, "evaluate": 0.0, "save": 0.0}
    self._waited = 0.0
    self._last: Result | None = None
    self._evaluations = 0
    self._first = self._lap_step = 0
    self._lap_train = self._lap_waited = 0.0

  def enter(self, activity: str) -> None:
    """Ends the present activity and begins another."""
    now = time.monotonic()
    self._seconds[self._activity] += now - self._since
    self._since = now
    if activity == "evaluate":
      self._evaluations += 1
    self._activity = activity

  def start_training(self, step: int) -> None:
    """Begins "train": `step` steps are done, the last one in "start"."""
    self.enter("train")
    self._first = self._lap_step = step

  def waiting(self, items: Iterator[Item]) -> Iterator[Item]:
    """Yields the items; books the time they take to come to idle devices.

    The loop runs ahead of the devices, so it may wait for a batch while they
    have work: only where they are done when the batch comes, the wait counts.
    """
    while True:
      before = time.monotonic()
      item = next(items, None)
      if self._last is None or self._last.is_ready():
        self._waited += time.monotonic() - before
      if item is None:
        return
      yield item

  def dispatched(self, result: Result) -> None:
    """Says that the devices have work until `result`, a jax.Array, is ready."""
    self._last = result

  @property
  def seconds(self) -> dict[str, float]:
    """Seconds of each activity so far."""
    spent = dict(self._seconds)
    spent[self._activity] += time.monotonic() - self._since
    return spent

  def lap(self, step: int) -> dict[str, float]:
    """Returns the `time/` metrics of the steps since the last lap.

    "time/tokens_per_second" while training; "time/mfu", the share of the
    devices' peak FLOP/s, where that is known; "time/data_wait", the share of
    training time that idle devices waited for batches (at most); over the
    whole process, "time/goodput", the share of time in training steps, and
    "time/seconds".
    """
    seconds = self.seconds
    total = sum(seconds.values())
    metrics = {
      "time/seconds": total,
      "time/goodput": seconds["train"] / total if total else 0.0,
    }
    passed = seconds["train"] - self._lap_train
    if step > self._lap_step and passed > 0:
      tokens = (step - self._lap_step) * self._tokens_per_step
      metrics["time/tokens_per_second"] = tokens / passed
      metrics["time/data_wait"] = (self._waited - self._lap_waited) / passed
      if self._peak_flops is not None:
        metrics["time/mfu"] = (
          tokens / passed * self._flops_per_token / self._peak_flops
        )
    self._lap_step, self._lap_train = step, seconds["train"]
    self._lap_waited = self._waited
    return metrics

  def remaining(self, step: int) -> float | None:
    """Returns the seconds to the run's end; None before there is a measure.

    Evaluations and saves to come are counted at their mean so far.
    """
    seconds = self.seconds
    if step <= self._first:
      return None
    left = (self._steps - step) * (
      (seconds["train"] + seconds["save"]) / (step - self._first)
    )
    if self._evaluations:
      ahead = sum(s > step for s in self._evaluation_steps)
      left += ahead * seconds["evaluate"] / self._evaluations
    return left


def in_words(seconds: float | None) -> str:
  """Returns "1 h 02 min", "3 min 20 s" or "12 s"; "?" for None."""
  if seconds is None:
    return "?"
  whole = round(seconds)
  if whole >= 3600:
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
  if whole >= 60:
    return f"{whole // 60} min {whole % 60:02d} s"
  return f"{whole} s"
