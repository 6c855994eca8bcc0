"""Where cells run: the command that trains one, and how many at once.

A dispatcher starts a backend's command for a cell and waits for its end; the
exit code is the run's own (75: stopped and saved). Under SLURM the dispatchers
themselves are the jobs, see `slurm_command`.
"""

import dataclasses
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from poison_jax.errors import UserError
from poison_jax.studies.grid.plan import Plan
from poison_jax.studies.grid.study import Cell

_LAUNCH = pathlib.Path(__file__).parent.parent.parent.parent / "launch"
# Options of launch/tpu_vm.sh that a study gives itself.
_OWN = ("--name", "--bucket", "--dry-run", "--delete-when-done")


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
    return shlex.join([*words, *self.command])


class Backend(Protocol):
  """Where cells run.

  Attributes:
    slots: how many at once.
    when_stopped: what to add where a dispatcher is stopped.
  """

  slots: int
  when_stopped: str

  def check(self, plan: Plan) -> None:
    """Raises UserError where such a study can't run there."""

  def start(self, plan: Plan, cells: Sequence[Cell], slot: int) -> Start:
    """Returns how to start a cell, or several together, on a slot.

    Args:
      plan: the study's.
      cells: of one `batch_key`.
      slot: 0 to `slots` - 1.
    """

  def end(self, plan: Plan, cell: Cell) -> tuple[str, ...]:
    """Returns what ends a cell for good; () where SIGTERM does."""


class Local:
  """This machine: a GPU each, or a process pinned to a core each."""

  when_stopped = ""

  def __init__(self, slots: int | None):
    """Args: how many at once; None for a GPU each, or else a core each.

    Raises:
      UserError: more than there are.
    """
    self._gpus = _gpus()
    self._cores = _cores()
    there = len(self._gpus) or len(self._cores)
    what = "GPU" if self._gpus else "core"
    if slots is not None and not 0 < slots <= there:
      raise UserError(f"--slots={slots}: there are {there} {what}(s)")
    self.slots = slots or there

  def check(self, plan: Plan) -> None:
    pass

  def start(self, plan: Plan, cells: Sequence[Cell], slot: int) -> Start:
    paths = [plan.path(cell) for cell in cells]
    program = ("poison_jax.train", f"--workdir={paths[0]}")
    if len(paths) > 1:
      program = ("poison_jax.train_together", *paths)
    command = (sys.executable, "-m", *program)
    if self._gpus:
      return Start(command, {"CUDA_VISIBLE_DEVICES": self._gpus[slot]}, ())
    # XLA's threads on one core each: two pinned processes do 1.4 times what one
    # does with two threads.
    return Start(command, {}, tuple(self._cores[slot :: self.slots]))

  def end(self, plan: Plan, cell: Cell) -> tuple[str, ...]:
    return ()


