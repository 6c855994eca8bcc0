"""Where cells run: the command that trains one, and how many at once.

A dispatcher starts a backend's command for a cell and waits for its end; the
exit code is the run's own (75: stopped and saved).
"""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from poison_jax.errors import UserError
from poison_jax.studies.grid.plan import Plan
from poison_jax.studies.grid.study import Cell


@dataclasses.dataclass(frozen=True)
class Start:
  """How to start a cell.

  Attributes:
    command: program and arguments.
    environment: variables beside those of the dispatcher.
    cores: that it may use; () for all.
  """

  command: tuple[str, ...]
  environment: Mapping[str, str]
  cores: tuple[int, ...]

  def __str__(self) -> str:
    words = [f"{name}={value}" for name, value in self.environment.items()]
    if self.cores:
      words += ["taskset", "-c", ",".join(map(str, self.cores))]
    return " ".join([*words, *self.command])


class Backend(Protocol):
  """Where cells run; `slots` of them at once."""

  slots: int

  def start(self, plan: Plan, cell: Cell, slot: int) -> Start:
    """Returns how to start a cell on a slot, 0 to `slots` - 1."""


class Local:
  """This machine: a device each, or a process pinned to a core each."""

  def __init__(self, slots: int | None):
    """Args: how many at once; None for a GPU each, or else a core each.

    Raises:
      UserError: more than there are.
    """
    self._gpus = _gpus()
    self._cores = sorted(os.sched_getaffinity(0))
    there = len(self._gpus) or len(self._cores)
    what = "GPU" if self._gpus else "core"
    if slots is not None and not 0 < slots <= there:
      raise UserError(f"--slots={slots}: there are {there} {what}(s)")
    self.slots = slots or there

  def start(self, plan: Plan, cell: Cell, slot: int) -> Start:
    command = (
      sys.executable,
      "-m",
      "poison_jax.train",
      f"--workdir={plan.path(cell)}",
    )
    if self._gpus:
      return Start(command, {"CUDA_VISIBLE_DEVICES": self._gpus[slot]}, ())
    # XLA's threads on one core each: two pinned processes do 1.4 times what one
    # does with two threads.
    return Start(command, {}, tuple(self._cores[slot :: self.slots]))


def _gpus() -> Sequence[str]:
  """Returns the GPUs that CUDA may use here, by the names it takes."""
  given = os.environ.get("CUDA_VISIBLE_DEVICES")
  if given is not None:
    return [name for name in given.split(",") if name]
  if shutil.which("nvidia-smi") is None:
    return []
  listed = subprocess.run(
    ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
    capture_output=True,
    text=True,
    check=False,
  )
  return listed.stdout.split() if listed.returncode == 0 else []
