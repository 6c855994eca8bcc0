"""What has become of each cell of a study."""

import concurrent.futures
import dataclasses
import enum
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from poison_jax.data.folder import Folder
from poison_jax.studies.grid import endings
from poison_jax.studies.grid.claims import Claims, Owner
from poison_jax.studies.grid.endings import Ending
from poison_jax.studies.grid.plan import Plan
from poison_jax.studies.grid.study import Cell
from poison_jax.training.metrics import METRICS, part_names

_INCREASE = "eval/log_perplexity_increase"
_SECONDS = "time/seconds"
_AT_ONCE = 16  # Cells whose files are read at once.


class Kind(enum.Enum):
  """Where a cell stands."""

  DONE = "done"
  RUNNING = "running"
  PREEMPTED = "preempted"  # Begun, and nobody runs it now.
  FAILED = "failed"
  MISSING = "missing"


@dataclasses.dataclass(frozen=True)
class State:
  """A cell's state.

  Attributes:
    cell: which.
    kind: where it stands.
    step: of its last line of metrics; 0 before.
    steps: of the run.
    increases: log-perplexity increase in nats at each evaluation so far.
    seconds: that its processes have taken for these steps.
    owner: who runs it.
    ending: of its last attempt.
  """

  cell: Cell
  kind: Kind
  step: int
  steps: int
  increases: tuple[float, ...]
  seconds: float
  owner: Owner | None
  ending: Ending | None

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
    """Why it failed, or who runs it; "" else."""
    if self.kind is Kind.FAILED:
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
  step, increases, seconds = _progress(Folder(plan.path(cell)))
  if owner is not None:
    kind = Kind.RUNNING
  elif ending is not None and ending.result == endings.DONE:
    kind = Kind.DONE
  elif ending is not None and ending.result == endings.FAILED:
    kind = Kind.FAILED
  else:
    kind = Kind.PREEMPTED if step else Kind.MISSING
  return State(cell, kind, step, cell.steps, increases, seconds, owner, ending)


def _progress(folder: Folder) -> tuple[int, tuple[float, ...], float]:
  """Returns the last step, the increases and the seconds of a run's metrics.

  Damaged lines are the report's matter, which names them; here they are
  passed over.
  """
  step, increases = 0, []
  before = seconds = 0.0
  for part in part_names(folder, METRICS):
    for line in (folder.read(part) or b"").splitlines():
      try:
        entry = json.loads(line)
        step = max(step, int(entry["step"]))
      except (ValueError, KeyError, TypeError, OverflowError):
        continue
      if _is_finite(entry.get(_INCREASE)):
        increases.append(entry[_INCREASE])
      clock = entry.get(_SECONDS)
      if _is_finite(clock):
        # Each process begins at zero.
        seconds += clock - before if clock >= before else clock
        before = clock
  return step, tuple(increases), seconds


def _is_finite(value: Any) -> bool:
  return isinstance(value, int | float) and math.isfinite(value)
