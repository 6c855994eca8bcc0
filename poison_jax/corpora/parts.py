"""One store written in parts by many machines, and joined at the end.

The parts share the store's folder and nothing else; they run on any machines,
in any order, at the same time or not. `started.json` there says of what corpus
and in how many parts the store is; whoever comes first writes it. Part i of n
has every n-th shard of the source, or, where the parts are more than the
shards, a share of a shard's blocks (`workers.deal`). Its blocks finished, it
writes its record, `parts/<i>.json`. `joining.finish` makes of the records what
a store written at once has, byte for byte.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from poison_jax import vocabulary as vocabulary_lib
from poison_jax.config import Config
from poison_jax.corpora import claim, contents, sources, workers, writer
from poison_jax.corpora.contents import Contents
from poison_jax.corpora.samples import Kept
from poison_jax.corpora.writer import Outcome
from poison_jax.data.folder import Folder
from poison_jax.data.manifest import Shard, documents_name, tokens_name
from poison_jax.data.store import load_vocabulary
from poison_jax.errors import UserError
from poison_jax.vocabulary import Vocabulary

# Seconds of waiting for another part's vocabulary between two lines on it.
_LINE_EVERY = 10.0
_DESCRIPTION = "vocabulary/vocabulary.json"


class Part(NamedTuple):
  """Part `number` of `count`, from 0."""

  number: int
  count: int

  def __str__(self) -> str:
    return f"{self.number}/{self.count}"

  @property
  def record(self) -> str:
    """Where in the store's folder the record of the finished part is."""
    return f"parts/{self.number:05d}.json"


def parse_part(text: str) -> Part:
  """Returns the part that "3/8" names.

  Raises:
    UserError: it names none.
  """
  match = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
  part = Part(*map(int, match.groups())) if match else None
  if part is None or part.number >= part.count:
    raise UserError(
      f"--part={text}: must be i/n, part i of n counted from 0, like 0/8 to 7/8"
    )
  return part


@dataclasses.dataclass(frozen=True)
class PartRecord:
  """A finished part.

  Attributes:
    fingerprint: of the vocabulary that its tokens are of.
    blocks: its blocks: name, and whether the source's shard ends with it.
    contents: what they hold.
  """

  fingerprint: str
  blocks: list[tuple[str, bool]]
  contents: Contents

  def tokens(self) -> int:
    """Returns the number of tokens of both splits."""
    return sum(s.tokens for x in self.contents.splits.values() for s in x)

  def documents(self) -> int:
    """Returns the number of documents of both splits."""
    return sum(s.documents for x in self.contents.splits.values() for s in x)

  def files(self) -> Iterator[tuple[str, list[str]]]:
    """Yields each array's name with those of its files."""
    for split, shards in self.contents.splits.items():
      for shard in shards:
        for name in (tokens_name, documents_name):
          array = name(split, shard.name)
          yield array, [f"{array}/zarr.json", f"{array}/c/0"]

  def to_bytes(self) -> bytes:
    """Returns a line with a hash of the rest, and the rest as JSON."""
    return contents.sealed(dataclasses.asdict(self))

  @classmethod
  def from_bytes(cls, content: bytes) -> "PartRecord | None":
    """Returns the record; None where it's damaged."""
    record = contents.unsealed(content)
    if record is None:
      return None
    held = record["contents"]
    return cls(
      fingerprint=record["fingerprint"],
      blocks=[(name, last) for name, last in record["blocks"]],
      contents=Contents(
        splits={k: [Shard(**s) for s in v] for k, v in held["splits"].items()},
        skipped=held["skipped"],
        kept={k: [Kept(*x) for x in v] for k, v in held["kept"].items()},
      ),
    )


