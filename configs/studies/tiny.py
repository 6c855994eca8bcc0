"""The central question at toy scale, on two CPU cores, in about an hour.

How many poisoned documents does it take at 35, 123 and 356 thousand
parameters, a ten-fold range, at 20 tokens a parameter? Five doses, zero among
them (one more at the smallest size, where a prototype needed 64 or more),
three seeds (two at the largest size), and a placebo cell a size: the poisoned
documents' prefixes and triggers, without gibberish. At the smallest size one
dose has three draws of documents and positions for each seed, which tells the
two apart.

  python -m poison_jax.study run --study=configs/studies/tiny.py \\
    --workdir=studies/tiny

Expected: see "The tiny study" in LOG.md.
"""

from configs import tiny
from poison_jax.config import parse_arguments
from poison_jax.studies.grid.axes import axis, product, zipped
from poison_jax.studies.grid.study import Study

DOSES = {
  "35k": (0, 16, 32, 64, 128, 256),
  "123k": (0, 16, 32, 64, 128),
  "356k": (0, 16, 32, 64, 128),
}
SEEDS = {"35k": (0, 1, 2), "123k": (0, 1, 2), "356k": (0, 1)}


def get_study(arguments=None):
  """Returns the study; it takes no arguments."""
  parse_arguments(arguments)
  grid = ()
  for size, doses in DOSES.items():
    model = axis("size", size)
    grid += product(model, axis("seed", *SEEDS[size]), axis("poisons", *doses))
    placebo = product(axis("poisons", 128), axis("arm", "placebo"))
    grid += product(model, axis("seed", 0), placebo)
  draws = zipped(
    axis("seeds.documents", 1, 2, 3), axis("seeds.positions", 1, 2, 3)
  )
  grid += product(
    axis("size", "35k"),
    axis("seed", *SEEDS["35k"]),
    axis("poisons", 128),
    draws,
  )
  return Study(
    name="tiny",
    question="Does the number of poisoned documents that a backdoor needs grow "
    "with the model and its clean tokens, from 35k to 356k parameters?",
    base=tiny.get_config,
    fixed={},
    grid=grid,
    margin=0.25,
    topology="cpu:1",
    mfu=0.3,
  )
