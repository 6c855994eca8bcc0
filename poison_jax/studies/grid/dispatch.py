"""The dispatcher: claims cells, trains each in a process of its own, goes on.

Several dispatchers may work on one study, on one machine or on many that share
its folder. One that is killed leaves cells that go on from their checkpoints
when a dispatcher comes again.
"""

import ctypes
import dataclasses
import functools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import IO

from poison_jax.errors import Stopped, UserError
from poison_jax.studies.grid import endings, states
from poison_jax.studies.grid import plan as plan_lib
from poison_jax.studies.grid.backends import Backend
from poison_jax.studies.grid.claims import Claims
from poison_jax.studies.grid.endings import Ending
from poison_jax.studies.grid.plan import Plan
from poison_jax.studies.grid.states import Kind, State
from poison_jax.studies.grid.study import Cell
from poison_jax.training.stop import StopSignals
from poison_jax.version import code_version

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_LOOKED_EVERY = 0.5  # Seconds between two looks at the processes.
_SHOWN_EVERY = 2.0  # And between two tables.
# Attempts in a row that end stopped without a step more: then it has failed.
_ATTEMPTS = 3
# Characters of what a process said last that are kept for its message.
_TAIL = 4000


@dataclasses.dataclass
class _Running:
  """A cell's process on a slot."""

  cell: Cell
  process: subprocess.Popen
  log: IO[bytes]
  began: float
  step: int


def run(
  plan: Plan,
  backend: Backend,
  *,
  logs: str,
  retry: bool,
  stop: StopSignals,
  show: Callable[[Sequence[State], bool], None],
) -> tuple[State, ...]:
  """Runs every cell that isn't done, and returns how all stand at the end.

  Cells that another dispatcher runs are left to it.

  Args:
    plan: written to its folder.
    backend: where cells run.
    logs: a local folder for what each process says.
    retry: whether to run failed cells again.
    stop: signals to this process.
    show: called with all states every few seconds, and with True at the end.

  Raises:
    Stopped: a signal came; all processes have saved and ended.
    UserError: a file of the study is damaged.
  """
  dispatcher = _Dispatcher(plan, backend, logs, retry=retry)
  try:
    shown = 0.0
    while dispatcher.work() and stop.received is None:
      if time.monotonic() - shown > _SHOWN_EVERY:
        show(dispatcher.states(), False)
        shown = time.monotonic()
      time.sleep(_LOOKED_EVERY)
  finally:
    dispatcher.end()
  found = dispatcher.states()
  show(found, True)
  if stop.received is not None:
    done = sum(state.kind is Kind.DONE for state in found)
    raise Stopped(
      f"stopped by {stop.name}, {done} of {len(found)} cells done; go on with "
      f"python -m poison_jax.study run --workdir={plan.workdir}"
    )
  return found


