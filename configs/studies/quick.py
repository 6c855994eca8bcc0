"""A study of minutes: two doses and none, two seeds, the smallest model.

To see a study run, stop, go on and report before one that takes an hour:

  python -m poison_jax.study run --study=configs/studies/quick.py \\
    --workdir=studies/quick
"""

from configs import tiny
from poison_jax.config import parse_arguments
from poison_jax.studies.grid.axes import axis, product
from poison_jax.studies.grid.study import Study


def get_study(arguments=None):
  """Returns the study; it takes no arguments."""
  parse_arguments(arguments)
  return Study(
    name="quick",
    question="Do 64 or 128 poisoned documents backdoor 35k parameters?",
    base=tiny.get_config,
    fixed={"size": "35k"},
    grid=product(axis("poisons", 0, 64, 128), axis("seed", 0, 1)),
    margin=0.25,
    topology="cpu:1",
    mfu=0.3,
  )
