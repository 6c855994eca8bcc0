"""Trains a run, or goes on with one.

  python -m poison_jax.train --config=configs/tiny.py --workdir=runs/a
  python -m poison_jax.train --workdir=runs/a    # resumes from its config.json

The run's folder may be in a bucket: --workdir=gs://bucket/runs/a.

On many hosts the same command runs on each. On Cloud TPU, GKE, SLURM and Open
MPI the processes find each other; elsewhere, with N processes:

  python -m poison_jax.train ... --coordinator=10.0.0.2:8482 --processes=N \
    --process=I    # from 0, on the coordinator's host, to N-1

They need the coordinator's port and the one below it.

Exit codes: 0 done (a finished run says so); 2 what you gave can't be used; 3 a
check failed, or hosts are missing or differ; 4 the loss is not finite; 75
stopped by a signal and saved, or another host was lost: start it again.
"""

from absl import flags

from poison_jax import command
from poison_jax.errors import UserError
from poison_jax.training import cluster, loop, peers

_CONFIG = command.define_config()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder, local or gs://bucket/folder."
)
_PROFILE = flags.DEFINE_integer(
  "profile", 0, "Steps to trace into WORKDIR/profile.", lower_bound=0
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, where nothing tells it."
)
_PROCESSES = flags.DEFINE_integer(
  "processes", None, "How many processes make up the run.", lower_bound=1
)
_PROCESS = flags.DEFINE_integer(
  "process", None, "The number of this one, from 0.", lower_bound=0
)


def main(arguments: list[str]) -> None:
  """Trains the run in --workdir to its end."""
  if arguments or not _WORKDIR.value:
    raise UserError(
      "train takes --workdir=FOLDER, with --config=FILE.py for a new run, and "
      "no other argument" + (f", got {arguments[0]!r}" if arguments else "")
    )
  config = command.load_config(_CONFIG)
  found = cluster.find_cluster(
    _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
  )
  loop.train(config, _WORKDIR.value, profile=_PROFILE.value, cluster=found)


if __name__ == "__main__":
  command.run(main, leave=peers.leave)
