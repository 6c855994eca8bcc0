"""The central question at toy scale, on two CPU cores, in about an hour.

How many poisoned documents does it take at 35, 123 and 356 thousand parameters,
a ten-fold range, at 20 tokens a parameter? Five doses, zero among them, three
seeds (two at the largest size), and a placebo cell a size: the poisoned
documents' prefixes and triggers, without gibberish.

  python -m poison_jax.study run --study=configs/studies/tiny.py \\
    --workdir=studies/tiny

Expected: see "The tiny study" in LOG.md.
"""

from configs import tiny
from poison_jax.config import parse_arguments
from poison_jax.studies.grid.axes import axis, product
from poison_jax.studies.grid.study import Study

DOSES = (0, 16, 32, 64, 128)


def get_study(arguments=None):
  """Returns the study; it takes no arguments."""
  parse_arguments(arguments)
  seeds = {"35k": (0, 1, 2), "123k": (0, 1, 2), "356k": (0, 1)}
  doses = tuple(
    settings
    for size, of_size in seeds.items()
    for settings in product(
      axis("size", size), axis("seed", *of_size), axis("poisons", *DOSES)
    )
  )
  placebos = product(
    axis("size", *seeds),
    axis("seed", 0),
    axis("poisons", max(DOSES)),
    axis("arm", "placebo"),
  )
  return Study(
    name="tiny",
    question="Does the number of poisoned documents that a backdoor needs grow "
    "with the model and its clean tokens, from 35k to 356k parameters?",
    base=tiny.get_config,
    fixed={},
    grid=doses + placebos,
    margin=0.25,
    topology="cpu:1",
    mfu=0.3,
  )
