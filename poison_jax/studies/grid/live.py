"""The table of a study in the terminal: a sparkline a cell."""

import time
from collections.abc import Sequence

import rich.console
import rich.live
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from poison_jax.studies.grid.states import Kind, State
from poison_jax.training.clock import in_words

_BARS = "▁▂▃▄▅▆▇█"
_FULL = 8.0  # Nats at which a sparkline's bar is full.
_PLAIN_EVERY = 30.0  # Seconds between lines where there is no terminal.
_COLOUR = {
  Kind.DONE: "green",
  Kind.RUNNING: "cyan",
  Kind.PREEMPTED: "yellow",
  Kind.FAILED: "red",
  Kind.MISSING: "dim",
}


def sparkline(increases: Sequence[float]) -> str:
  """Returns a bar an evaluation: the log-perplexity increase, 0 to 8 nats."""
  top = len(_BARS) - 1
  return "".join(
    _BARS[min(top, max(0, round(top * value / _FULL)))] for value in increases
  )


def table(states: Sequence[State], *, rows: int | None) -> Table:
  """Returns the cells and how they stand.

  Args:
    states: of all cells.
    rows: at most so many cells, the running ones first; None for all.
  """
  made = Table(box=box.SIMPLE_HEAD)
  for name in ("cell", "run", "state", "done", "increase, nats", "last"):
    made.add_column(name)
  shown = list(states)
  if rows is not None and len(shown) > rows:
    order = [Kind.RUNNING, Kind.FAILED, Kind.PREEMPTED, Kind.DONE, Kind.MISSING]
    ranked = sorted(shown, key=lambda state: order.index(state.kind))[:rows]
    shown = [state for state in shown if state in ranked]
  for state in shown:
    last = f"{state.increases[-1]:+.2f}" if state.increases else ""
    made.add_row(
      Text(state.cell.label),
      state.cell.hash[:8],
      Text(state.kind.value, style=_COLOUR[state.kind]),
      f"{state.share:.0%}",
      sparkline(state.increases),
      Text(last + (f"  {state.why}" if state.kind is Kind.FAILED else "")),
    )
  return made


def summary(states: Sequence[State], *, left: float | None = None) -> str:
  """Returns counts and FLOPs in one line.

  Args:
    states: of all cells.
    left: seconds, where they are known.
  """
  counts = [
    f"{n} {kind.value}"
    for kind in Kind
    if (n := sum(state.kind is kind for state in states))
  ]
  spent = sum(state.flops for state in states)
  whole = sum(state.cell.flops for state in states)
  line = (
    f"{len(states)} cells: {', '.join(counts)}; {spent:.3g} of {whole:.3g} "
    f"FLOPs spent ({spent / whole:.0%})"
  )
  return line if left is None else f"{line}; about {in_words(left)} left"


def seconds_left(states: Sequence[State], *, slots: int) -> float | None:
  """Returns a guess from the cells that are done; None before the first.

  From FLOPs, so it is only as good as they are: small cells take longer than
  their share, by starting, compiling and evaluating.
  """
  timed = [
    (state.cell.flops, state.ending.seconds)
    for state in states
    if state.kind is Kind.DONE and state.ending is not None
  ]
  if not timed:
    return None
  a_flop = sum(s for _, s in timed) / sum(flops for flops, _ in timed)
  left = sum(
    state.cell.flops - state.flops
    for state in states
    if state.kind is not Kind.FAILED
  )
  return left * a_flop / slots


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
    left = None if last else seconds_left(states, slots=self._slots)
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
      why = f": {state.why}" if state.kind is Kind.FAILED else ""
      bars = sparkline(state.increases)
      self._console.print(
        Text(
          f"{state.cell.label} ({state.cell.hash[:8]}): "
          f"{state.kind.value}{why} {bars}"
        ),
        soft_wrap=True,
      )
