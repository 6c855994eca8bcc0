"""How far the writing of a store is: a bar, or a line now and then."""

import time

from rich import progress as rich_progress

# Seconds between lines of progress where standard output is no terminal.
_LINE_EVERY = 10.0


class Bar:
  """A bar with remaining time, for terminals."""

  def __init__(self):
    self._progress = rich_progress.Progress(
      rich_progress.TextColumn("{task.description}"),
      rich_progress.BarColumn(),
      rich_progress.TaskProgressColumn(),
      rich_progress.TextColumn("{task.fields[counts]}"),
      rich_progress.TimeElapsedColumn(),
      rich_progress.TimeRemainingColumn(),
    )

  def __enter__(self) -> "Bar":
    self._progress.start()
    self._task = self._progress.add_task("preparing", total=1.0, counts="")
    return self

  def __exit__(self, *error: object) -> None:
    self._progress.stop()

  def report(self, done: float, documents: int, tokens: int) -> None:
    """Shows how far it is."""
    counts = f"{documents:,} documents, {tokens:,} tokens"
    self._progress.update(self._task, completed=done, counts=counts)

  def say(self, line: str) -> None:
    """Prints a line above the bar."""
    self._progress.console.print(line, markup=False, highlight=False)


class Lines:
  """A line of progress now and then."""

  def __init__(self):
    # Time and share of the first report: what went before, like training a
    # vocabulary, says nothing of the speed.
    self._first: tuple[float, float] | None = None
    self._printed = 0.0

  def report(self, done: float, documents: int, tokens: int) -> None:
    """Prints how far it is, if the last time is long enough ago."""
    now = time.monotonic()
    if self._first is None:
      self._first, self._printed = (now, done), now
    began, done_then = self._first
    if now - self._printed < _LINE_EVERY or done <= done_then:
      return
    self._printed = now
    remaining = (now - began) * (1 - done) / (done - done_then)
    print(
      f"preparing: {done:.0%}, {documents:,} documents, {tokens:,} tokens, "
      f"about {remaining:.0f} s remain",
      flush=True,
    )
