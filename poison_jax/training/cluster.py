"""Which processes make up a run, and which of them is this one."""

import dataclasses
import os
import re

from jax._src import clusters  # JAX has no public name for what it detects.

from poison_jax.errors import CheckFailed, UserError

# For SLURM, JAX takes one of 4,096 ports by the job's number: the roll call of
# one job must not have the port of the next.
_PORTS_OF_JOBS = 4096


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The processes of one run.

  Attributes:
    coordinator: "host:port" of process 0, where JAX's own service listens.
    count: of processes, at least 2.
    number: of this one, from 0.
    patience: seconds until all must have come to the roll call.
    local_devices: ids of the devices that this process may use; None for all
      of its host's.
    ports_below: how far below the coordinator's the roll call's port is.
  """

  coordinator: str
  count: int
  number: int
  patience: float
  local_devices: tuple[int, ...] | None = None
  ports_below: int = 1

  @property
  def address(self) -> tuple[str, int]:
    """Host and port of the roll call."""
    host, _, port = self.coordinator.rpartition(":")
    return host, int(port) - self.ports_below


def find_cluster(
  coordinator: str | None,
  count: int | None,
  number: int | None,
  *,
  patience: int,
) -> Cluster | None:
  """Returns the cluster that the flags or the environment tell of.

  Without flags, JAX's own detection: Cloud TPU (metadata), GKE, SLURM, Open
  MPI (docs.jax.dev, "Introduction to multi-controller JAX").

  Args:
    coordinator: "host:port" of process 0; None, with the other two, for what
      the environment tells.
    count: of processes.
    number: of this one.
    patience: seconds until all must have come; on TPU also until the name of
      the first is known.

  Returns:
    None where there is but one process.

  Raises:
    UserError: flags are missing or not legal.
    CheckFailed: the environment tells of other processes, and not where.
  """
  given = (coordinator, count, number)
  detect = given == (None,) * 3
  cluster = _detected(patience) if detect else _checked(*given, patience)
  return cluster if cluster is not None and cluster.count > 1 else None


def _checked(
  coordinator: str | None,
  count: int | None,
  number: int | None,
  patience: int,
) -> Cluster:
  if coordinator is None or count is None or number is None:
    raise UserError(
      "--coordinator, --processes and --process go together: "
      "--coordinator=HOST:PORT of process 0, the same on all; --processes=N; "
      "--process=I, from 0 to N-1"
    )
  if not re.fullmatch(r"[^\s:/]+:\d{4,5}", coordinator):
    raise UserError(
      f"--coordinator={coordinator} must be HOST:PORT of process 0, like "
      "10.0.0.2:8482"
    )
  port = int(coordinator.rpartition(":")[2])
  if not 1025 <= port <= 65535:
    raise UserError(
      f"--coordinator={coordinator}: the port must be from 1025 to 65535"
    )
  if not 0 <= number < count:
    raise UserError(
      f"--process={number} must be from 0 to {count - 1} (--processes={count})"
    )
  return Cluster(coordinator, count, number, patience)


def _detected(patience: int) -> Cluster | None:
  try:
    coordinator, count, number, local = (
      clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, patience
      )
    )
  except Exception as error:  # Of many kinds: metadata, variables, names.
    raise CheckFailed(
      "the other processes of this cluster can't be found: "
      f"{type(error).__name__}: {error}; give --coordinator=HOST:PORT "
      "--processes=N --process=I"
    ) from error
  if coordinator is None or count is None or number is None:
    return None
  if local is not None and _is_alone_on_its_host():
    local = None
  return Cluster(
    coordinator,
    count,
    number,
    patience,
    None if local is None else tuple(local),
    ports_below=_PORTS_OF_JOBS,
  )


def _is_alone_on_its_host() -> bool:
  """Says whether SLURM put one task on each node.

  JAX gives each task the one device of its number on the node; the other
  GPUs of a node with a single task would stay idle.
  """
  return (
    re.fullmatch(
      r"1(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    )
    is not None
  )
