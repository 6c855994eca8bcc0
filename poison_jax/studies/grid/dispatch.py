"""The dispatcher: claims cells, trains each in a process of its own, goes on.

Several dispatchers may work on one study, on one machine or on many that share
its folder. One that is killed leaves cells that go on from their checkpoints
when a dispatcher comes again.
"""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from poison_jax.errors import CheckFailed, Stopped, UserError
from poison_jax.studies.grid import attempts, endings, states, versions
from poison_jax.studies.grid import plan as plan_lib
from poison_jax.studies.grid.attempts import Attempt
from poison_jax.studies.grid.backends import Backend
from poison_jax.studies.grid.claims import Claims, Owner
from poison_jax.studies.grid.endings import Ending
from poison_jax.studies.grid.plan import Plan
from poison_jax.studies.grid.states import Kind, State
from poison_jax.studies.grid.study import Cell
from poison_jax.training.stop import StopSignals

_LOOKED_EVERY = 0.5  # Seconds between two looks at the processes.
_SHOWN_EVERY = 2.0  # And between two tables, at least;
_SHOWN_SHARE = 0.1  # but a bucket's files may take long to read.
_SOUGHT_EVERY = 5.0  # And between two searches for a cell, where none was.
# Attempts in a row that end stopped without a step more: then it has failed.
_ATTEMPTS = 3
# Cells in a row that fail before a step, for one reason: then all would.
_ALIKE = 3
# Seconds until a cell whose folder another process uses is tried again: longer
# in all than a killed process's claim on a folder in a bucket lasts.
_IN_USE_WAITS = (2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
# The end that a signal brings: saved (75); while Python started; and that of
# launch/tpu_vm.sh, whose slice goes on.
_STOPPED_CODES = (Stopped.code, -signal.SIGTERM, 128 + signal.SIGINT)


def run(
  plan: Plan,
  backend: Backend,
  *,
  logs: str,
  retry: bool,
  mix: bool,
  stop: StopSignals,
  show: Callable[[Sequence[State], bool], None],
) -> tuple[State, ...]:
  """Runs every cell that isn't done, and returns how all stand at the end.

  Cells that another dispatcher runs, or somebody by hand, are left to them.

  Args:
    plan: written to its folder.
    backend: where cells run.
    logs: a local folder for what each process says.
    retry: whether to run cells again that had failed before.
    mix: whether to go on where the code changes meanwhile.
    stop: signals to this process.
    show: called with all states every few seconds, and with True at the end.

  Raises:
    Stopped: a signal came; all processes have saved and ended.
    CheckFailed: cells fail one after another for the same reason.
    UserError: a file of the study is damaged, or the code has changed.
  """
  dispatcher = _Dispatcher(plan, backend, logs, retry=retry, mix=mix)
  try:
    next_shown = 0.0
    while dispatcher.work() and stop.received is None:
      began = time.monotonic()
      if began > next_shown:
        show(dispatcher.states(), False)
        took = time.monotonic() - began
        next_shown = began + max(_SHOWN_EVERY, took / _SHOWN_SHARE)
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
      f"{backend.when_stopped}"
    )
  if dispatcher.refusal is not None:
    raise dispatcher.refusal
  return found


