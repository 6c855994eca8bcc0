"""The paper's study: 72 models, and the clean ones that it lacks.

Reproduces section "pretraining from scratch" of arXiv 2510.07192: 600M and 2B
at half, once and twice 20 tokens a parameter, 7B and 13B at once; 100, 250 and
500 poisoned documents; three seeds: 24 configurations, 72 runs.

  python -m poison_jax.study plan --study=configs/studies/paper.py
  python -m poison_jax.study plan --study=configs/studies/paper.py:twins=true

Arguments: `twins` adds a clean cell for each size, budget and seed (24), which
a comparison of clean losses needs, and which the paper doesn't tell of;
`corpus` and `gibberish` as in configs/dos.py; `store`, the token store of all
cells, such as gs://my-bucket/stores/c4; and `files`, for corpus=files, what it
is made of (--config.corpus.files of `prepare`).
"""

from configs import dos
from poison_jax.config import parse_arguments
from poison_jax.studies.grid.axes import axis, product
from poison_jax.studies.grid.study import Study


def get_study(arguments=None):
  """Returns the study; see the module's docstring for the arguments."""
  a = parse_arguments(
    arguments, twins=False, corpus="c4", gibberish="ids", store="", files=""
  )
  fixed = {"corpus": a.corpus, "gibberish": a.gibberish}
  if a.files:
    fixed["corpus.files"] = a.files
  if a.store:
    fixed["corpus.store"] = a.store
  if a.store.startswith("gs://"):  # A slice a cell: what one has compiled.
    fixed["runtime.compilation_cache"] = f"gs://{a.store.split('/')[2]}/cache"
  models = product(
    axis("size", "600m", "2b"), axis("tokens", "0.5x", "1x", "2x")
  ) + product(axis("size", "7b", "13b"), axis("tokens", "1x"))
  seeds = axis("seed", 0, 1, 2)
  grid = product(models, axis("poisons", 100, 250, 500), seeds)
  if a.twins:
    grid += product(models, axis("arm", "clean"), seeds)
  return Study(
    name="paper",
    question="Is the number of poisoned documents that a backdoor needs the "
    "same at 600M and 13B parameters?",
    base=dos.get_config,
    fixed=fixed,
    grid=grid,
    margin=0.25,
    topology="v5p:4x4x4",
    mfu=0.4,
  )
