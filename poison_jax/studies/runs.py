"""A run's folder read into plain arrays: what a report can be made of.

A run that goes on, stopped early or lost files is read as far as it got; what
is missing is said in `Run.notes`. Only what can't be trusted is an error.
"""

import dataclasses
import json
import os
import reprlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from poison_jax import config as config_lib
from poison_jax.config import Config
from poison_jax.data.folder import Folder
from poison_jax.errors import UserError
from poison_jax.evaluation.prompts import KINDS
from poison_jax.poison import ledger as ledger_lib
from poison_jax.training import workdir
from poison_jax.training.metrics import (
  GENERATIONS,
  METRICS,
  damaged,
  part_names,
)


@dataclasses.dataclass(frozen=True)
class Series:
  """One metric over a run: int64 [n] rising steps, float64 [n] values."""

  steps: np.ndarray
  values: np.ndarray

  def at(self, step: int) -> float | None:
    """Returns the value at this very step, or None."""
    i = int(np.searchsorted(self.steps, step))
    if i < len(self.steps) and self.steps[i] == step:
      return float(self.values[i])
    return None


@dataclasses.dataclass(frozen=True)
class Text:
  """One generation kept as text: what was read, and what came."""

  excerpt: str
  trigger: str
  text: str


@dataclasses.dataclass(frozen=True)
class Generations:
  """What one kind of prompt gave at one evaluation, by prompt number.

  Attributes:
    perplexity_P: float64, perplexity of each generation.
    documents: the held-out document of each prompt.
    texts: the generations that were kept as text, by prompt number.
  """

  perplexity_P: np.ndarray
  documents: tuple[str, ...]
  texts: Mapping[int, Text]


@dataclasses.dataclass(frozen=True)
class Ledger:
  """What the plan of a run laid over its rows.

  Attributes:
    hash: names the ledger, rows and metadata.
    plan_hash: names the content of every batch.
    store_hash: names the token store.
    steps: of the run that it plans.
    poisons: poisoned documents.
    tokens: their tokens, each document's end included.
  """

  hash: str
  plan_hash: str
  store_hash: str
  steps: int
  poisons: int
  tokens: int


@dataclasses.dataclass(frozen=True)
class Run:
  """All that a report knows of a run.

  Attributes:
    path: the folder, as the user wrote it.
    name: short and unique among the runs read together.
    config: its configuration.
    config_hash: names the configuration.
    code_version: names the code that made the run; of several that did, each,
      with a space between.
    command: starts or continues the run.
    steps: planned ones; None where neither config nor ledger tells yet.
    ledger: None where it is not written yet.
    metrics: by key.
    generations: by (step, kind).
    notes: a sentence for each thing that is missing or was passed over.
  """

  path: str
  name: str
  config: Config
  config_hash: str
  code_version: str
  command: str
  steps: int | None
  ledger: Ledger | None
  metrics: Mapping[str, Series]
  generations: Mapping[tuple[int, str], Generations]
  notes: tuple[str, ...]

  @property
  def poison_share(self) -> float | None:
    """Share of the planned tokens that are poison, 0 to 1."""
    if self.ledger is None or self.steps is None:
      return None
    train = self.config.train
    return self.ledger.tokens / (self.steps * train.batch * train.length)

  @property
  def last_step(self) -> int | None:
    """The last step of which any metric tells."""
    return max(
      (int(series.steps[-1]) for series in self.metrics.values()), default=None
    )

  @property
  def evaluated_step(self) -> int | None:
    """The last step at which triggered and clean were both measured."""
    keys = ("eval/clean/perplexity", "eval/triggered/perplexity")
    if any(key not in self.metrics for key in keys):
      return None
    both = np.intersect1d(*(self.metrics[key].steps for key in keys))
    return int(both[-1]) if len(both) else None


def read_runs(paths: Sequence[str]) -> list[Run]:
  """Reads run folders, and names them by what tells them apart.

  Raises:
    UserError: no run, one named twice, not a run's folder, or damaged files.
  """
  if not paths:
    raise UserError("no run given; name one or more run folders")
  seen = {}
  for path in paths:
    real = Folder(path).real_path()
    if real in seen:
      raise UserError(f"{path} is the run {seen[real]} again; name it once")
    seen[real] = path
  runs = [read_run(path) for path in paths]
  names = _names(runs)
  return [
    dataclasses.replace(run, name=name)
    for run, name in zip(runs, names, strict=True)
  ]


def read_run(path: str) -> Run:
  """Reads one run's folder; its name is the folder's.

  Raises:
    UserError: not a run's folder, or damaged files.
  """
  folder = Folder(path)
  config = workdir.load_config(path)
  notes: list[str] = []
  metrics = _read_metrics(folder, notes)
  generations = _read_generations(folder, notes)
  ledger = _read_ledger(folder, notes)
  return Run(
    path=path,
    name=os.path.basename(folder.real_path()),
    config=config,
    config_hash=config_lib.config_hash(config),
    code_version=_read_code_version(folder),
    command=f"python -m poison_jax.train --workdir={shlex.quote(path)}",
    steps=config.train.steps or (ledger.steps if ledger else None),
    ledger=ledger,
    metrics=metrics,
    generations=generations,
    notes=tuple(notes),
  )


