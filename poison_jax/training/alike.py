"""Which runs can train together in one program. No JAX here.

Runs that share shapes, schedules' lengths and clean rows are alike. They may
differ in what is data to the program: the poisons laid over the rows, initial
weights, peak learning rates, and the prompts of their evaluations.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from poison_jax import config as config_lib
from poison_jax.config import Config

# Fields, and groups of fields, that may differ. Of the seeds, the order's own
# must agree, pinned or derived.
_MAY_DIFFER = ("seed", "seeds.", "poison.", "optimizer.learning_rate")


def batch_key(config: Config) -> str:
  """Returns 16 hex digits, equal for runs that can train together."""
  text = json.dumps(_shared(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def can_train_together(configs: Sequence[Config]) -> str | None:
  """Returns None, or in one line why these runs can't train together."""
  first, *others = map(_shared, configs)
  differing = {
    field: sorted({repr(c[field]) for c in (first, *others)})
    for field in first
    if any(c[field] != first[field] for c in others)
  }
  if not differing:
    return None
  return "cells that train together must agree in " + "; ".join(
    f"config.{field} ({' or '.join(values)})"
    for field, values in differing.items()
  )


def _shared(config: Config) -> dict[str, Any]:
  """Returns the fields in which runs that train together agree."""
  fields = {
    field: value
    for field, value in config_lib.flatten(config).items()
    if not field.startswith(_MAY_DIFFER)
  }
  return fields | {
    "seeds.order": config.seed_for("order"),
    "poison.attack": config.poison.attack,  # Decides the kinds of prompts.
  }