class _Dispatcher:
  """The processes of one dispatcher.

  Attributes:
    refusal: why no more cells are begun; None while they are.
  """

  def __init__(
    self, plan: Plan, backend: Backend, logs: str, *, retry: bool, mix: bool
  ):
    self.refusal: UserError | CheckFailed | None = None
    self._plan, self._backend, self._logs = plan, backend, logs
    self._retry, self._mix = retry, mix
    self._claims = Claims(plan.workdir)
    self._slots: list[Attempt | None] = [None] * backend.slots
    self._known: dict[str, State] = {}
    self._began = time.time()
    self._code = versions.code_hash(versions.current())
    self._ending = False
    # By cell: attempts in a row without a step; of those that somebody else
    # trains, attempts, and when the next one is due.
    self._tried: dict[str, int] = {}
    self._in_use: dict[str, int] = {}
    self._due: dict[str, float] = {}
    self._next_sought = 0.0
    self._reasons: list[str] = []
    os.makedirs(logs, exist_ok=True)

  def states(self) -> tuple[State, ...]:
    """Returns the state of every cell, those done from memory."""
    owners = self._claims.owners()
    open_ = [cell for cell in self._plan.cells if not self._is_done(cell)]
    for state in states.read_several(self._plan, open_, owners):
      self._known[state.cell.hash] = state
    return tuple(self._known[cell.hash] for cell in self._plan.cells)

  def work(self) -> bool:
    """Looks at the processes and fills free slots; False when all is done."""
    self._renew()
    for slot, running in enumerate(self._slots):
      if running is not None and running.process.poll() is not None:
        self._record(running)
        self._slots[slot] = None
        self._next_sought = 0.0
    self._fill()
    return any(self._slots) or (self.refusal is None and bool(self._due))

  def end(self) -> None:
    """Ends what still runs: each process saves, and its cell is given back."""
    self._ending = True
    for running in filter(None, self._slots):
      running.process.send_signal(signal.SIGTERM)
    problem = None
    for running in filter(None, list(self._slots)):
      while running.process.poll() is None:
        self._renew()
        time.sleep(_LOOKED_EVERY)
      try:
        self._record(running)
      except (UserError, OSError) as error:  # The others are recorded yet.
        problem = problem or error
    self._slots = [None] * self._backend.slots
    if problem is not None:
      raise problem

  def _renew(self) -> None:
    # A folder out of reach may be there again before our claims are old.
    with contextlib.suppress(UserError, OSError):
      for cell in self._claims.renew():
        self._drop(cell)

  def _drop(self, cell: str) -> None:
    """Kills the process of a cell that another dispatcher has taken over."""
    for slot, running in enumerate(self._slots):
      if running is not None and running.cell.hash == cell:
        running.kill()
        self._slots[slot] = None

  def _fill(self) -> None:
    if time.monotonic() < self._next_sought:
      return
    for slot, running in enumerate(self._slots):
      if running is None and self.refusal is None:
        self._slots[slot] = self._begin(slot)
        if self._slots[slot] is None:
          self._next_sought = time.monotonic() + _SOUGHT_EVERY
          return

  def _begin(self, slot: int) -> Attempt | None:
    """Starts the first cell that waits and that nobody else has."""
    owners = self._claims.owners()
    # Those that somebody else trains come last.
    cells = sorted(self._plan.cells, key=lambda cell: cell.hash in self._in_use)
    for cell in cells:
      if not self._is_due(cell):
        continue
      self._due.pop(cell.hash, None)
      if cell.hash in owners or self._is_done(cell):
        continue
      if not self._waits(self._look(cell, owners)):
        continue
      self._check_code()
      if self.refusal is not None:
        return None
      if not self._claims.take(cell.hash):
        continue
      # Another dispatcher may have run it to its end just now.
      state = self._look(cell, {})
      if self._waits(state):
        return self._start(cell, slot, step=state.step)
      self._claims.release(cell.hash)
    return None

  def _is_done(self, cell: Cell) -> bool:
    known = self._known.get(cell.hash)
    return known is not None and known.kind is Kind.DONE

  def _is_due(self, cell: Cell) -> bool:
    """Says whether a cell that somebody else trains is to be tried again."""
    if self._in_use.get(cell.hash, 0) > len(_IN_USE_WAITS):
      return False
    return self._due.get(cell.hash, 0.0) <= time.monotonic()

  def _look(self, cell: Cell, owners: Mapping[str, Owner]) -> State:
    state = states.read_state(self._plan, cell, owners)
    self._known[cell.hash] = state
    return state

  def _waits(self, state: State) -> bool:
    if state.kind is Kind.FAILED:
      return self._retry and state.ending.ended < self._began
    return state.kind in (Kind.MISSING, Kind.PREEMPTED)

  def _check_code(self) -> None:
    """Refuses to begin another cell where the files have been edited."""
    now = versions.code_hash(versions.current())
    if not self._mix and now != self._code:
      self.refusal = UserError(
        f"the code has changed from {self._code} to {now} since this "
        "dispatcher began: no more cells were begun; check the old code out, "
        "or mix the two by --mix_code"
      )

  def _start(self, cell: Cell, slot: int, *, step: int) -> Attempt:
    plan_lib.write_config(self._plan, cell)
    start = self._backend.start(self._plan, cell, slot)
    path = self._log_path(cell)
    return attempts.begin(cell, start, log=path, step=step)

  def _record(self, running: Attempt) -> None:
    """Writes how a process ended, and gives its cell back."""
    cell, code = running.cell, running.process.returncode
    if not self._claims.holds(cell.hash):
      return  # Another dispatcher has taken it over.
    state = self._look(cell, {})
    before = state.ending
    trained_by = before.code_versions if before else ()
    seconds = before.seconds if before else 0.0
    result, message = self._result(running, code, state)
    now = time.time()
    if cell.hash not in self._in_use:
      seconds += now - running.began
      if running.code not in trained_by and (state.step or code == 0):
        trained_by = (*trained_by, running.code)
    ending = Ending(
      result=result,
      code=code,
      message=message,
      code_versions=trained_by,
      seconds=seconds,
      ended=now,
      host=socket.gethostname(),
    )
    endings.write(self._plan.workdir, cell.hash, ending)
    self._claims.release(cell.hash)
    at_once = result == endings.FAILED and state.step == 0
    self._stop_at_failures(message if at_once else "")

  def _result(
    self, running: Attempt, code: int, state: State
  ) -> tuple[str, str]:
    """Returns what an exit code means, and a line that says why."""
    said, cell = running.last_line(), running.cell.hash
    in_use = " is in use by process " in said
    if code != UserError.code or not in_use:
      self._in_use.pop(cell, None)
    if code == 0:
      return endings.DONE, ""
    if code == UserError.code and in_use:
      # It saves still, or somebody trains it by hand.
      times = self._in_use[cell] = self._in_use.get(cell, 0) + 1
      if times <= len(_IN_USE_WAITS):
        self._due[cell] = time.monotonic() + _IN_USE_WAITS[times - 1]
      return endings.STOPPED, said
    if code in _STOPPED_CODES:
      self._in_use.pop(cell, None)
      progress = state.step > running.step
      tried = self._tried[cell] = (
        0 if progress else self._tried.get(cell, 0) + 1
      )
      if self._ending or tried < _ATTEMPTS:
        return endings.STOPPED, said
      return endings.FAILED, f"stopped {tried} times without a step: {said}"
    if code < 0:
      hint = " (out of memory?)" if -code == signal.SIGKILL else ""
      return endings.FAILED, f"killed by {attempts.signal_name(-code)}{hint}"
    return endings.FAILED, said

  def _stop_at_failures(self, reason: str) -> None:
    """Begins no more cells where all fail for one reason at their start."""
    self._reasons = [*self._reasons, reason][-_ALIKE:]
    if reason and self._reasons == _ALIKE * [reason]:
      self.refusal = CheckFailed(
        f"{_ALIKE} cells in a row failed before their first step, so no more "
        f"were begun: {reason}; run goes on with the others, run --retry with "
        "these as well"
      )

  def _log_path(self, cell: Cell) -> str:
    return os.path.join(self._logs, f"{cell.hash}.log")
