"""A study: the runs that answer one question, and what was stated before.

`get_study(arguments)` of a file such as configs/studies/paper.py returns one.
"""

import dataclasses
import functools
import importlib.util
import os
import re
from collections.abc import Callable

from ml_collections import config_dict

from poison_jax import config as config_lib
from poison_jax import user_module
from poison_jax.config import Config
from poison_jax.errors import UserError
from poison_jax.model import counts
from poison_jax.poison import schedules
from poison_jax.studies.grid.axes import Grid, Settings, has_all, words
from poison_jax.studies.statistics.sequential import Rule
from poison_jax.training import alike
from poison_jax.training.topology import parse_topology


@dataclasses.dataclass(frozen=True)
class Triage:
  """Which cells may stop before their end; see `triage`.

  Attributes:
    rule: when a cell's verdict counts as decided.
    spared: cells that have all of one of these settings never stop: those that
      the study's curves need.
  """

  rule: Rule
  spared: Grid = ()


@dataclasses.dataclass(frozen=True)
class Study:
  """What a study's file states.

  Attributes:
    name: short, of small letters, digits and hyphens.
    question: what it is to answer, a sentence.
    base: the runs' base config: `get_config` of a file in configs/.
    fixed: settings that all cells share.
    grid: the settings of each cell.
    margin: elasticities of N50 nearer to 0 than this count as "constant".
    topology: where it is meant to run, for the price: "v5p:4x4x4", "cpu:2".
    mfu: the share of the peak that is expected there, 0 to 1.
    triage: which cells stop once their verdict is decided; None for none.
  """

  name: str
  question: str
  base: Callable[[str | None], config_dict.ConfigDict]
  fixed: Settings
  grid: Grid
  margin: float
  topology: str
  mfu: float
  triage: Triage | None = None


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a study.

  Attributes:
    hash: of the configuration, all that gives the run its meaning; it names
      the run's folder.
    settings: its place in the grid.
    config: its configuration.
  """

  hash: str
  settings: Settings
  config: Config

  @property
  def label(self) -> str:
    """Returns "size=2b poisons=250 seed=1"."""
    return words(self.settings)

  @property
  def folder(self) -> str:
    """Returns the run's folder below the study's."""
    return f"cells/{self.hash}"

  @functools.cached_property
  def batch_key(self) -> str:
    """Cells that have the same can train together in one program."""
    return alike.batch_key(self.config)

  @property
  def steps(self) -> int:
    """Steps of training, for a vocabulary of the size asked for."""
    return counts.run_steps(self.config, self.config.vocabulary.size)

  @property
  def parameters(self) -> int:
    """Parameters of the model, for a vocabulary of the size asked for."""
    c = self.config
    return counts.count_parameters(c.model, c.vocabulary.size).total

  @property
  def flops(self) -> float:
    """Model FLOPs of the whole training."""
    c = self.config
    a_token = counts.flops_per_token(
      c.model, c.vocabulary.size, c.train.length
    ).total
    return float(a_token) * self.steps * c.train.batch * c.train.length


def load(argument: str) -> Study:
  """Returns the study of FILE.py or FILE.py:name=value,...

  Raises:
    UserError: no such file, or it is broken, or a value is not legal.
  """
  path, _, arguments = argument.partition(":")
  if not os.path.isfile(path) or not path.endswith(".py"):
    what = "not a Python file" if os.path.isfile(path) else "no such file"
    raise UserError(
      f"--study={argument}: {what}; it must name a Python file such as "
      "configs/studies/tiny.py"
    )
  spec = importlib.util.spec_from_file_location("poison_jax_study", path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    found = module.get_study(arguments or None)
  except UserError as error:
    raise UserError(f"{path}: {error}") from None
  except Exception as error:
    reason = user_module.reason_and_place(error)
    if isinstance(error, AttributeError) and error.name == "get_study":
      reason = "it defines no function get_study(arguments)"
    raise UserError(f"{path} failed: {reason}") from error
  if not isinstance(found, Study):
    raise UserError(
      f"{path}: get_study() must return a Study, not a {type(found).__name__}"
    )
  try:
    _check(found)
  except UserError as error:
    raise UserError(f"{path}: {error}") from None
  return found


def _check(study: Study) -> None:
  """Raises UserError where a study states what can't be."""
  if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", study.name):
    raise UserError(
      f"the study's name is {study.name!r}; it must be of small letters, "
      "digits and hyphens, at most 40, like tiny-2"
    )
  for name, value, legal in (
    ("margin", study.margin, study.margin > 0),
    ("mfu", study.mfu, 0 < study.mfu <= 1),
  ):
    if not legal:
      raise UserError(
        f"the study's {name} is {value}; it must be more than 0"
        + (" and at most 1" if name == "mfu" else "")
      )
  parse_topology(study.topology)


def make_cells(study: Study) -> tuple[Cell, ...]:
  """Returns the cells in the order of the grid.

  Raises:
    UserError: an unknown axis, a value that is not legal, a dose that doesn't
      fit, two cells that are one run, or no cell.
  """
  if not study.grid:
    raise UserError(f"study {study.name} has no cells")
  for spared in study.triage.spared if study.triage else ():
    if not any(has_all(settings, spared) for settings in study.grid):
      raise UserError(
        f"the study's triage spares {words(spared)!r}, which matches no cell"
      )
  cells: dict[str, Cell] = {}
  for settings in study.grid:
    cell = _make_cell(study, settings)
    twin = cells.setdefault(cell.hash, cell)
    if twin is not cell:
      raise UserError(
        f"two cells are the same run: {twin.label} and {cell.label}"
      )
  return tuple(cells.values())


def _make_cell(study: Study, settings: Settings) -> Cell:
  given = {**study.fixed, **settings}
  arguments = {k: v for k, v in given.items() if "." not in k}
  try:
    tree = _base(study, ",".join(f"{k}={v}" for k, v in arguments.items()))
    for field, value in given.items():
      if "." in field:
        _set(tree, field, value)
    config = config_lib.from_config_dict(tree)
    schedules.choose_slots(
      config.poison,
      steps=counts.run_steps(config, config.vocabulary.size),
      batch=config.train.batch,
      seed=config.seed_for("positions"),
    )
  except UserError as error:
    raise UserError(f"cell {words(settings)}: {error}") from None
  return Cell(config_lib.config_hash(config), dict(settings), config)


def _base(study: Study, arguments: str) -> config_dict.ConfigDict:
  """Returns the base config; one that fails is the user's mistake."""
  try:
    return study.base(arguments)
  except UserError:
    raise
  except Exception as error:
    reason = user_module.reason_and_place(error)
    raise UserError(f"the study's base config failed: {reason}") from error


def _set(tree: config_dict.ConfigDict, field: str, value) -> None:
  """Sets a field like "optimizer.learning_rate".

  Raises:
    UserError: there is no such field, or the value is of another type.
  """
  *groups, name = field.split(".")
  place = tree
  for group in groups:
    place = place.get(group)
    if not isinstance(place, config_dict.ConfigDict):
      break
  if not isinstance(place, config_dict.ConfigDict) or name not in place:
    known = config_lib.field_names()
    raise UserError(
      f"unknown axis {field!r}: no field of the configuration"
      f"{config_lib.nearest(field, known)}"
    )
  try:
    place[name] = value
  except TypeError as error:
    raise UserError(f"axis {field}={value!r}: {error}") from None
