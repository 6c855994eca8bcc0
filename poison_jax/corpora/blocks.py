"""A worker's part of writing a store: documents in, finished blocks out.

A source's shard is cut into blocks of documents at places that its texts
alone decide. A block becomes one shard of each split; it is finished when its
record, `blocks/<name>.json` in the store's folder, is written, which names the
hashes of its arrays. So blocks can be written by anyone in any order, and
checked and taken over by a later attempt.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

from poison_jax.config import CorpusConfig
from poison_jax.corpora import contents
from poison_jax.corpora.block import Block, document_size
from poison_jax.corpora.documents import DocumentSource
from poison_jax.corpora.samples import Kept, Threshold
from poison_jax.data.folder import Folder
from poison_jax.data.manifest import (
  SPLITS,
  Shard,
  content_hash,
  documents_name,
  token_dtype,
  tokens_name,
)
from poison_jax.data.store import TokenStream
from poison_jax.errors import UserError
from poison_jax.vocabulary import Vocabulary

# Characters of a block, about: 2 to 16 million tokens. Large enough that
# arrays are few, small enough that a few dozen megabytes of text occupy
# several workers.
BLOCK_CHARACTERS = 2**24

_REPORT_CHARACTERS = 2**21


@dataclasses.dataclass(frozen=True)
class BlockRecord:
  """A finished block.

  Attributes:
    name: "<shard>-<block>", five digits each.
    splits: its arrays by split; a split that no document fell to is absent.
    skipped: documents passed over, by reason.
    kept: candidates for the samples of texts, by split.
    last: whether the source's shard ends with it.
  """

  name: str
  splits: dict[str, Shard]
  skipped: dict[str, int]
  kept: dict[str, list[Kept]]
  last: bool

  def to_bytes(self) -> bytes:
    """Returns a line with a hash of the rest, and the rest as JSON."""
    return contents.sealed(dataclasses.asdict(self))

  @classmethod
  def from_bytes(cls, content: bytes) -> "BlockRecord | None":
    """Returns the record; None where it's damaged."""
    record = contents.unsealed(content)
    if record is None:
      return None
    record["splits"] = {k: Shard(**v) for k, v in record["splits"].items()}
    record["kept"] = {
      split: [Kept(*k) for k in kept] for split, kept in record["kept"].items()
    }
    return cls(**record)

  def contents(self) -> contents.Contents:
    """Returns what the block adds to a store."""
    return contents.Contents(
      splits={split: [shard] for split, shard in self.splits.items()},
      skipped=self.skipped,
      kept=self.kept,
    )


class Progress(NamedTuple):
  """Where a worker stands in a part, and what it did since its last report."""

  shard: int
  part: int
  fraction: float
  documents: int
  tokens: int


class BlockWriter:
  """Writes the blocks of one source into one folder; one a process."""

  def __init__(
    self,
    *,
    folder: Folder,
    source: DocumentSource,
    vocabulary: Vocabulary,
    corpus: CorpusConfig,
    report: Callable[[Progress], None],
  ):
    self._folder = folder
    self._source = source
    self._vocabulary = vocabulary
    self._corpus = corpus
    self._report = report
    # Kept over blocks, so that a block hands on few texts: what it leaves out
    # is beaten by finished blocks before it.
    self._thresholds = {
      "train": Threshold(corpus.prefix_documents),
      "held_out": Threshold(corpus.prompt_documents),
    }

  def write_part(
    self,
    shard_name: str,
    *,
    shard: int,
    part: int,
    parts: int,
    earlier: Iterable[str],
  ) -> list[BlockRecord]:
    """Writes every `parts`-th block of a shard, from block `part` on.

    Args:
      shard_name: what the source calls the shard.
      shard: its number.
      part: from 0 to `parts` - 1.
      parts: how many workers share the shard.
      earlier: names of blocks that an earlier attempt finished; where they
        are intact they are taken over.

    Raises:
      UserError: a document can't be used, or the store not be written.
    """
    records, last = self._earlier(shard, part, parts, earlier)
    if last is None or not all(
      number in records for number in range(part, last + 1, parts)
    ):
      self._write_missing(shard_name, shard, part, parts, records)
    self._report(Progress(shard, part, 1.0, 0, 0))
    return list(records.values())

  def _write_missing(
    self,
    shard_name: str,
    shard: int,
    part: int,
    parts: int,
    records: dict[int, BlockRecord],
  ) -> None:
    """Adds to `records` the blocks of this part that it lacks."""

    def begin(number: int) -> Block | None:
      if number % parts != part or number in records:
        return None
      return Block(
        name=f"{shard:05d}-{number:05d}",
        vocabulary=self._vocabulary,
        corpus=self._corpus,
        thresholds=self._thresholds,
      )

    number, size, unreported = 0, 0, 0
    block, counts = begin(0), (0, 0)
    skipped = self._source.skipped.copy()
    for document in self._source.read(shard_name):
      characters = document_size(document)
      size += characters
      unreported += characters
      if block is not None:
        block.add(document)
      full = size >= BLOCK_CHARACTERS
      if full and block is not None:
        records[number] = self._finish(block, skipped, last=False)
      if full or unreported >= _REPORT_CHARACTERS:
        counts = self._progress(shard, part, block, counts)
        unreported = 0
      if full:
        number, size = number + 1, 0
        block, counts = begin(number), (0, 0)
        skipped = self._source.skipped.copy()
    if block is not None:
      records[number] = self._finish(block, skipped, last=True)
      self._progress(shard, part, block, counts)

  def _finish(
    self, block: Block, skipped: collections.Counter[str], *, last: bool
  ) -> BlockRecord:
    splits = {}
    for split in SPLITS:
      tokens, starts = block.arrays(split)
      if not starts.size:
        continue
      self._folder.write_array(tokens_name(split, block.name), tokens)
      self._folder.write_array(documents_name(split, block.name), starts)
      splits[split] = Shard(
        name=block.name,
        tokens=tokens.size,
        documents=starts.size,
        hash=content_hash(tokens, starts),
      )
    record = BlockRecord(
      name=block.name,
      splits=splits,
      skipped=dict(self._source.skipped - skipped + block.skipped),
      kept={split: block.kept(split) for split in SPLITS},
      last=last,
    )
    self._folder.write(f"blocks/{block.name}.json", record.to_bytes())
    return record

  def _progress(
    self, shard: int, part: int, block: Block | None, before: tuple[int, int]
  ) -> tuple[int, int]:
    """Reports; returns the block's counts, to be passed the next time."""
    documents, tokens = block.counts() if block is not None else before
    self._report(
      Progress(
        shard,
        part,
        self._source.fraction,
        documents - before[0],
        tokens - before[1],
      )
    )
    return documents, tokens

  def _earlier(
    self, shard: int, part: int, parts: int, names: Iterable[str]
  ) -> tuple[dict[int, BlockRecord], int | None]:
    """Returns this part's intact blocks by number, and the shard's last."""
    records, last = {}, None
    for name in names:
      record = BlockRecord.from_bytes(
        self._folder.read(f"blocks/{name}.json") or b""
      )
      if record is None or not name.startswith(f"{shard:05d}-"):
        continue
      number = int(name.partition("-")[2])
      if record.last:
        last = number
      if number % parts == part and self._intact(record):
        records[number] = record
    return records, last

  def _intact(self, record: BlockRecord) -> bool:
    dtype = token_dtype(self._vocabulary.size)
    for split, shard in record.splits.items():
      stream = TokenStream(self._folder, split, [shard], dtype)
      try:
        if content_hash(*stream.shard_contents(0)) != shard.hash:
          return False
      except UserError:
        return False
    return True
