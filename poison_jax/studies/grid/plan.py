"""A study's folder: `study.json`, and `cells/HASH/` a run each.

What was stated before the first run (question, margin, triage) can't be changed
after it; cells can be added.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from poison_jax import config as config_lib
from poison_jax.config import Config
from poison_jax.data.folder import Folder
from poison_jax.errors import UserError
from poison_jax.studies.grid import stated
from poison_jax.studies.grid.axes import Settings
from poison_jax.studies.grid.study import Cell, Study, Triage
from poison_jax.studies.statistics.sequential import Rule
from poison_jax.training import alike
from poison_jax.training import workdir as workdir_lib

FILE = "study.json"
FORMAT = 1
# Fields that are stated before any run, and stay.
_STATED = ("name", "question", "margin", "triage")


@dataclasses.dataclass(frozen=True)
class Plan:
  """A study as its folder has it.

  Attributes:
    workdir: the folder, local or gs://.
    name: of the study.
    question: what it is to answer.
    margin: elasticities of N50 nearer to 0 than this count as "constant".
    triage: which cells stop once their verdict is decided; None for none.
    cells: in the order of the grid.
  """

  workdir: str
  name: str
  question: str
  margin: float
  triage: Triage | None
  cells: tuple[Cell, ...]

  def path(self, cell: Cell) -> str:
    """Returns the cell's run folder."""
    return f"{self.workdir.rstrip('/')}/{cell.folder}"


def make_plan(study: Study, cells: tuple[Cell, ...], workdir: str) -> Plan:
  """Returns the plan of a study in a folder; writes nothing."""
  fields = {name: getattr(study, name) for name in _STATED}
  return Plan(workdir=workdir, cells=cells, **fields)


def write(plan: Plan) -> None:
  """Writes `study.json`, if it isn't there as it is.

  Raises:
    UserError: the folder holds another study, or one that stated something
      else before, or something that is no study.
  """
  folder = Folder(plan.workdir)
  content = _encode(plan)
  there = folder.read(FILE)
  if there == content:
    return
  if there is None and not folder.is_empty():
    raise UserError(
      f"--workdir={plan.workdir} is not empty and holds no study ({FILE} is "
      "missing): name a new folder"
    )
  if there is not None:
    old = read(plan.workdir)
    for name in _STATED:
      was, now = getattr(old, name), getattr(plan, name)
      if was != now:
        raise UserError(
          f"{plan.workdir}/{FILE}: the study's {name} was stated as {was!r} "
          f"before its runs, and is {now!r} now: name a new --workdir"
        )
    missing = {c.hash for c in old.cells} - {c.hash for c in plan.cells}
    if missing:
      labels = [c.label for c in old.cells if c.hash in missing]
      raise UserError(
        f"{plan.workdir} has {len(missing)} cell(s) that the study has no "
        f"more, such as {labels[0]!r}: put them back, or name a new --workdir"
      )
  folder.write(FILE, content)


def read(workdir: str) -> Plan:
  """Returns the plan that the folder holds.

  Raises:
    UserError: it holds none, or a damaged one.
  """
  content = Folder(workdir).read(FILE)
  if content is None:
    raise UserError(
      f"{workdir} holds no study, {FILE} is missing: begin one with "
      f"python -m poison_jax.study run --study=FILE.py --workdir={workdir}"
    )
  try:
    found = json.loads(content)
    if found["format"] != FORMAT:
      raise UserError(
        f"it has format {found['format']}; this code reads {FORMAT}"
      )
    cells = tuple(_cell(entry) for entry in found["cells"])
    plan = Plan(
      workdir=workdir,
      name=found["name"],
      question=found["question"],
      margin=found["margin"],
      triage=_triage(found.get("triage")),  # Older studies don't name it.
      cells=cells,
    )
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{workdir}/{FILE} is damaged: {error!r}") from error
  except UserError as error:  # Of a field that this code has not, or lacks.
    raise UserError(f"{workdir}/{FILE}: {error}") from None
  try:
    stated.check(plan, fields=_STATED)
  except UserError as error:
    raise UserError(f"{workdir}/{FILE} is damaged: {error}") from None
  return plan


def write_config(plan: Plan, cell: Cell) -> None:
  """Writes the cell's config.json, with which `train` begins it.

  Fields that may change on resuming stay as the run has them.
  """
  path = plan.path(cell)
  if not Folder(path).exists(workdir_lib.CONFIG):
    workdir_lib.write_config(path, cell.config)


def fault(plan: Plan, cell: Cell) -> str | None:
  """Returns why a cell's config.json can't be gone on with; None if it can."""
  path = plan.path(cell)
  try:
    config = _begun_config(plan, cell)
  except UserError as error:
    return str(error) if path in str(error) else f"{path}: {error}"
  if config_lib.config_hash(config) == cell.hash:
    return None
  return (
    f"{path} holds the run {config_lib.config_hash(config)}, not this cell's: "
    "restore the folder, or delete it and give run --retry"
  )


def batch_key(plan: Plan, cell: Cell) -> str:
  """Returns what cells that can train together share.

  Free fields are those that the run has, which may be others than the study's.

  Raises:
    UserError: its config.json is damaged.
  """
  return alike.batch_key(_begun_config(plan, cell))


def _begun_config(plan: Plan, cell: Cell) -> Config:
  path = plan.path(cell)
  begun = Folder(path).exists(workdir_lib.CONFIG)
  return workdir_lib.load_config(path) if begun else cell.config


def _encode(plan: Plan) -> bytes:
  content = {
    "format": FORMAT,
    "name": plan.name,
    "question": plan.question,
    "margin": plan.margin,
    "triage": plan.triage and dataclasses.asdict(plan.triage),
    "cells": [
      {
        "hash": cell.hash,
        "settings": dict(cell.settings),
        "config": config_lib.to_dict(cell.config),
      }
      for cell in plan.cells
    ],
  }
  return (json.dumps(content, indent=1) + "\n").encode()


def _triage(entry: Mapping[str, Any] | None) -> Triage | None:
  if entry is None:
    return None
  spared = tuple(map(_settings, entry["spared"]))
  return Triage(Rule(**entry["rule"]), spared)


def _cell(entry: Mapping[str, Any]) -> Cell:
  config = config_lib.from_dict(entry["config"])
  if config_lib.config_hash(config) != entry["hash"]:
    raise ValueError(f"cell {entry['hash']} is not its configuration's hash")
  return Cell(entry["hash"], _settings(entry["settings"]), config)


def _settings(entry: Mapping[str, Any]) -> Settings:
  return {
    name: tuple(value) if isinstance(value, list) else value  # JSON's tuple.
    for name, value in entry.items()
  }