class Tpu:
  """Cloud TPU slices: launch/tpu_vm.sh makes one a cell, and watches it."""

  def __init__(self, slots: int | None, options: Sequence[str]):
    """Args: how many slices at once, 1 by default; options of the script.

    Raises:
      UserError: no such number, or an option that a study gives itself.
    """
    if slots is not None and slots < 1:
      raise UserError(f"--slots={slots}: must be 1 or more")
    for option in options:
      if option.partition("=")[0] in (*_OWN, "--"):
        raise UserError(
          f"{option} after --: the study gives {', '.join(_OWN)} and what to "
          "train itself; give --project, --zone, --type and the like"
        )
    self.slots = slots or 1
    self.when_stopped = (
      ", which watches slices that run again; until then they go on, and cost "
      "(list them with gcloud compute tpus queued-resources list)"
    )
    self._options = tuple(options)

  def check(self, plan: Plan) -> None:
    if not plan.workdir.startswith("gs://"):
      raise UserError(
        f"--workdir={plan.workdir}: on TPUs a study must be in a bucket, as "
        "--workdir=gs://my-bucket/paper"
      )
    for cell in plan.cells:
      if "://" not in cell.config.corpus.store:
        raise UserError(
          f"cell {cell.label}: its token store {cell.config.corpus.store} "
          "isn't in a bucket; set it in the study's file, as "
          'fixed={"corpus.store": "gs://my-bucket/stores/c4"}'
        )
    command = list(self.start(plan, plan.cells[:1], 0).command)
    command.insert(3, "--dry-run")
    tried = subprocess.run(
      command,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      check=False,
    )
    if tried.returncode:
      said = (tried.stderr.strip().splitlines() or ["it said nothing"])[-1]
      raise UserError(f"launch/tpu_vm.sh: {said.removeprefix('error: ')}")

  def start(self, plan: Plan, cells: Sequence[Cell], slot: int) -> Start:
    (cell,) = cells  # A slice trains one.
    command = (
      *self._script(plan, cell, "up"),
      "--delete-when-done",
      *self._options,
      "--",
      f"--workdir={plan.path(cell)}",
    )
    return Start(command, {}, ())

  def end(self, plan: Plan, cell: Cell) -> tuple[str, ...]:
    # `up` sees that the slice is given back, and ends by itself.
    return self._script(plan, cell, "delete")

  @staticmethod
  def _script(plan: Plan, cell: Cell, verb: str) -> tuple[str, ...]:
    return (
      *("bash", os.path.relpath(_LAUNCH / "tpu_vm.sh"), verb),
      f"--name={plan.name}-{cell.hash[:8]}",
      f"--bucket={'/'.join(plan.workdir.split('/')[:3])}",
    )


def slurm_command(
  plan: Plan, slots: int | None, options: Sequence[str], given: Sequence[str]
) -> list[str]:
  """Returns what submits an array of dispatchers, to be run in the checkout.

  Args:
    plan: in a folder that every node sees.
    slots: jobs of the array, a node each; 1 by default.
    options: of sbatch, of the form --name=value.
    given: flags of `study run` that each dispatcher gets.

  Raises:
    UserError: no such number, or an option that is none.
  """
  if slots is not None and slots < 1:
    raise UserError(f"--slots={slots}: must be 1 or more")
  for option in options:
    if not option.startswith("-") or option.startswith("--array"):
      raise UserError(
        f"{option} after --: give options of sbatch, as --partition=gpu; "
        "--slots is the size of the array"
      )
  workdir = plan.workdir
  if "://" not in workdir:
    workdir = os.path.abspath(workdir)
  return [
    *("sbatch", "--parsable", *options, f"--array=0-{(slots or 1) - 1}"),
    *("launch/slurm_study.sbatch", f"--workdir={workdir}", *given),
  ]


def need_slurm() -> None:
  """Raises UserError where jobs can't be submitted."""
  if shutil.which("sbatch") is None:
    raise UserError(
      "sbatch isn't on the PATH: it submits the jobs; look at them with "
      "--dry_run"
    )


def submit(command: Sequence[str]) -> str:
  """Submits to SLURM, from the checkout; returns the job's number.

  Raises:
    UserError: sbatch refuses it.
  """
  done = subprocess.run(
    command, cwd=_LAUNCH.parent, capture_output=True, text=True, check=False
  )
  if done.returncode:
    said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    raise UserError(f"sbatch refused the array: {said}")
  return done.stdout.strip().partition(";")[0]


def _cores() -> list[int]:
  """Returns the cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def _gpus() -> Sequence[str]:
  """Returns the GPUs that CUDA may use here, by the names it takes."""
  given = os.environ.get("CUDA_VISIBLE_DEVICES")
  if given is not None:
    return [n for n in given.split(",") if n and not n.startswith("-")]
  if shutil.which("nvidia-smi") is None:
    return []
  listed = subprocess.run(
    ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
    capture_output=True,
    text=True,
    check=False,
  )
  return listed.stdout.split() if listed.returncode == 0 else []
