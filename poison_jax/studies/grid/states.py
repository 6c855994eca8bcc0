"""What has become of each cell of a study."""

import concurrent.futures
import dataclasses
import enum
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from poison_jax.data.folder import Folder
from poison_jax.studies.grid import endings
from poison_jax.studies.grid.claims import Claims, Owner
from poison_jax.studies.grid.endings import Ending
from poison_jax.studies.grid.plan import Plan
from poison_jax.studies.grid.study import Cell
from poison_jax.studies.statistics.sequential import Evaluation
from poison_jax.training.metrics import METRICS, part_names

_INCREASE = "eval/perplexity_increase"
_NATS = "eval/log_perplexity_increase"
_POISONS = "poisons_seen"
_SECONDS = "time/seconds"
_AT_ONCE = 16  # Cells whose files are read at once.


class Kind(enum.Enum):
  """Where a cell stands."""

  DONE = "done"
  RUNNING = "running"
  PREEMPTED = "preempted"  # Begun, and nobody runs it now.
  FAILED = "failed"
  TRIAGED = "triaged"  # Stopped for good: its verdict was decided.
  MISSING = "missing"


# What an attempt's end makes of a cell, until somebody asks for more.
_FOR_GOOD = {
  endings.DONE: Kind.DONE,
  endings.FAILED: Kind.FAILED,
  endings.TRIAGED: Kind.TRIAGED,
}


@dataclasses.dataclass(frozen=True)
class State:
  """A cell's state.

  Attributes:
    cell: which.
    kind: where it stands.
    step: of its last line of metrics; 0 before.
    steps: of the run.
    evaluations: so far.
    success: whether the last one's increase exceeds the threshold; None before
      the first.
    seconds: that its processes have taken for these steps.
    owner: who runs it.
    ending: of its last attempt.
  """

  cell: Cell
  kind: Kind
  step: int
  steps: int
  evaluations: tuple[Evaluation, ...]
  success: bool | None
  seconds: float
  owner: Owner | None
  ending: Ending | None

  @property
  def increases(self) -> tuple[float, ...]:
    """Log-perplexity increase in nats at each evaluation so far."""
    return tuple(e.log_increase for e in self.evaluations)

  @property
  def flops(self) -> float:
    """Model FLOPs spent on the steps that are done."""
    return self.cell.flops * self.share

  @property
  def share(self) -> float:
    """Share of the steps that are done, 0 to 1."""
    done = self.kind is Kind.DONE
    return 1.0 if done else min(self.step / self.steps, 1.0)

  @property
  def why(self) -> str:
    """Why it failed or was stopped, or who runs it; "" else."""
    if self.kind is Kind.FAILED and self.ending.result == endings.DONE:
      folder = self.cell.folder
      return (
        f"it was done, and {folder}/{METRICS} holds no step: restore it, or "
        f"delete {folder} and give run --retry"
      )
    if self.kind in (Kind.FAILED, Kind.TRIAGED):
      return self.ending.message
    return str(self.owner) if self.kind is Kind.RUNNING else ""


def read_states(plan: Plan, claims: Claims) -> tuple[State, ...]:
  """Returns the state of each cell, in order.

  Raises:
    UserError: a file of the study is damaged.
  """
  return read_several(plan, plan.cells, claims.owners())


def read_several(
  plan: Plan, cells: Sequence[Cell], owners: Mapping[str, Owner]
) -> tuple[State, ...]:
  """Like `read_state` for some cells, several at once: a bucket is slow."""
  with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
    return tuple(pool.map(lambda cell: read_state(plan, cell, owners), cells))


def read_state(plan: Plan, cell: Cell, owners: Mapping[str, Owner]) -> State:
  """Returns the state of one cell.

  Args:
    plan: the study's.
    cell: one of its cells.
    owners: of the cells that are running, by hash.

  Raises:
    UserError: a file of the study is damaged.
  """
  ending = endings.read(plan.workdir, cell.hash)
  owner = owners.get(cell.hash)
  progress = _progress(cell, Folder(plan.path(cell)))
  if owner is not None:
    kind = Kind.RUNNING
  elif ending is not None and ending.result in _FOR_GOOD:
    kind = _FOR_GOOD[ending.result]
    if kind is Kind.DONE and progress.step == 0:
      kind = Kind.FAILED  # Somebody has deleted what it did.
  else:
    kind = Kind.PREEMPTED if progress.step else Kind.MISSING
  return State(
    cell=cell,
    kind=kind,
    step=progress.step,
    steps=cell.steps,
    evaluations=progress.evaluations,
    success=progress.success,
    seconds=progress.seconds,
    owner=owner,
    ending=ending,
  )


class _Progress(NamedTuple):
  """What a run's metrics say; fields as in `State`."""

  step: int
  evaluations: tuple[Evaluation, ...]
  success: bool | None
  seconds: float


def _progress(cell: Cell, folder: Folder) -> _Progress:
  """Reads a run's metrics.

  Damaged lines are the report's matter, which names them; here they are
  passed over.
  """
  config, steps = cell.config, cell.steps
  step, evaluations, success = 0, [], None
  before = seconds = 0.0
  for part in part_names(folder, METRICS):
    for line in (folder.read(part) or b"").splitlines():
      try:
        entry = json.loads(line)
        step = max(step, int(entry["step"]))
      except (ValueError, KeyError, TypeError, OverflowError):
        continue
      if _is_finite(entry.get(_NATS)):
        evaluations.append(
          Evaluation(
            training_share=step / steps,
            poisons_share=_share(entry.get(_POISONS), config.poison.count),
            log_increase=entry[_NATS],
          )
        )
      if _is_finite(entry.get(_INCREASE)):
        success = entry[_INCREASE] > config.evaluation.threshold
      clock = entry.get(_SECONDS)
      if _is_finite(clock):
        # Each process begins at zero.
        seconds += clock - before if clock >= before else clock
        before = clock
  return _Progress(step, tuple(evaluations), success, seconds)


def _share(part: Any, whole: int) -> float:
  return part / whole if whole and _is_finite(part) else 0.0


def _is_finite(value: Any) -> bool:
  try:
    return isinstance(value, int | float) and math.isfinite(value)
  except OverflowError:  # An integer of hundreds of digits.
    return False
