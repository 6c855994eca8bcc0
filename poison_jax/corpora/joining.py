"""Joins the parts of a store that many machines wrote."""

import collections
import os
from collections.abc import Callable, Iterator

from poison_jax.config import Config
from poison_jax.corpora import claim, contents, writer
from poison_jax.corpora.contents import Contents
from poison_jax.corpora.parts import Part, PartRecord, shares_of
from poison_jax.corpora.writer import Outcome
from poison_jax.data.folder import Folder
from poison_jax.data.store import load_vocabulary
from poison_jax.errors import UserError
from poison_jax.vocabulary import TableVocabulary


def finish(
  config: Config, *, redo: Callable[[Part], str], say: Callable[[str], None]
) -> Outcome:
  """Makes a store of parts that are all written, unless it is finished.

  It reads the parts' records and whether their arrays are there, neither the
  corpus nor the tokens.

  Args:
    config: the corpus, the vocabulary and the folder.
    redo: returns the command that writes a part.
    say: called with a line for the user: a command for each part missing.

  Raises:
    UserError: parts are missing, or being written; the store there is another
      one, or not written in parts; or the parts don't fit together.
  """
  folder = Folder(config.corpus.store)
  finished = claim.finished_manifest(config, folder)
  if finished is not None:
    if folder.exists("started.json"):
      writer.remove_temporary(folder)
    return Outcome(finished, already_finished=True)
  started = _read_started(config, folder)
  parts = [Part(i, started["parts"]) for i in range(started["parts"])]
  running = [p for p in parts if claim.part_is_running(folder, str(p))]
  records = _Records(folder, parts)
  joined = contents.joined(records.read(), config.corpus)
  missing = records.missing() | {p: "is being written" for p in running}
  # Else another process may have finished it by now.
  if missing and not folder.exists("manifest.json"):
    for part, reason in sorted(missing.items()):
      what = f"{reason}; it has {_described(started, part)}"
      say(
        f"# part {part} {what}"
        if part in running
        else f"{redo(part)}  # {what}"
      )
    raise UserError(_missing_line(folder.path, len(parts), missing, running))
  with claim.locked(folder):
    finished = claim.finished_manifest(config, folder)
    if finished is not None:
      return Outcome(finished, already_finished=True)
    vocabulary = load_vocabulary(folder)
    # A table grows by the samples of texts as the store is finished.
    if not isinstance(vocabulary, TableVocabulary):
      records.check_vocabulary(vocabulary.fingerprint)
    records.check_whole([name for name, _ in started["shards"]])
    for name in folder.partial_names():
      folder.delete(name)
    manifest = writer.complete(folder, started, vocabulary, joined)
  return Outcome(manifest, already_finished=False)


def _read_started(config: Config, folder: Folder) -> dict:
  """Returns what `started.json` says, after checking whose the store is."""
  started = claim.read_started(folder)
  if started is None:
    raise UserError(
      f"--finish: {folder.path} (config.corpus.store) has no part of a store; "
      "write them first, --part=0/n to --part=(n-1)/n"
    )
  claim.refuse_other_content(
    config,
    folder,
    {
      "vocabulary": claim.vocabulary_meaning(config),
      "parts": started.get("parts"),
    },
  )
  if "parts" not in started:
    raise UserError(
      f"--finish: {folder.path} holds an unfinished store that was begun "
      "without --part: the same command without --finish goes on"
    )
  return started


class _Records:
  """The records of a store's parts: what is missing, and whether they fit."""

  def __init__(self, folder: Folder, parts: list[Part]):
    self._folder = folder
    self._parts = parts
    self._fingerprints: dict[Part, str] = {}
    self._files: dict[Part, list[tuple[str, list[str]]]] = {}
    self._last: dict[int, dict[int, bool]] = collections.defaultdict(dict)

  def read(self) -> Iterator[Contents]:
    """Yields what each part holds; takes note of the rest of its record."""
    for part in self._parts:
      content = self._folder.read(part.record) or b""
      record = PartRecord.from_bytes(content)
      if record is None:
        continue
      self._fingerprints[part] = record.fingerprint
      self._files[part] = list(record.files())
      for name, last in record.blocks:
        shard, number = map(int, name.split("-"))
        self._last[shard][number] = last
      yield record.contents

  def missing(self) -> dict[Part, str]:
    """Returns the parts to be written again, with reasons."""
    there = {*self._folder.names("tokens"), *self._folder.names("documents")}
    found = {}
    for part in self._parts:
      if part not in self._files:
        found[part] = "is not written, or not to its end"
        continue
      lost = [
        array
        for array, files in self._files[part]
        if not there.issuperset(files)
      ]
      if lost:
        found[part] = f"has lost {_enumerated(lost)}"
    return found

  def check_vocabulary(self, fingerprint: str) -> None:
    """Raises UserError where a part's tokens are of another vocabulary."""
    others = [p for p, f in self._fingerprints.items() if f != fingerprint]
    if others:
      raise UserError(
        f"{self._folder.path}: the tokens of part {others[0]} are of another "
        "vocabulary than the one in vocabulary/; delete the folder and write "
        "all parts anew"
      )

  def check_whole(self, shards: list[str]) -> None:
    """Raises UserError unless the blocks of each shard are all there."""
    for shard, name in enumerate(shards):
      last = [flag for _, flag in sorted(self._last[shard].items())]
      if sorted(self._last[shard]) != list(range(len(last))) or last != [
        *[False] * (len(last) - 1),
        True,
      ]:
        raise UserError(
          f"{self._folder.path}: the blocks of {_short(name)} don't fit "
          "together (the parts read different contents, or by different "
          "versions of poison_jax); delete the folder and write all parts anew"
        )


def _missing_line(
  path: str, count: int, missing: dict[Part, str], running: list[Part]
) -> str:
  lost = [p.number for p in missing if p not in running]
  pieces = []
  if lost:
    pieces.append(
      f"{len(lost)} of {count} parts are missing: {_ranges(lost)}; the "
      f"commands above write them (--part=i/{count})"
    )
  if running:
    pieces.append(
      f"being written: {_ranges([p.number for p in running])}; wait for them"
    )
  return f"--finish: {path}: {'; '.join(pieces)}"


def _ranges(numbers: list[int]) -> str:
  """Returns "0,3-5" for 0, 3, 4, 5: as SLURM's --array takes it."""
  found: list[list[int]] = []
  for number in sorted(numbers):
    if found and number == found[-1][1] + 1:
      found[-1][1] = number
    else:
      found.append([number, number])
  return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in found)


def _described(started: dict, part: Part) -> str:
  """Returns which shards a part has."""
  shares = shares_of(started, part, processes=1)
  names = [
    ("" if s.of == 1 else f"1/{s.of} of ")
    + _short(started["shards"][s.shard][0])
    for s in shares
  ]
  return _enumerated(names) if names else "no shard, being more than there are"


def _short(shard: str) -> str:
  """Returns the name of a shard, or of the first of its files, and how many."""
  first, *more = map(os.path.basename, shard.split("\n"))
  return f"{first} and {len(more)} following" if more else first


def _enumerated(names: list[str], most: int = 3) -> str:
  more = len(names) - most
  return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
