"""The dispatcher: claims cells, trains them in processes, goes on.

Several dispatchers may work on one study, on one machine or on many that share
its folder. One that is killed leaves cells that go on from their checkpoints
when a dispatcher comes again.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from poison_jax.data.folder import Folder
from poison_jax.errors import CheckFailed, Stopped, UserError
from poison_jax.studies.grid import attempts, endings, states, triage, versions
from poison_jax.studies.grid import plan as plan_lib
from poison_jax.studies.grid.attempts import Attempt
from poison_jax.studies.grid.backends import Backend
from poison_jax.studies.grid.bookkeeper import Bookkeeper
from poison_jax.studies.grid.claims import Claims, Owner
from poison_jax.studies.grid.plan import Plan
from poison_jax.studies.grid.states import Kind, State
from poison_jax.studies.grid.study import Cell
from poison_jax.studies.statistics.sequential import Decision
from poison_jax.training.stop import StopSignals
from poison_jax.training.workdir import CHECKPOINTS

_LOOKED_EVERY = 0.5  # Seconds between two looks at the processes.
_SHOWN_EVERY = 2.0  # And between two tables, at least;
_SHOWN_SHARE = 0.1  # but a bucket's files may take long to read.
_SOUGHT_EVERY = 5.0  # And between two searches for a cell, where none was.


@dataclasses.dataclass(frozen=True)
class Choices:
  """What a dispatcher is asked to do.

  Attributes:
    retry: whether to run cells again that had failed before.
    mix: whether to go on where the code changes meanwhile.
    together: cells at most that train in one program, of those that can.
    drop_checkpoints: whether those of a cell are deleted once it is done.
  """

  retry: bool = False
  mix: bool = False
  together: int = 1
  drop_checkpoints: bool = False


def run(
  plan: Plan,
  backend: Backend,
  *,
  logs: str,
  choices: Choices,
  stop: StopSignals,
  show: Callable[[Sequence[State], bool], None],
) -> tuple[State, ...]:
  """Runs every cell that isn't done, and returns how all stand at the end.

  Cells that another dispatcher runs, or somebody by hand, are left to them.

  Args:
    plan: written to its folder.
    backend: where cells run.
    logs: a local folder for what each process says.
    choices: what it is asked to do.
    stop: signals to this process.
    show: called with all states every few seconds, and with True at the end.

  Raises:
    Stopped: a signal came; all processes have saved and ended.
    CheckFailed: cells fail one after another for the same reason.
    UserError: a file of the study is damaged, or the code has changed.
  """
  dispatcher = _Dispatcher(plan, backend, logs, choices)
  try:
    next_shown = 0.0
    while dispatcher.work() and stop.received is None:
      began = time.monotonic()
      if began > next_shown:
        found = dispatcher.states()
        show(found, False)
        dispatcher.stop_decided(found)
        took = time.monotonic() - began
        next_shown = began + max(_SHOWN_EVERY, took / _SHOWN_SHARE)
      time.sleep(_LOOKED_EVERY)
  finally:
    dispatcher.end()
  found = dispatcher.states()
  if choices.drop_checkpoints:  # Of those, too, that were done before.
    for state in found:
      if state.kind is Kind.DONE:
        Folder(plan.path(state.cell)).delete(CHECKPOINTS)
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
  """The processes of one dispatcher."""

  def __init__(self, plan: Plan, backend: Backend, logs: str, choices: Choices):
    self._plan, self._backend, self._logs = plan, backend, logs
    self._choices = choices
    self._books = Bookkeeper(plan, drop_checkpoints=choices.drop_checkpoints)
    self._claims = Claims(plan.workdir)
    self._slots: list[Attempt | None] = [None] * backend.slots
    self._known: dict[str, State] = {}
    self._began = time.time()
    self._code = versions.code_hash(versions.current())
    # Why the cells that were told to stop for good were.
    self._decided: dict[str, str] = {}
    self._next_sought = 0.0
    os.makedirs(logs, exist_ok=True)

  @property
  def refusal(self) -> UserError | CheckFailed | None:
    """Why no more cells are begun; None while they are."""
    return self._books.refusal

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
    return any(self._slots) or self._books.waits

  def stop_decided(self, found: Sequence[State]) -> None:
    """Stops the processes all of whose cells' verdicts are decided."""
    if self._plan.triage is None:
      return
    by_hash = {state.cell.hash: state for state in found}
    for running in filter(None, self._slots):
      if running.cells[0].hash in self._decided:
        continue  # It saves already.
      why = {}
      for cell in running.cells:
        state = by_hash[cell.hash]
        decision = triage.decision(self._plan.triage, state, found)
        if decision is not Decision.CONTINUE:
          why[cell.hash] = triage.in_words(decision, state)
      if len(why) == len(running.cells):
        self._decided |= why
        running.end(self._backend.end(self._plan, running.cells[0]))

  def end(self) -> None:
    """Ends what still runs: each process saves, and its cell is given back."""
    self._books.ending = True
    for running in filter(None, self._slots):
      running.end()
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

  def _drop(self, lost: str) -> None:
    """Kills the process of a cell that another dispatcher has taken over.

    Those that it trained together with that one go on from their checkpoints.
    """
    for slot, running in enumerate(self._slots):
      if running is None or lost not in running.steps:
        continue
      running.kill()
      self._slots[slot] = None
      for cell in running.cells:
        self._decided.pop(cell.hash, None)
        if cell.hash != lost and self._claims.holds(cell.hash):
          self._claims.release(cell.hash)

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
    """Starts the first cell that waits, and those that train with it."""
    batch: list[State] = []
    for state in self._claimed():
      batch.append(state)
      # One that somebody else may train yet would end the others.
      alone = self._books.is_in_use(state.cell)
      if alone or len(batch) == self._choices.together:
        break
    if not batch:
      return None
    cells = [state.cell for state in batch]
    for state in batch:
      plan_lib.write_config(self._plan, state.cell)
      if state.ending is not None and state.ending.result == endings.DONE:
        endings.forget(self._plan.workdir, state.cell.hash)  # It was lost.
    return attempts.begin(
      cells,
      self._backend.start(self._plan, cells, slot),
      log=os.path.join(self._logs, f"{cells[0].hash}.log"),
      steps={state.cell.hash: state.step for state in batch},
    )

  def _claimed(self) -> Iterator[State]:
    """Claims cells that can train together, one by one, nobody else's."""
    owners = self._claims.owners()
    first: State | None = None
    # Those that somebody else trains come last.
    for cell in sorted(self._plan.cells, key=self._books.is_in_use):
      if first is not None and self._books.is_in_use(cell):
        continue
      if not self._books.is_due(cell):
        continue
      self._books.tried(cell)
      if cell.hash in owners or self._is_done(cell):
        continue
      state = self._look(cell, owners)
      if not self._waits(state):
        continue
      if first is not None and not self._is_like(first, state):
        continue
      if first is None:
        self._check_code()
        if self.refusal is not None:
          return
      state = self._claim(cell)
      if state is not None:
        first = first or state
        yield state

  def _claim(self, cell: Cell) -> State | None:
    """Returns a cell's state if it is ours now, and still waits."""
    if not self._claims.take(cell.hash):
      return None
    # Another dispatcher may have run it to its end just now.
    state = self._look(cell, {})
    if self._waits(state):
      decision = self._decision(state)
      fault = plan_lib.fault(self._plan, cell)
      if decision is Decision.CONTINUE and fault is None:
        return state
      if fault is None:
        self._books.triaged(state, triage.in_words(decision, state))
      else:
        self._books.refused(state, fault)
      self._look(cell, {})
    self._claims.release(cell.hash)
    return None

  def _decision(self, state: State) -> Decision:
    if self._plan.triage is None:
      return Decision.CONTINUE
    return triage.decision(self._plan.triage, state, self.states())

  def _is_like(self, first: State, state: State) -> bool:
    """Says whether a cell can train together with the first of a batch."""
    if state.step != first.step or plan_lib.fault(self._plan, state.cell):
      return False
    keys = [plan_lib.batch_key(self._plan, s.cell) for s in (first, state)]
    return keys[0] == keys[1]

  def _is_done(self, cell: Cell) -> bool:
    known = self._known.get(cell.hash)
    return known is not None and known.kind is Kind.DONE

  def _look(self, cell: Cell, owners: Mapping[str, Owner]) -> State:
    state = states.read_state(self._plan, cell, owners)
    self._known[cell.hash] = state
    return state

  def _waits(self, state: State) -> bool:
    if state.kind is Kind.FAILED:
      return self._choices.retry and state.ending.ended < self._began
    return state.kind in (Kind.MISSING, Kind.PREEMPTED)

  def _check_code(self) -> None:
    """Refuses to begin another cell where the files have been edited."""
    now = versions.code_hash(versions.current())
    if not self._choices.mix and now != self._code:
      self._books.refusal = UserError(
        f"the code has changed from {self._code} to {now} since this "
        "dispatcher began: no more cells were begun; check the old code out, "
        "or mix the two by --mix_code"
      )

  def _record(self, running: Attempt) -> None:
    """Writes how a process ended, and gives its cells back."""
    for cell in running.cells:
      decided = self._decided.pop(cell.hash, None)
      if not self._claims.holds(cell.hash):
        continue  # Another dispatcher has taken it over.
      try:
        state = self._look(cell, {})
        self._books.ended(running, cell, state, decided=decided)
      finally:
        self._claims.release(cell.hash)
