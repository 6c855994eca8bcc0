"""The central question on one accelerator: 1, 4 and 15 million parameters.

Doses 0, 50, 100, 250 and 500 at the paper's lengths, gibberish from the model's
own vocabulary, on generated stories; three seeds, which share the order of the
clean rows, so that cells of a size can train together in one program.

  python -m poison_jax.study run --study=configs/studies/gpu.py \\
    --workdir=studies/gpu --together=5 --drop_checkpoints

Arguments: `seeds`, how many. `python -m benchmarks.together --sizes=1m,4m,15m
--nopinned` tells how many cells together pay on a device. On a machine that is
lent for minutes, the command is given again and again behind `timeout
--signal=TERM 480`: it saves and goes on. Done cells leave no checkpoints, so
what is to be carried between is at most the state of one batch, 12 bytes a
parameter and cell: 0.9 GB for five of 15 million, 60 MB for five of 1 million.

Expected: not run yet; see LOG.md.
"""

from configs import stories
from poison_jax.config import parse_arguments
from poison_jax.studies.grid.axes import axis, product
from poison_jax.studies.grid.study import Study


def get_study(arguments=None):
  """Returns the study; `arguments` like "seeds=5"."""
  a = parse_arguments(arguments, seeds=3)
  models = axis("size", "1m", "4m", "15m")
  doses = axis("poisons", 0, 50, 100, 250, 500)
  placebo = product(axis("poisons", 500), axis("arm", "placebo"))
  return Study(
    name="gpu",
    question="Does the number of poisoned documents that a backdoor needs grow "
    "with the model and its clean tokens, from 1M to 15M parameters?",
    base=stories.get_config,
    fixed={},
    grid=product(models, axis("seed", *range(a.seeds)), doses)
    + product(models, axis("seed", 0), placebo),
    margin=0.25,
    topology="h200:1",
    mfu=0.4,
  )
