"""What the end of an attempt means for its cells, and what comes of it.

A cell is done, goes on later, has failed, or was stopped for good; or somebody
else trains it, and it is tried again in a while. Where every cell fails alike,
no more are begun.
"""

import signal
import socket
import time

from poison_jax.data.folder import Folder
from poison_jax.errors import CheckFailed, NotFinite, Stopped, UserError
from poison_jax.studies.grid import attempts, endings
from poison_jax.studies.grid.attempts import Attempt
from poison_jax.studies.grid.endings import Ending
from poison_jax.studies.grid.plan import Plan
from poison_jax.studies.grid.states import State
from poison_jax.studies.grid.study import Cell
from poison_jax.training import workdir as workdir_lib

# Attempts in a row that end stopped without a step more: then it has failed.
_ATTEMPTS = 3
# Attempts in a row that fail before a step, for one reason: then all would.
_ALIKE = 3
# Seconds until a cell whose folder another process uses is tried again: longer
# in all than a killed process's claim on a folder in a bucket lasts.
_IN_USE_WAITS = (2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
# The end that a signal brings: saved (75); while Python started; and that of
# launch/tpu_vm.sh, whose slice goes on.
_STOPPED_CODES = (Stopped.code, -signal.SIGTERM, 128 + signal.SIGINT)
# What launch/tpu_vm.sh says where a slice was deleted, as `Tpu.end` has it.
_GIVEN_BACK = "was given back with 'delete'"
# What train_together says of one of its cells, as `train`'s exit code.
_CODES = {"done": 0, "stopped": Stopped.code, "not finite": NotFinite.code}


class Bookkeeper:
  """Writes how attempts end, and knows what is to be tried again.

  Attributes:
    refusal: why no more cells are begun; None while they are.
    ending: whether the dispatcher itself ends, and stops its processes.
  """

  def __init__(self, plan: Plan, *, drop_checkpoints: bool):
    """Args: the study's plan; whether those of a cell go once it is done."""
    self.refusal: UserError | CheckFailed | None = None
    self.ending = False
    self._plan = plan
    self._drop_checkpoints = drop_checkpoints
    # By cell: attempts in a row without a step; of those that somebody else
    # trains, attempts, and when the next one is due.
    self._tried: dict[str, int] = {}
    self._in_use: dict[str, int] = {}
    self._due: dict[str, float] = {}
    self._reasons: list[str] = []

  @property
  def waits(self) -> bool:
    """Says whether a cell that somebody else trains is to be tried again."""
    return self.refusal is None and bool(self._due)

  def is_in_use(self, cell: Cell) -> bool:
    """Says whether somebody else trained a cell when it was tried last."""
    return cell.hash in self._in_use

  def is_due(self, cell: Cell) -> bool:
    """Says whether it is time to try a cell that somebody else trains."""
    if self._in_use.get(cell.hash, 0) > len(_IN_USE_WAITS):
      return False
    return self._due.get(cell.hash, 0.0) <= time.monotonic()

  def tried(self, cell: Cell) -> None:
    """Notes that it was time, and that the cell was looked at."""
    self._due.pop(cell.hash, None)

  def triaged(self, state: State, why: str) -> None:
    """Writes that a cell goes on no more: its verdict is decided."""
    self._write(state, endings.TRIAGED, why, exit_code=Stopped.code)

  def refused(self, state: State, why: str) -> None:
    """Writes that a cell can't be trained on what its folder holds."""
    self._write(state, endings.FAILED, why, exit_code=UserError.code)

  def ended(
    self, attempt: Attempt, cell: Cell, state: State, *, decided: str | None
  ) -> None:
    """Writes how an attempt ended for one of its cells.

    Args:
      attempt: whose process has ended.
      cell: one of its cells, held by this dispatcher.
      state: the cell's, read after that.
      decided: why it was stopped for good; None where it wasn't.
    """
    result, message = self._result(attempt, cell, state)
    if decided is not None and (
      result == endings.STOPPED or _GIVEN_BACK in message
    ):
      result, message = endings.TRIAGED, decided
    seconds, code = 0.0, None
    if cell.hash not in self._in_use:
      # Of several that train together each has its share.
      seconds = (time.time() - attempt.began) / len(attempt.cells)
      if state.step or result == endings.DONE:
        code = attempt.code
    exit_code = attempt.process.returncode
    self._write(
      state, result, message, exit_code=exit_code, seconds=seconds, code=code
    )
    if result == endings.DONE and self._drop_checkpoints:
      Folder(self._plan.path(cell)).delete(workdir_lib.CHECKPOINTS)
    if cell is attempt.cells[0]:  # A process that fails counts once.
      at_once = result == endings.FAILED and state.step == 0
      self._stop_at_failures(message if at_once else "")

  def _write(
    self,
    state: State,
    result: str,
    message: str,
    *,
    exit_code: int,
    seconds: float = 0.0,
    code: str | None = None,
  ) -> None:
    """Adds an attempt's seconds and code to what was written before."""
    before = state.ending
    trained_by = before.code_versions if before else ()
    if code is not None and code not in trained_by:
      trained_by = (*trained_by, code)
    ending = Ending(
      result=result,
      code=exit_code,
      message=message,
      code_versions=trained_by,
      seconds=(before.seconds if before else 0.0) + seconds,
      ended=time.time(),
      host=socket.gethostname(),
    )
    endings.write(self._plan.workdir, state.cell.hash, ending)

  def _result(
    self, attempt: Attempt, cell: Cell, state: State
  ) -> tuple[str, str]:
    """Returns what an end means for a cell, and a line that says why."""
    code, said = attempt.process.returncode, attempt.last_line()
    if len(attempt.cells) > 1:
      own = attempt.results().get(self._plan.path(cell))
      named = [c for c in attempt.cells if self._plan.path(c) in said]
      if own is not None:
        code, said = _CODES[own["outcome"]], own["message"]
      elif named and cell not in named:  # An error of another one ended all.
        self._in_use.pop(cell.hash, None)
        return endings.STOPPED, said
    if code == UserError.code and " is in use by process " in said:
      return self._result_in_use(cell, said)
    self._in_use.pop(cell.hash, None)
    # A signal may come while a process that is done ends.
    if code == 0 or (code < 0 and said.startswith("finished: ")):
      return endings.DONE, ""
    if code in _STOPPED_CODES:
      return self._result_stopped(attempt, cell, state, said)
    if code < 0:
      hint = " (out of memory?)" if -code == signal.SIGKILL else ""
      return endings.FAILED, f"killed by {attempts.signal_name(-code)}{hint}"
    return endings.FAILED, said

  def _result_in_use(self, cell: Cell, said: str) -> tuple[str, str]:
    """Of a cell that saves still, or that somebody trains by hand."""
    times = self._in_use[cell.hash] = self._in_use.get(cell.hash, 0) + 1
    if times <= len(_IN_USE_WAITS):
      self._due[cell.hash] = time.monotonic() + _IN_USE_WAITS[times - 1]
    return endings.STOPPED, said

  def _result_stopped(
    self, attempt: Attempt, cell: Cell, state: State, said: str
  ) -> tuple[str, str]:
    """Of a cell that was stopped: it goes on, unless it gets nowhere."""
    progress = state.step > attempt.steps[cell.hash]
    tried = 0 if progress else self._tried.get(cell.hash, 0) + 1
    self._tried[cell.hash] = tried
    if self.ending or tried < _ATTEMPTS:
      return endings.STOPPED, said
    return endings.FAILED, f"stopped {tried} times without a step: {said}"

  def _stop_at_failures(self, reason: str) -> None:
    """Begins no more cells where all fail for one reason at their start."""
    self._reasons = [*self._reasons, reason][-_ALIKE:]
    if reason and self._reasons == _ALIKE * [reason]:
      self.refusal = CheckFailed(
        f"{_ALIKE} cells in a row failed before their first step, so no more "
        f"were begun: {reason}; run goes on with the others, run --retry with "
        "these as well"
      )
