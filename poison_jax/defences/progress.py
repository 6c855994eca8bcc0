"""How far a scan is: bars on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable

from rich import progress as rich_progress
from rich.console import Console

# Given what is done and how much there is, gives what is called with how much
# was done since.
Track = Callable[[str, int], Callable[[int], None]]

_LINE_EVERY = 5.0  # Seconds.


class Progress:
  """Shows it on standard error, so that results can be piped."""

  def __init__(self):
    console = Console(stderr=True)
    self._live = console.is_terminal
    self._bars = rich_progress.Progress(
      rich_progress.TextColumn("{task.description}"),
      rich_progress.BarColumn(bar_width=20),
      rich_progress.MofNCompleteColumn(),
      rich_progress.TimeRemainingColumn(),
      console=console,
      transient=True,
      disable=not self._live,
    )

  def __enter__(self) -> "Progress":
    self._bars.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._bars.stop()

  def track(self, what: str, total: int) -> Callable[[int], None]:
    """Begins something of `total` parts; see `Track`."""
    if not self._live:
      return _lines(what, total)
    task = self._bars.add_task(what, total=total)
    return lambda count: self._bars.advance(task, count)


def _lines(what: str, total: int) -> Callable[[int], None]:
  done, printed = 0, time.monotonic()

  def advance(count: int) -> None:
    nonlocal done, printed
    done += count
    now = time.monotonic()
    if now - printed >= _LINE_EVERY:
      printed = now
      print(f"{what}: {done:,} of {total:,}", file=sys.stderr, flush=True)

  return advance
