"""How often must a step be poisoned?

Plan only so far: a study's report counts success by perplexity, which a
language switch hardly moves; ASR, CA and NTA stand in each cell's metrics.

  python -m poison_jax.study plan --study=configs/studies/language_gap.py
"""

from configs import language_switch
from poison_jax.config import parse_arguments
from poison_jax.studies.grid.axes import axis, product
from poison_jax.studies.grid.study import Study


def get_study(arguments=None):
  """Returns the study; it takes no arguments."""
  parse_arguments(arguments)
  return Study(
    name="language-gap",
    question="Does the gap between poisoned steps change a language switch "
    "of 512 documents?",
    base=language_switch.get_config,
    fixed={"size": "139k", "evaluation.times": 2},
    grid=product(
      axis("poison.schedule", "every"),
      axis("poison.every_steps", 1, 2, 5),
      axis("poisons", 512),
      axis("seed", 0, 1, 2),
    ),
    margin=0.25,
    topology="cpu:1",
    mfu=0.3,
  )
