"""What a run shows while it goes: a live line, or a plain one now and then."""

import sys
import time

import rich.console
import rich.progress

from poison_jax.training.clock import in_words

_PLAIN_EVERY = 5.0  # Seconds between plain lines.


class Progress:
  """A bar on a terminal, plain lines elsewhere (a log file, a pipe)."""

  def __init__(self, *, steps: int, poisons: int):
    """Args: the run's steps and poisons in all."""
    self._steps, self._poisons = steps, poisons
    self._live = sys.stdout.isatty()
    self._last_plain = time.monotonic()
    self._text = "starting"
    if self._live:
      self._bar = rich.progress.Progress(
        rich.progress.BarColumn(bar_width=20),
        rich.progress.TextColumn("{task.description}"),
        console=rich.console.Console(),
        transient=True,
      )
      self._task = self._bar.add_task(self._text, total=steps)

  def __enter__(self):
    if self._live:
      self._bar.start()
    return self

  def __exit__(self, *_):
    if self._live:
      self._bar.stop()

  def say(self, text: str) -> None:
    """Prints a line that stays."""
    if self._live:
      self._bar.console.print(text, highlight=False, markup=False)
    else:
      print(text, flush=True)

  def show(
    self,
    step: int,
    *,
    loss: float | None,
    tokens_per_second: float | None,
    poisons_seen: int,
    remaining: float | None,
  ) -> None:
    """Shows where the run is."""
    parts = [f"step {step}/{self._steps}"]
    if loss is not None:
      parts.append(f"loss {loss:.3f}")
    if tokens_per_second is not None:
      parts.append(f"{tokens_per_second:,.0f} tokens/s")
    parts.append(f"poisons {poisons_seen}/{self._poisons}")
    parts.append(f"{in_words(remaining)} left")
    self._text = ", ".join(parts)
    if self._live:
      self._bar.update(self._task, completed=step, description=self._text)
      return
    now = time.monotonic()
    if now - self._last_plain >= _PLAIN_EVERY or step == self._steps:
      self._last_plain = now
      print(self._text, flush=True)

  def doing(self, what: str | None) -> None:
    """Says on the live line what takes longer than a step; None: steps."""
    if self._live:
      text = self._text if what is None else f"{self._text}, {what}"
      self._bar.update(self._task, description=text)
