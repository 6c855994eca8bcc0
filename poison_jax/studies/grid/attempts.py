"""An attempt at a cell: a process that trains it, and what it said last."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

from poison_jax.studies.grid import settle
from poison_jax.studies.grid.backends import Start
from poison_jax.studies.grid.study import Cell
from poison_jax.version import code_version

# Characters of what a process said last that are kept for its message.
_TAIL = 4000


@dataclasses.dataclass(frozen=True)
class Attempt:
  """A process that trains a cell.

  Attributes:
    cell: which.
    process: the first of a process group.
    log: the file of what it says.
    said_from: bytes of the log that are of earlier attempts.
    began: epoch seconds.
    step: that the run had reached before.
    code: the version that it runs.
  """

  cell: Cell
  process: subprocess.Popen
  log: str
  said_from: int
  began: float
  step: int
  code: str

  def kill(self) -> None:
    """Ends it at once, with what it has started."""
    if self.process.poll() is None:
      os.killpg(self.process.pid, signal.SIGKILL)
      self.process.wait()

  def last_line(self) -> str:
    """Returns the error that it ended with, in one line."""
    with open(self.log, "rb") as file:
      file.seek(max(self.said_from, os.path.getsize(self.log) - _TAIL))
      lines = file.read().decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    last = (errors or lines or ["it said nothing"])[-1]
    return last.removeprefix("error: ").strip()


def begin(cell: Cell, start: Start, *, log: str, step: int) -> Attempt:
  """Starts an attempt.

  Args:
    cell: which.
    start: how.
    log: a local file, to which what it says is added.
    step: that the run has reached.

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
  return Attempt(cell, process, log, said, time.time(), step, code_version())


def signal_name(number: int) -> str:
  """Returns "SIGKILL", say."""
  try:
    return signal.Signals(number).name
  except ValueError:
    return f"signal {number}"
