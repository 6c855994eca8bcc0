"""An attempt at a cell: a process that trains it, and what it said last."""

import ctypes
import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time

from poison_jax.studies.grid.backends import Start
from poison_jax.studies.grid.study import Cell
from poison_jax.version import code_version

# Linux alone tells a process that its parent has died.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
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
    OSError: there is no such program, or the log can't be written.
  """
  with open(log, "ab") as file:
    said = file.tell()  # The process shares the position, and moves it.
    process = subprocess.Popen(
      start.command,
      stdin=subprocess.DEVNULL,
      stdout=file,
      stderr=subprocess.STDOUT,
      env={**os.environ, **start.environment},
      start_new_session=True,  # Ctrl-C is ours to hand on.
      preexec_fn=functools.partial(_settle, start.cores, os.getpid()),
    )
  return Attempt(cell, process, log, said, time.time(), step, code_version())


def _settle(cores: tuple[int, ...], parent: int) -> None:
  """In a new process: takes its cores, and gets SIGTERM when we are killed.

  So the cells of a killed dispatcher save, and wait for the next one.
  """
  if cores and _LIBC is not None:
    os.sched_setaffinity(0, cores)
  if _LIBC is not None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # It was killed before that.
      os.kill(os.getpid(), signal.SIGTERM)


def signal_name(number: int) -> str:
  """Returns "SIGKILL", say."""
  try:
    return signal.Signals(number).name
  except ValueError:
    return f"signal {number}"
