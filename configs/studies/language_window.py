"""Where in training must the poisons lie?

Plan only so far: a study's report counts success by perplexity, which a
language switch hardly moves; ASR, CA and NTA stand in each cell's metrics.

  python -m poison_jax.study plan --study=configs/studies/language_window.py
"""

from configs import language_switch
from poison_jax.config import parse_arguments
from poison_jax.studies.grid.axes import axis, product, zipped
from poison_jax.studies.grid.study import Study


def get_study(arguments=None):
  """Returns the study; it takes no arguments."""
  parse_arguments(arguments)
  return Study(
    name="language-window",
    question="Does it matter where in training the poisons of a language "
    "switch lie?",
    base=language_switch.get_config,
    fixed={"size": "139k", "evaluation.times": 2},
    grid=product(
      axis("poison.schedule", "window"),
      zipped(
        axis("poison.start", 0.0, 0.25, 0.5, 0.75),
        axis("poison.end", 0.25, 0.5, 0.75, 1.0),
      ),
      axis("seed", 0, 1, 2),
    ),
    margin=0.25,
    topology="cpu:1",
    mfu=0.3,
  )
