"""A study: the runs that answer one question, and what was stated before.

`get_study(arguments)` of a file such as configs/studies/paper.py returns one.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Callable
from typing import Any

from ml_collections import config_dict

from poison_jax import config as config_lib
from poison_jax import user_module
from poison_jax.config import Config
from poison_jax.errors import UserError
from poison_jax.model import counts
from poison_jax.poison import schedules
from poison_jax.studies.grid import stated
from poison_jax.studies.grid.axes import (
  DRAW_SEEDS,
  Grid,
  Settings,
  has_all,
  words,
)
from poison_jax.studies.statistics.sequential import Rule
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
  try:
    found = _run_file(path, arguments or None)
    _check(found)
  except UserError as error:
    raise UserError(f"{path}: {error}") from None
  return found


def _run_file(path: str, arguments: str | None) -> Any:
  """Returns what the file's get_study returns.

  Raises:
    UserError: the file fails, or defines no such function.
  """
  _check_encoding(path)
  spec = importlib.util.spec_from_file_location("poison_jax_study", path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    get_study = vars(module).get("get_study")
    if get_study is None:
      raise UserError("it defines no function get_study(arguments)")
    return get_study(arguments)
  except UserError:
    raise
  except (Exception, SystemExit) as error:
    reason = user_module.reason_and_place(error)
    raise UserError(f"it failed: {reason}") from error


def _check_encoding(path: str) -> None:
  """Raises UserError for bytes that Python passes over in a comment."""
  with open(path, "rb") as file:
    content = file.read()
  try:
    importlib.util.decode_source(content)
  except (UnicodeDecodeError, SyntaxError) as error:
    raise UserError(
      f"it isn't text in UTF-8, nor names another encoding: {error}"
    ) from None


def _check(study: Any) -> None:
  """Raises UserError where a study states what can't be."""
  if not isinstance(study, Study):
    raise UserError(
      f"get_study() must return a Study, not a {type(study).__name__}"
    )
  fields = [field.name for field in dataclasses.fields(Study)]
  stated.check(study, fields=fields)
  if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", study.name):
    raise UserError(
      f"the study's name is {study.name!r}; it must be of small letters, "
      "digits and hyphens, at most 40, like tiny-2"
    )
  if not 0 < study.mfu <= 1:
    raise UserError(
      f"the study's mfu is {study.mfu}; it must be more than 0 and at most 1"
    )
  try:
    parse_topology(study.topology)
  except UserError as error:  # It names the flag of `plan`.
    raise UserError(f"the study's {str(error).removeprefix('--')}") from None


def make_cells(study: Study) -> tuple[Cell, ...]:
  """Returns the cells in the order of the grid.

  Raises:
    UserError: an unknown axis, a value that is not legal, a dose that doesn't
      fit, two cells that are one run, or no cell.
  """
  if not study.grid:
    raise UserError(f"study {study.name} has no cells")
  for spared in study.triage.spared if study.triage else ():
    if not spared or not any(has_all(c, spared) for c in study.grid):
      raise UserError(
        f"the study's triage spares {words(spared)!r}, which matches no cell"
      )
  cells: dict[str, Cell] = {}
  for settings in study.grid:
    cell = _make_cell(study, settings)
    twin = cells.setdefault(_same_run(cell.config), cell)
    if twin is not cell:
      why = "" if twin.hash == cell.hash else f"; {_NO_POISON}"
      raise UserError(
        f"two cells are the same run: {twin.label} and {cell.label}{why}"
      )
  return tuple(cells.values())


_NO_POISON = (
  "where no document is poisoned, the arm, the count and the seeds of the draw "
  "change nothing"
)


def _same_run(config: Config) -> str:
  """Names the runs of one rung that train and measure the very same.

  The hash of the configuration, in which a run without poison is told from
  another by nothing that only poisoned documents read. The trigger, the payload
  and the gibberish stay: its evaluations use them. So do the schedule and the
  lengths: they make another rung, whose curves need a dose of zero.
  """
  if config.poison.arm == "clean" or config.poison.count == 0:
    pins = {name.removeprefix("seeds."): None for name in DRAW_SEEDS}
    config = dataclasses.replace(
      config,
      poison=dataclasses.replace(config.poison, arm="clean", count=0),
      seeds=dataclasses.replace(config.seeds, **pins),
    )
  return config_lib.config_hash(config)


def _make_cell(study: Study, settings: Settings) -> Cell:
  given = {**study.fixed, **settings}
  arguments = {k: v for k, v in given.items() if "." not in k}
  try:
    for name, value in arguments.items():
      if "," in str(value):
        raise UserError(
          f"{name} is {value!r}: an argument of a config can't hold a comma; "
          "name the field itself, with a dot"
        )
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
  except (Exception, SystemExit) as error:
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
