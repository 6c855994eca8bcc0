"""Trains a run, or goes on with one.

  python -m poison_jax.train --config=configs/tiny.py --workdir=runs/a
  python -m poison_jax.train --workdir=runs/a    # resumes from its config.json

The run's folder may be in a bucket: --workdir=gs://bucket/runs/a.

Exit codes: 0 done (a finished run says so); 2 what you gave can't be used; 3 a
check failed; 4 the loss is not finite; 75 stopped by a signal and saved: start
it again.
"""

from absl import flags

from poison_jax import command
from poison_jax.errors import UserError
from poison_jax.training import loop

_CONFIG = command.define_config()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder, local or gs://bucket/folder."
)
_PROFILE = flags.DEFINE_integer(
  "profile", 0, "Steps to trace into WORKDIR/profile.", lower_bound=0
)


def main(arguments: list[str]) -> None:
  """Trains the run in --workdir to its end."""
  if arguments or not _WORKDIR.value:
    raise UserError(
      "train takes --workdir=FOLDER, with --config=FILE.py for a new run, and "
      "no other argument" + (f", got {arguments[0]!r}" if arguments else "")
    )
  loop.train(
    command.load_config(_CONFIG), _WORKDIR.value, profile=_PROFILE.value
  )


if __name__ == "__main__":
  command.run(main)