class _Dispatcher:
  """The processes of one dispatcher."""

  def __init__(self, plan: Plan, backend: Backend, logs: str, *, retry: bool):
    self._plan, self._backend, self._logs = plan, backend, logs
    self._claims = Claims(plan.workdir)
    self._slots: list[_Running | None] = [None] * backend.slots
    self._known: dict[str, State] = {}
    self._retry = retry
    self._tried: dict[str, int] = {}
    os.makedirs(logs, exist_ok=True)

  def states(self) -> tuple[State, ...]:
    """Returns the state of every cell, those done from memory."""
    owners = self._claims.owners()
    for cell in self._plan.cells:
      known = self._known.get(cell.hash)
      if known is None or known.kind is not Kind.DONE:
        found = states.read_state(self._plan, cell, owners)
        self._known[cell.hash] = found
    return tuple(self._known[cell.hash] for cell in self._plan.cells)

  def work(self) -> bool:
    """Looks at the processes and fills free slots; False when all is done."""
    for cell in self._claims.renew():
      self._kill(cell)
    for slot, running in enumerate(self._slots):
      if running is not None and running.process.poll() is not None:
        self._slots[slot] = None
        self._record(running)
    for slot, running in enumerate(self._slots):
      if running is None:
        self._slots[slot] = self._begin(slot)
    return any(self._slots)

  def end(self) -> None:
    """Ends what still runs: each process saves, and its cell is given back."""
    left = [running for running in self._slots if running is not None]
    for running in left:
      running.process.send_signal(signal.SIGTERM)
    for running in left:
      while running.process.poll() is None:
        self._claims.renew()
        time.sleep(_LOOKED_EVERY)
      self._record(running)
    self._slots = [None] * self._backend.slots

  def _begin(self, slot: int) -> _Running | None:
    """Starts the first cell that waits and that nobody else has."""
    owners = None
    for cell in self._plan.cells:
      known = self._known.get(cell.hash)
      if known is not None and known.kind is Kind.DONE:
        continue
      owners = self._claims.owners() if owners is None else owners
      state = states.read_state(self._plan, cell, owners)
      self._known[cell.hash] = state
      if self._waits(state) and self._claims.take(cell.hash):
        return self._start(cell, slot, step=state.step)
    return None

  def _waits(self, state: State) -> bool:
    if state.kind is Kind.FAILED:
      return self._retry and state.cell.hash not in self._tried
    return state.kind in (Kind.MISSING, Kind.PREEMPTED)

  def _start(self, cell: Cell, slot: int, *, step: int) -> _Running:
    plan_lib.write_config(self._plan, cell)
    start = self._backend.start(self._plan, cell, slot)
    log = open(os.path.join(self._logs, f"{cell.hash}.log"), "ab")  # noqa: SIM115
    process = subprocess.Popen(
      start.command,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      env={**os.environ, **start.environment},
      start_new_session=True,  # Ctrl-C is ours to hand on.
      preexec_fn=functools.partial(_settle, start.cores, os.getpid()),
    )
    return _Running(cell, process, log, time.time(), step)

  def _kill(self, cell: str) -> None:
    """Ends the process of a cell that another dispatcher has taken over."""
    for slot, running in enumerate(self._slots):
      if running is not None and running.cell.hash == cell:
        running.process.kill()
        running.process.wait()
        running.log.close()
        self._slots[slot] = None

  def _record(self, running: _Running) -> None:
    """Writes how a process ended, and gives its cell back."""
    running.log.close()
    cell, code = running.cell, running.process.returncode
    result, message = self._result(running, code)
    before = endings.read(self._plan.workdir, cell.hash)
    versions = before.code_versions if before else ()
    if code_version() not in versions:
      versions = (*versions, code_version())
    now = time.time()
    endings.write(
      self._plan.workdir,
      cell.hash,
      Ending(
        result=result,
        code=code,
        message=message,
        code_versions=versions,
        seconds=now - running.began,
        ended=now,
        host=socket.gethostname(),
      ),
    )
    self._claims.release(cell.hash)

  def _result(self, running: _Running, code: int) -> tuple[str, str]:
    said = self._last_line(running.cell)
    if code == 0:
      self._tried.pop(running.cell.hash, None)
      return endings.DONE, ""
    if code == UserError.code and " is in use by process " in said:
      return endings.STOPPED, said  # It saves still; or somebody trains it.
    if code == Stopped.code:
      state = states.read_state(self._plan, running.cell, {})
      tried = self._tried.get(running.cell.hash, 0) + 1
      tried = 0 if state.step > running.step else tried
      self._tried[running.cell.hash] = tried
      if tried < _ATTEMPTS:
        return endings.STOPPED, said
      return endings.FAILED, f"stopped {tried} times without a step: {said}"
    self._tried[running.cell.hash] = 1
    if code < 0:
      name = signal.Signals(-code).name
      hint = " (out of memory?)" if -code == signal.SIGKILL else ""
      return endings.FAILED, f"killed by {name}{hint}"
    return endings.FAILED, said

  def _last_line(self, cell: Cell) -> str:
    """Returns the error that a process ended with, in one line."""
    path = os.path.join(self._logs, f"{cell.hash}.log")
    with open(path, "rb") as file:
      file.seek(max(0, os.path.getsize(path) - _TAIL))
      lines = file.read().decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    last = (errors or lines or ["it said nothing"])[-1]
    return last.removeprefix("error: ").strip()


def _settle(cores: tuple[int, ...], parent: int) -> None:
  """In a new process: takes its cores, and gets SIGTERM when we are killed.

  So the cells of a killed dispatcher save, and wait for the next one.
  """
  if cores:
    os.sched_setaffinity(0, cores)
  _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
  if os.getppid() != parent:  # It was killed before that.
    os.kill(os.getpid(), signal.SIGTERM)


def check_code(plan: Plan, *, found: Sequence[State], mix: bool) -> None:
  """Checks that cells begun before were made by this very code.

  Args:
    plan: the study's.
    found: the state of each cell.
    mix: whether cells of several versions are wanted.

  Raises:
    UserError: some were made by other code, and that isn't wanted.
  """
  now = code_version()
  others: dict[str, int] = {}
  for state in found:
    for version in state.ending.code_versions if state.ending else ():
      # The commit may be another where the code is the same.
      if version.partition("+")[0] != now.partition("+")[0]:
        others[version] = others.get(version, 0) + 1
  if others and not mix:
    told = ", ".join(f"{version} ({n} cells)" for version, n in others.items())
    raise UserError(
      f"cells in {plan.workdir} were made by code {told}, this is {now}: check "
      "that code out, or mix the two by --mix-code"
    )
