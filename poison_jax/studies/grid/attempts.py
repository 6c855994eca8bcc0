"""An attempt: a process that trains a cell or several, and what it said."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from poison_jax.studies.grid import settle
from poison_jax.studies.grid.backends import Start
from poison_jax.studies.grid.study import Cell
from poison_jax.version import code_version

# Characters of what a process said last that are kept for its message.
_TAIL = 4000


@dataclasses.dataclass(frozen=True)
class Attempt:
  """A process that trains a cell, or several together.

  Attributes:
    cells: which.
    process: the first of a process group.
    log: the file of what it says.
    said_from: bytes of the log that are of earlier attempts.
    began: epoch seconds.
    steps: that each run had reached before, by the cell's hash.
    code: the version that it runs.
  """

  cells: tuple[Cell, ...]
  process: subprocess.Popen
  log: str
  said_from: int
  began: float
  steps: Mapping[str, int]
  code: str

  def kill(self) -> None:
    """Ends it at once, with what it has started."""
    if self.process.poll() is None:
      os.killpg(self.process.pid, signal.SIGKILL)
      self.process.wait()

  def end(self, command: Sequence[str] = ()) -> None:
    """Asks it to save and end: by a command, or else by SIGTERM."""
    if not command:
      self.process.send_signal(signal.SIGTERM)
      return
    with open(self.log, "ab") as file:
      subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )

  def last_line(self) -> str:
    """Returns the error that it ended with, in one line."""
    lines = self._said().strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    last = (errors or lines or ["it said nothing"])[-1]
    return last.removeprefix("error: ").strip()

  def results(self) -> dict[str, dict[str, Any]]:
    """Returns what train_together said of its cells, by their folders."""
    found = {}
    for line in self._said().splitlines():
      try:
        result = json.loads(line)
        found[result["workdir"]] = result
      except (ValueError, TypeError, KeyError):
        continue  # A line for people.
    return found

  def _said(self) -> str:
    """Returns the end of what it said."""
    tail = _TAIL * len(self.cells)
    with open(self.log, "rb") as file:
      file.seek(max(self.said_from, os.path.getsize(self.log) - tail))
      return file.read().decode(errors="replace")


def begin(
  cells: Sequence[Cell], start: Start, *, log: str, steps: Mapping[str, int]
) -> Attempt:
  """Starts an attempt.

  Args:
    cells: which.
    start: how.
    log: a local file, to which what it says is added.
    steps: that the runs have reached, by the cells' hashes.

  Raises:
    OSError: the log can't be written.
  """
  cores = ",".join(map(str, start.cores))
  settled = (sys.executable, settle.__file__, str(os.getpid()), cores)
  with open(log, "ab") as file:
    said = file.tell()  # The process shares the position, and moves it.
    process = subprocess.Popen(
      (*settled, *start.command),
      stdin=subprocess.DEVNULL,
      stdout=file,
      stderr=subprocess.STDOUT,
      env={**os.environ, **start.environment},
      start_new_session=True,  # Ctrl-C is ours to hand on.
    )
  return Attempt(
    cells=tuple(cells),
    process=process,
    log=log,
    said_from=said,
    began=time.time(),
    steps=steps,
    code=code_version(),
  )


def signal_name(number: int) -> str:
  """Returns "SIGKILL", say."""
  try:
    return signal.Signals(number).name
  except ValueError:
    return f"signal {number}"
