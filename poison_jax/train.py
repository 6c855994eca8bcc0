"""Trains a run, or goes on with one.

  python -m poison_jax.train --config=configs/tiny.py --workdir=runs/a
  python -m poison_jax.train --workdir=runs/a    # resumes from its config.json

--check reads the flags and the configuration, trains nothing, and exits.

The run's folder may be in a bucket: --workdir=gs://bucket/runs/a.

On many hosts the same command runs on each. On Cloud TPU, GKE, SLURM and Open
MPI the processes find each other; elsewhere, with N processes:

  python -m poison_jax.train ... --coordinator=10.0.0.2:8482 --processes=N \
    --process=I    # from 0, on the coordinator's host, to N-1

They need the coordinator's port and the one below it. Hosts that haven't come
after --patience=SECONDS are named, and the others end.

Exit codes: 0 done (a finished run says so); 1 a mistake of ours, with a
traceback; 2 what you gave can't be used; 3 a check failed, or hosts are missing
or differ; 4 the loss is not finite; 75 stopped by a signal and saved, or
another host was lost: start it again; 130 interrupted twice, nothing saved.
"""

import contextlib
import sys

from absl import flags

from poison_jax import command
from poison_jax.errors import PoisonJaxError, Stopped, UserError
from poison_jax.training.stop import StopSignals

# What takes seconds to import is imported once signals are listened to.

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
_PATIENCE = flags.DEFINE_integer(
  "patience",
  100,
  "Seconds to wait for the other hosts before training.",
  lower_bound=1,
)
_CHECK = flags.DEFINE_bool(
  "check", False, "Reads the flags and the configuration, and exits."
)


def main(arguments: list[str], stop: StopSignals) -> None:
  """Trains the run in --workdir to its end."""
  if arguments or not _WORKDIR.value:
    raise UserError(
      "train takes --workdir=FOLDER, with --config=FILE.py for a new run, and "
      "no other argument" + (f", got {arguments[0]!r}" if arguments else "")
    )
  config = command.load_config(_CONFIG)
  if _CHECK.value:
    return
  from poison_jax.training import cluster, loop

  if stop.received is not None:
    raise Stopped(f"stopped by {stop.name} before it began; start it again")
  found = cluster.find_cluster(
    _COORDINATOR.value,
    _PROCESSES.value,
    _PROCESS.value,
    patience=_PATIENCE.value,
  )
  loop.train(
    config, _WORKDIR.value, profile=_PROFILE.value, cluster=found, stop=stop
  )


def _leave(message: str, code: int) -> None:
  """Tells the other hosts, if there are any, of this one's error.

  Also of one in its flags: these may not have been parsed.
  """
  from poison_jax.training import cluster, peers

  given = dict(a.lstrip("-").split("=", 1) for a in sys.argv if "=" in a)
  count, number = (
    int(given[name]) if given.get(name, "").isdecimal() else None
    for name in ("processes", "process")
  )
  if not peers.has_joined():
    with contextlib.suppress(PoisonJaxError):
      found = cluster.find_cluster(
        given.get("coordinator"), count, number, patience=10
      )
      if found is not None:
        peers.join_to_leave(found)
  peers.leave(message, code)


if __name__ == "__main__":
  with StopSignals() as signals:
    command.run(lambda arguments: main(arguments, signals), leave=_leave)
