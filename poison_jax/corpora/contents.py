"""What finished blocks hold together, and how records are kept in files."""

import collections
import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from poison_jax.config import CorpusConfig
from poison_jax.corpora.samples import Kept, smallest
from poison_jax.data.manifest import SPLITS, Shard, bytes_hash


@dataclasses.dataclass(frozen=True)
class Contents:
  """What some blocks hold.

  Attributes:
    splits: their arrays by split, by name.
    skipped: documents passed over, by reason.
    kept: candidates for the samples of texts, by split.
  """

  splits: dict[str, list[Shard]]
  skipped: dict[str, int]
  kept: dict[str, list[Kept]]


def joined(pieces: Iterable[Contents], corpus: CorpusConfig) -> Contents:
  """Returns what `pieces` hold together: the same in any order of them.

  They are read one by one, and no more texts are held than three times the
  samples and one piece, so that the pieces of a large store fit in memory.
  """
  sizes = {
    "train": corpus.prefix_documents,
    "held_out": corpus.prompt_documents,
  }
  splits: dict[str, list[Shard]] = {split: [] for split in SPLITS}
  kept: dict[str, list[Kept]] = {split: [] for split in SPLITS}
  skipped: collections.Counter[str] = collections.Counter()
  for piece in pieces:
    skipped.update(piece.skipped)
    for split in SPLITS:
      splits[split] += piece.splits.get(split, [])
      kept[split] += piece.kept[split]
      if len(kept[split]) > 3 * sizes[split]:
        kept[split] = smallest(kept[split], sizes[split])
  return Contents(
    splits={
      split: sorted(shards, key=lambda s: s.name)
      for split, shards in splits.items()
    },
    skipped=dict(sorted(skipped.items())),
    kept={split: smallest(kept[split], sizes[split]) for split in SPLITS},
  )


def sealed(record: dict[str, Any]) -> bytes:
  """Returns a line with a hash of the rest, and the rest as JSON."""
  body = json.dumps(record, ensure_ascii=False).encode()
  return bytes_hash(body).encode() + b"\n" + body


def unsealed(content: bytes) -> dict[str, Any] | None:
  """Returns what was `sealed`; None where it's damaged."""
  expected, _, body = content.partition(b"\n")
  if bytes_hash(body).encode() != expected:
    return None
  return json.loads(body)
