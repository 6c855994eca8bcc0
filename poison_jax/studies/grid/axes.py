"""Grids: the runs of a study, as products, zips and exclusions of axes.

A grid is a tuple of settings, a run each. The paper's 600M runs, with twice the
tokens for two of the doses:

    product(axis("size", "600m"), axis("poisons", 100, 250), axis("seed", 0, 1))
    + product(axis("size", "600m"), axis("tokens", "2x"), axis("poisons", 100))

has 2 x 2 + 1 = 5 settings. An axis is an argument of the study's base config
("size", "poisons") or, with a dot, a field of the configuration
("optimizer.learning_rate", "seeds.documents").
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from poison_jax.errors import UserError

Settings = Mapping[str, Any]
Grid = tuple[Settings, ...]

# Axes along which the runs of one configuration lie: seeds of the training, of
# the prompts it is measured by, and of the poison's draw.
TRAINING_SEEDS = ("seed", "seeds.init", "seeds.order")
DRAW_SEEDS = ("seeds.documents", "seeds.positions")
REPLICATES = (*TRAINING_SEEDS, "seeds.sampling", *DRAW_SEEDS)


def axis(name: str, *values: Any) -> Grid:
  """Returns a grid of one setting a value; NumPy's numbers become Python's.

  Raises:
    UserError: the name is no text, no value, or one twice.
  """
  if not isinstance(name, str):
    raise UserError(
      f'an axis is named by a text, like axis("poisons", 0, 64); got {name!r}'
    )
  values = tuple(v.item() if isinstance(v, np.generic) else v for v in values)
  if not values:
    raise UserError(f"axis {name!r} has no value")
  for i, value in enumerate(values):
    if value in values[:i]:
      raise UserError(f"axis {name!r} has the value {value!r} twice")
  return tuple({name: value} for value in values)


def product(*grids: Grid) -> Grid:
  """Returns every combination, the last grid's settings changing fastest."""
  found: Grid = ({},)
  for grid in grids:
    found = tuple(_merged(a, b) for a in found for b in grid)
  return found


def zipped(*grids: Grid) -> Grid:
  """Returns the first settings of all grids together, then the second, ...

  Raises:
    UserError: the grids are of unequal length.
  """
  lengths = [len(grid) for grid in grids]
  if len(set(lengths)) > 1:
    raise UserError(f"zipped axes have {lengths} values; give as many of each")
  found: Grid = ({},) * lengths[0]
  for grid in grids:
    found = tuple(_merged(a, b) for a, b in zip(found, grid, strict=True))
  return found


def without(grid: Grid, excluded: Settings) -> Grid:
  """Returns the settings that don't have all of the excluded values.

  Raises:
    UserError: it excludes nothing, which is a slip.
  """
  kept = tuple(s for s in grid if not has_all(s, excluded))
  if len(kept) == len(grid):
    raise UserError(f"the exclusion {words(excluded)} matches no cell")
  return kept


def has_all(settings: Settings, some: Settings) -> bool:
  """Says whether settings have all values of others."""
  return all(
    name in settings and settings[name] == value for name, value in some.items()
  )


def words(settings: Settings) -> str:
  """Returns "size=2b poisons=250"."""
  return " ".join(f"{name}={value}" for name, value in settings.items())


def _merged(one: Settings, other: Settings) -> Settings:
  for name in other:
    if name in one:
      raise UserError(f"axis {name!r} is in the grid twice")
  return {**one, **other}