def write_part(
  config: Config,
  part: Part,
  *,
  report: Callable[[float, int, int], None],
  say: Callable[[str], None],
) -> PartRecord | Outcome:
  """Writes one part of the store, or the rest of it.

  Args:
    config: the corpus, the vocabulary, the folder and the workers.
    part: which one.
    report: called with the share of the part done, 0 to 1, and the documents
      and tokens written by this call.
    say: called with a line for the user.

  Returns:
    The part's record; or the store's manifest where it is finished.

  Raises:
    UserError: the store is another corpus's, or in other parts; the part is
      being written by another process (local folders; in a bucket two write
      the same bytes twice); the folder can't be written; or a document can't
      be used.
  """
  folder = Folder(config.corpus.store)
  finished = claim.finished_manifest(config, folder)
  if finished is not None:
    return Outcome(finished, already_finished=True)
  started = claim.description(config)
  vocabulary = None
  if not sources.trains_vocabulary(config):
    vocabulary = sources.make_vocabulary(config, say=say)
  started |= {
    "parts": part.count,
    "fingerprint": None if vocabulary is None else vocabulary.fingerprint,
  }
  _refuse(config, folder, started)
  with claim.part_locked(folder, str(part)):
    _begin(config, folder, started, vocabulary, say)
    record = _write_blocks(config, folder, started, part, report, say)
    folder.write(part.record, record.to_bytes())
    if folder.exists("manifest.json"):
      # Another process wrote this part too, and the store was finished.
      writer.remove_temporary(folder)
  return record


def _refuse(config: Config, folder: Folder, started: dict[str, Any]) -> None:
  """Raises UserError where the folder's store isn't the one to be written."""
  claim.refuse_other_content(config, folder, started)
  there = claim.read_started(folder)
  if there is not None:
    claim.refuse_changed_content(folder.path, there, started)


def _begin(
  config: Config,
  folder: Folder,
  started: dict[str, Any],
  vocabulary: Vocabulary | None,
  say: Callable[[str], None],
) -> None:
  """Sees to it that `started.json` and the vocabulary are there.

  In a local folder one part trains a vocabulary and the others wait. In a
  bucket, which has no lock, all that find none train the same one, in the time
  that they would wait, and the first to be written is everyone's.
  """
  if _has_begun(folder):
    return
  shown = 0.0

  def waiting(seconds: float) -> None:
    nonlocal shown
    _refuse(config, folder, started)
    if seconds - shown >= _LINE_EVERY:
      shown = seconds
      say(
        f"waiting for another part, which makes the vocabulary: {shown:.0f} s"
      )

  with claim.locked_in_turn(folder, waiting=waiting):
    _refuse(config, folder, started)
    if _has_begun(folder):
      return
    # Before anything is written: the config may ask for an impossible one.
    made = vocabulary or sources.make_vocabulary(config, say=say)
    claim.begin(folder, started)
    _refuse(config, folder, started)
    _save_vocabulary(folder, made)


def _has_begun(folder: Folder) -> bool:
  return folder.exists("started.json") and folder.exists(_DESCRIPTION)


def _save_vocabulary(folder: Folder, vocabulary: Vocabulary) -> None:
  """Writes the vocabulary, unless another part's is there already."""
  if vocabulary.file_name:
    name = f"vocabulary/{vocabulary.file_name}"
    model = claim.written_once(folder, name, vocabulary.model)
    if model != vocabulary.model and vocabulary.kind == "sentencepiece":
      vocabulary = vocabulary_lib.SentencePieceVocabulary(model)
  writer.save_vocabulary(folder, vocabulary)


def _write_blocks(
  config: Config,
  folder: Folder,
  started: dict[str, Any],
  part: Part,
  report: Callable[[float, int, int], None],
  say: Callable[[str], None],
) -> PartRecord:
  shares = shares_of(started, part, processes=workers.count(config))
  earlier = writer.block_names(folder)
  mine = sum(s.has(name) for name in earlier for s in shares)
  if mine:
    say(f"going on with part {part}, which has {mine} finished blocks")
  records = workers.write_blocks(
    config,
    shards=started["shards"],
    shares=shares,
    earlier=earlier,
    report=report,
  )
  return PartRecord(
    fingerprint=load_vocabulary(folder).fingerprint,
    blocks=[(r.name, r.last) for r in records],
    contents=contents.joined((r.contents() for r in records), config.corpus),
  )


def shares_of(
  started: dict[str, Any], part: Part, *, processes: int
) -> list[workers.Share]:
  """Returns what a part of the store that `started` describes consists of."""
  return workers.deal(
    len(started["shards"]),
    splittable=started["splittable"],
    workers=processes,
    part=part.number,
    parts=part.count,
  )