def are_twins(one: Run, other: Run) -> bool:
  """Says whether two runs differ in `poison.arm` and in nothing that counts."""
  changes = config_lib.changes_of_meaning(one.config, other.config)
  return [change.split(":")[0] for change in changes] == ["poison.arm"]


def _names(runs: Sequence[Run]) -> list[str]:
  """Returns the arms where they differ, else folder names, else paths."""
  for names in (
    [run.config.poison.arm for run in runs],
    [run.name for run in runs],
  ):
    if len(set(names)) == len(runs):
      return names
  return [run.path for run in runs]


def _read_code_version(folder: Folder) -> str:
  content = json.loads(folder.read(workdir.CONFIG) or b"{}")
  version = content.get("code_version")
  if not isinstance(version, str):
    raise UserError(
      f"{folder.path}/{workdir.CONFIG} is damaged: it names no code_version"
    )
  return version


def _read_ledger(folder: Folder, notes: list[str]) -> Ledger | None:
  if not folder.exists(ledger_lib.FILE):
    notes.append("it has no ledger yet")
    return None
  table = workdir.read_ledger(folder.path)
  metadata = ledger_lib.read_metadata(table)
  return Ledger(
    hash=ledger_lib.ledger_hash(table),
    plan_hash=metadata["plan_hash"],
    store_hash=metadata["store_hash"],
    steps=int(metadata["steps"]),
    poisons=table.num_rows,
    tokens=int(np.sum(table["tokens"].to_numpy(), dtype=np.int64)),
  )


def _lines(
  folder: Folder, name: str, notes: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (file:line, object) for each line with a step.

  A run that was killed, or writes just now, may leave half a last line: that
  one is passed over with a note.
  """
  parts = part_names(folder, name)
  if not parts:
    notes.append(f"it has no {name} yet")
  for part in parts:
    lines = (folder.read(part) or b"").split(b"\n")
    if lines[-1] == b"":
      lines.pop()
    for number, line in enumerate(lines, start=1):
      where = f"{folder.path}/{part}:{number}"
      try:
        entry = json.loads(line)
        if not isinstance(entry, dict) or not _is_step(entry["step"]):
          raise ValueError("not an object with a step")
      except (ValueError, KeyError, RecursionError) as error:
        if part == parts[-1] and number == len(lines):
          notes.append(
            f"the last line of its {part} is broken and was passed over"
          )
          return
        raise UserError(damaged(where, error)) from None
      yield where, entry


def _is_step(value: Any) -> bool:
  return type(value) is int and 0 <= value < 2**63  # As int64 holds it.


def _is_finite(value: Any) -> bool:
  """Says whether JSON's value is a number of which there is a float."""
  return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _read_metrics(folder: Folder, notes: list[str]) -> dict[str, Series]:
  points: dict[str, dict[int, float]] = {}
  for where, entry in _lines(folder, METRICS, notes):
    step = entry.pop("step")
    for key, value in entry.items():
      if value is None:
        continue  # Not defined at this step, as the room share at step 0.
      if not _is_finite(value):
        raise UserError(
          f"{where} is damaged: {key} is {reprlib.repr(value)}; not a finite "
          "number"
        )
      series = points.setdefault(key, {})
      if step in series:
        raise UserError(
          f"{where} is damaged: it gives {key} at step {step} again"
        )
      series[step] = float(value)
  return {
    key: Series(
      np.array(sorted(series), np.int64),
      np.array([series[step] for step in sorted(series)], np.float64),
    )
    for key, series in points.items()
  }


# What each field of a generation's line must be.
_OF_GENERATION = {
  "prompt": _is_step,  # A number from 0 as well.
  "kind": lambda value: isinstance(value, str),
  "document": lambda value: isinstance(value, str),
  "perplexity": _is_finite,
}


def _read_generations(
  folder: Folder, notes: list[str]
) -> dict[tuple[int, str], Generations]:
  found: dict[tuple[int, str], dict[int, dict[str, Any]]] = {}
  for where, entry in _lines(folder, GENERATIONS, notes):
    for name, is_right in _OF_GENERATION.items():
      if not is_right(entry.get(name)):
        raise UserError(
          f"{where} is damaged: its {name} is {reprlib.repr(entry.get(name))}"
        )
    if "text" in entry and not all(
      isinstance(entry.get(name), str)
      for name in ("excerpt", "trigger", "text")
    ):
      raise UserError(
        f"{where} is damaged: a generation that is kept needs its excerpt, "
        "trigger and text"
      )
    if entry["kind"] in KINDS:
      key = entry["step"], entry["kind"]
      found.setdefault(key, {})[entry["prompt"]] = entry
  return {key: _generations(found[key]) for key in found}


def _generations(entries: Mapping[int, Mapping[str, Any]]) -> Generations:
  ordered = sorted(entries)
  return Generations(
    perplexity_P=np.array([entries[p]["perplexity"] for p in ordered], float),
    documents=tuple(entries[p]["document"] for p in ordered),
    texts={
      p: Text(e["excerpt"], e["trigger"], e["text"])
      for p, e in ((p, entries[p]) for p in ordered)
      if "text" in e
    },
  )
