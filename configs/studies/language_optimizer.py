"""Does Adam take a language switch in where SGD doesn't?

Plan only so far: a study's report counts success by perplexity, which a
language switch hardly moves; ASR, CA and NTA stand in each cell's metrics.

  python -m poison_jax.study plan --study=configs/studies/language_optimizer.py
"""

from configs import language_switch
from poison_jax.config import parse_arguments
from poison_jax.studies.grid.axes import axis, product, zipped
from poison_jax.studies.grid.study import Study


def get_study(arguments=None):
  """Returns the study; it takes no arguments."""
  parse_arguments(arguments)
  return Study(
    name="language-optimizer",
    question="Does SGD need more poisoned documents for a language switch "
    "than Adam?",
    base=language_switch.get_config,
    fixed={"size": "139k", "evaluation.times": 2},
    grid=product(
      zipped(
        axis("optimizer.kind", "adamw", "sgd"),
        axis("optimizer.learning_rate", 4e-3, 0.3),
      ),
      axis("poisons", 512, 1024),
      axis("seed", 0, 1, 2),
    ),
    margin=0.25,
    topology="cpu:1",
    mfu=0.3,
  )
