"""How fast does clean training afterwards undo a language switch?

Plan only so far: a study's report counts success by perplexity, which a
language switch hardly moves; ASR, CA and NTA stand in each cell's metrics.

  python -m poison_jax.study plan --study=configs/studies/language_decay.py
"""

from configs import language_switch
from poison_jax.config import parse_arguments
from poison_jax.studies.grid.axes import axis, product
from poison_jax.studies.grid.study import Study


def get_study(arguments=None):
  """Returns the study; it takes no arguments."""
  parse_arguments(arguments)
  return Study(
    name="language-decay",
    question="How fast does the success rate of a language switch fall "
    "under clean training?",
    base=language_switch.get_config,
    fixed={"size": "139k", "evaluation.times": 10},
    grid=product(
      axis("poison.schedule", "window"),
      axis("poison.end", 0.3, 0.5),
      axis("seed", 0, 1, 2, 3),
    ),
    margin=0.25,
    topology="cpu:1",
    mfu=0.3,
  )
