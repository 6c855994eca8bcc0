"""Does the learning rate decide whether a language switch is learnt?

Plan only so far: a study's report counts success by perplexity, which a
language switch hardly moves; ASR, CA and NTA stand in each cell's metrics.

  python -m poison_jax.study plan --study=configs/studies/language_rate.py
"""

from configs import language_switch
from poison_jax.config import parse_arguments
from poison_jax.studies.grid.axes import axis, product
from poison_jax.studies.grid.study import Study


def get_study(arguments=None):
  """Returns the study; it takes no arguments."""
  parse_arguments(arguments)
  return Study(
    name="language-rate",
    question="How does a language switch of 512 documents depend on the "
    "learning rate?",
    base=language_switch.get_config,
    fixed={"size": "139k", "evaluation.times": 2},
    grid=product(
      axis("optimizer.learning_rate", 1e-3, 2e-3, 4e-3, 8e-3),
      axis("poisons", 512),
      axis("seed", 0, 1, 2),
    ),
    margin=0.25,
    topology="cpu:1",
    mfu=0.3,
  )
