"""The table of a study in the terminal: a sparkline a cell."""

import time
from collections.abc import Sequence

import rich.console
import rich.live
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from poison_jax.studies.grid.remaining import Left, time_left
from poison_jax.studies.grid.states import Kind, State
from poison_jax.training.clock import in_words

_BARS = "▁▂▃▄▅▆▇█"
_EVALUATIONS = 12  # Bars at most: the newest ones.
_FULL = 8.0  # Nats at which a sparkline's bar is full.
_PLAIN_EVERY = 30.0  # Seconds between lines where there is no terminal.
_STOPPED = (Kind.FAILED, Kind.TRIAGED, Kind.PREEMPTED)
_COLOUR = {  # In the order in which they are shown where not all can be.
  Kind.RUNNING: "cyan",
  Kind.FAILED: "red",
  Kind.PREEMPTED: "yellow",
  Kind.DONE: "green",
  Kind.TRIAGED: "blue",
  Kind.MISSING: "dim",
}


def sparkline(increases: Sequence[float]) -> str:
  """Returns a bar an evaluation: the log-perplexity increase, 0 to 8 nats."""
  top = len(_BARS) - 1
  return "".join(
    _BARS[min(top, max(0, round(top * value / _FULL)))] for value in increases
  )


def table(states: Sequence[State], *, rows: int | None) -> Table:
  """Returns the cells and how they stand; it fits 80 columns.

  Args:
    states: of all cells.
    rows: at most so many cells, the running ones first; None for all.
  """
  made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
  made.add_column("cell", overflow="fold" if rows is None else "ellipsis")
  for name in ("run", "state", "done", "increase", "nats"):
    made.add_column(name, no_wrap=True)
  shown = list(states)
  if rows is not None and len(shown) > rows:
    order = list(_COLOUR)
    ranked = sorted(shown, key=lambda state: order.index(state.kind))[:rows]
    kept = {state.cell.hash for state in ranked}
    shown = [state for state in shown if state.cell.hash in kept]
  for state in shown:
    made.add_row(
      Text(state.cell.label, no_wrap=rows is not None),
      state.cell.hash[:8],
      Text(state.kind.value, style=_COLOUR[state.kind]),
      f"{state.share:.0%}",
      sparkline(state.increases[-_EVALUATIONS:]),
      f"{state.increases[-1]:+.2f}" if state.increases else "",
    )
  return made


def notes(states: Sequence[State]) -> list[str]:
  """Returns who runs what, and why each cell that stopped for good did."""
  owners: dict[str, list[str]] = {}
  for state in states:
    if state.kind is Kind.RUNNING:
      owners.setdefault(str(state.owner), []).append(state.cell.hash[:8])
  lines = [f"{owner} runs {', '.join(runs)}" for owner, runs in owners.items()]
  return lines + [
    f"{state.cell.hash[:8]} {state.kind.value}: {state.why}"
    for state in states
    if state.kind in (Kind.FAILED, Kind.TRIAGED)
  ]


def summary(states: Sequence[State], *, left: Left | None = None) -> str:
  """Returns counts and FLOPs in one line.

  Args:
    states: of all cells.
    left: the time, where it is known.
  """
  counts = [
    f"{n} {kind.value}"
    for kind in Kind
    if (n := sum(state.kind is kind for state in states))
  ]
  spent = sum(state.flops for state in states)
  whole = sum(
    state.flops if state.kind is Kind.TRIAGED else state.cell.flops
    for state in states
  )
  line = (
    f"{len(states)} cells: {', '.join(counts)}; {spent:.3g} of {whole:.3g} "
    f"FLOPs spent ({spent / whole:.0%})"
  )
  if left is None or left.seconds == 0:
    return line
  about = "more than" if left.at_least else "about"
  return f"{line}; {about} {in_words(left.seconds)} left"


class Live:
  """Shows a study while it runs: a live table, or plain lines in a log."""

  def __init__(self, *, slots: int):
    """Args: how many cells run at once here."""
    self._slots = slots
    self._console = rich.console.Console(highlight=False)
    self._live: rich.live.Live | None = None
    self._last: dict[str, Kind] = {}
    self._plain = 0.0
    if self._console.is_terminal:
      self._live = rich.live.Live(console=self._console, transient=True)

  def __enter__(self):
    if self._live is not None:
      self._live.start()
    return self

  def __exit__(self, *_):
    if self._live is not None:
      self._live.stop()

  def show(self, states: Sequence[State], last: bool) -> None:
    """Shows the states; `last` ends the showing."""
    running = sum(state.kind is Kind.RUNNING for state in states)
    slots = max(self._slots, running)  # Other dispatchers' are among them.
    left = None if last else time_left(states, slots=slots)
    line = summary(states, left=left)
    if self._live is not None and not last:
      rows = max(3, self._console.height - 8)
      self._live.update(Group(table(states, rows=rows), Text(line)))
      return
    if self._live is not None:
      self._live.stop()
      self._live = None
    self._lines(states)
    if last or time.monotonic() - self._plain > _PLAIN_EVERY:
      self._plain = time.monotonic()
      self._console.print(Text(line), soft_wrap=True)

  def _lines(self, states: Sequence[State]) -> None:
    """Prints a line for each cell whose state is another one than before."""
    for state in states:
      before = self._last.get(state.cell.hash, Kind.MISSING)
      self._last[state.cell.hash] = state.kind
      if state.kind is before:
        continue
      told = [state.kind.value]
      if state.kind in _STOPPED and state.ending:
        told = [f"{state.kind.value}: {state.why or state.ending.message}"]
      if state.kind is not Kind.RUNNING and state.increases:
        told.append(sparkline(state.increases))
      line = f"{state.cell.label} ({state.cell.hash[:8]}): {' '.join(told)}"
      self._console.print(Text(line), soft_wrap=True)
