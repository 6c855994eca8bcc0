"""The token store: a corpus as tokens, read by row number.

A store is a folder, local or in a bucket:

  manifest.json            what it was made of, shards, counts, hashes; it is
                           written last: a folder without it is unfinished
  vocabulary/              the files of the vocabulary
  tokens/train-....zarr    a shard's documents, each ended by EOS, no BOS
  documents/train-....zarr where in the shard each document begins, int64
  prefix_documents.jsonl   {"id", "text"} of a sample of training documents
  prompt_documents.jsonl   likewise of held-out documents

and the same arrays for the split "held_out". A split's shards, joined in the
manifest's order, are one long stream; row i at length L is its slice
[i * L, (i + 1) * L), so that one store serves every length.
"""

import functools
import json
import os
import tempfile
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from poison_jax import vocabulary as vocabulary_lib
from poison_jax.config import VocabularyConfig
from poison_jax.data.bucket import one_line_errors
from poison_jax.data.folder import Folder
from poison_jax.data.manifest import (
  SPLITS,
  Shard,
  bytes_hash,
  check_vocabulary,
  content_hash,
  documents_name,
  read_manifest,
  tokens_name,
)
from poison_jax.errors import CheckFailed, UserError

# Open arrays a stream: far below the 65,530 memory maps that Linux allows.
_OPEN_ARRAYS = 8192


class Document(NamedTuple):
  """A document before tokenisation."""

  id: str
  text: str


class TokenStream:
  """One split of a store, its shards joined."""

  def __init__(
    self, folder: Folder, split: str, shards: list[Shard], dtype: str
  ):
    self.split = split
    self.shards = shards
    self.tokens = sum(s.tokens for s in shards)
    self.documents = sum(s.documents for s in shards)
    self._folder = folder
    self._dtype = dtype
    self._ends = np.cumsum([s.tokens for s in shards], dtype=np.int64)
    # Bounded, since a store may have more shards than a process may map.
    self._tokens = functools.lru_cache(_OPEN_ARRAYS)(self._open_tokens)
    self._starts = functools.lru_cache(_OPEN_ARRAYS)(self._open_starts)

  def row_count(self, length: int) -> int:
    """Returns how many whole rows of `length` tokens the split has."""
    return self.tokens // length

  def rows(self, rows_B: np.ndarray, length: int) -> np.ndarray:
    """Returns int32 [B, L]: for each number i the tokens [i * L, (i + 1) * L).

    Raises:
      IndexError: a row lies outside the split.
      UserError: an array is missing or damaged.
    """
    rows_B = np.asarray(rows_B, np.int64)
    if rows_B.size and not (
      rows_B.min() >= 0 and rows_B.max() < self.row_count(length)
    ):
      raise IndexError(
        f"rows must be in [0, {self.row_count(length)}), got {rows_B}"
      )
    tokens_BL = np.empty((rows_B.size, length), np.int32)
    starts_B = rows_B * length
    shards_B = np.searchsorted(self._ends, starts_B, side="right")
    pending = []
    for k, (start, shard) in enumerate(
      zip(starts_B.tolist(), shards_B.tolist(), strict=True)
    ):
      filled = 0
      while filled < length:
        array = self._tokens(shard)
        begin = start + filled - self._offset(shard)
        size = min(length - filled, array.shape[0] - begin)
        piece = array[begin : begin + size]
        if isinstance(array, np.ndarray):
          tokens_BL[k, filled : filled + size] = piece
        else:
          pending.append((k, filled, size, piece.read()))
        filled += size
        shard += 1
    for k, filled, size, future in pending:
      with one_line_errors(self._folder.path):
        tokens_BL[k, filled : filled + size] = future.result()
    return tokens_BL

  def document_starts(self, row: int, length: int) -> np.ndarray:
    """Returns int64, sorted: the offsets in row `row` where documents begin."""
    begin, end = row * length, (row + 1) * length
    found = []
    shard = int(np.searchsorted(self._ends, begin, side="right"))
    while shard < len(self.shards) and self._offset(shard) < end:
      starts = self._starts(shard)
      offset = self._offset(shard)
      low, high = np.searchsorted(starts, (begin - offset, end - offset))
      found.append(starts[low:high] + (offset - begin))
      shard += 1
    return np.concatenate(found) if found else np.empty(0, np.int64)

  def shard_contents(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a shard's tokens and where its documents begin."""
    return self._whole(self._tokens(shard)), self._starts(shard)

  def _whole(self, array: np.ndarray | ts.TensorStore) -> np.ndarray:
    if isinstance(array, np.ndarray):
      return array
    with one_line_errors(self._folder.path):
      return array.read().result()

  def _offset(self, shard: int) -> int:
    return int(self._ends[shard]) - self.shards[shard].tokens

  def _open_tokens(self, shard: int) -> np.ndarray | ts.TensorStore:
    s = self.shards[shard]
    return self._folder.open_array(
      tokens_name(self.split, s.name), size=s.tokens, dtype=self._dtype
    )

  def _open_starts(self, shard: int) -> np.ndarray:
    s = self.shards[shard]
    array = self._folder.open_array(
      documents_name(self.split, s.name), size=s.documents, dtype="int64"
    )
    return self._whole(array)


class TokenStore:
  """A finished store.

  Attributes:
    path: its folder.
    hash: 16 hex digits over every token, kept text and the vocabulary.
    train, held_out: its two splits.
  """

  def __init__(self, path: str, manifest: dict[str, Any]):
    self.path = path
    self.manifest = manifest
    self.hash: str = manifest["hash"]
    self._folder = Folder(path)
    self.train, self.held_out = (
      TokenStream(
        self._folder,
        split,
        [Shard(**s) for s in manifest["splits"][split]],
        manifest["dtype"],
      )
      for split in SPLITS
    )

  @functools.cached_property
  def vocabulary(self) -> vocabulary_lib.Vocabulary:
    """The vocabulary that the tokens are of."""
    loaded = load_vocabulary(self._folder)
    expected = self.manifest["vocabulary"]["fingerprint"]
    if loaded.fingerprint != expected:
      raise UserError(
        f"{self.path}/vocabulary has fingerprint {loaded.fingerprint[:16]}, "
        f"the store's tokens are of {expected[:16]}: the store is damaged; "
        "delete it and prepare again"
      )
    return loaded

  def prefix_documents(self) -> list[Document]:
    """Returns the training documents kept as text, in a fixed order."""
    return self._documents("prefix_documents")

  def prompt_documents(self) -> list[Document]:
    """Returns the held-out documents kept as text, in a fixed order."""
    return self._documents("prompt_documents")

  def verify_contents(self) -> None:
    """Reads and hashes everything.

    Raises:
      CheckFailed: some content isn't what the manifest says, naming it.
    """
    for stream in (self.train, self.held_out):
      for i, shard in enumerate(stream.shards):
        try:
          found = content_hash(*stream.shard_contents(i))
        except UserError as error:
          raise CheckFailed(str(error)) from error
        if found != shard.hash:
          raise CheckFailed(
            f"{self.path}: tokens of shard {stream.split}-{shard.name} have "
            f"hash {found}, the manifest says {shard.hash}"
          )
    for name, expected in self.manifest["texts"].items():
      content = self._folder.read(f"{name}.jsonl") or b""
      if bytes_hash(content) != expected["hash"]:
        raise CheckFailed(f"{self.path}/{name}.jsonl is damaged")

  def _documents(self, name: str) -> list[Document]:
    content = self._folder.read(f"{name}.jsonl")
    if (
      content is None
      or bytes_hash(content) != self.manifest["texts"][name]["hash"]
    ):
      raise UserError(
        f"{self.path}/{name}.jsonl is missing or damaged; delete the store "
        "and prepare again"
      )
    return [Document(**json.loads(line)) for line in content.splitlines()]


def open_store(path: str, *, vocabulary: VocabularyConfig | None) -> TokenStore:
  """Returns the finished store at `path`.

  Args:
    path: local folder or gs:// URL.
    vocabulary: checked against the store's unless None.

  Raises:
    UserError: no store is there, it is unfinished, or of another vocabulary.
  """
  manifest = read_manifest(Folder(path))
  if manifest is None:
    unfinished = Folder(path).read("started.json") is not None
    what = "is unfinished" if unfinished else "is not there"
    raise UserError(
      f"token store {path} (config.corpus.store) {what}; "
      "run python -m poison_jax.prepare with the same --config"
    )
  if vocabulary is not None:
    check_vocabulary(path, manifest["vocabulary"], vocabulary)
  return TokenStore(path, manifest)


def load_vocabulary(folder: Folder) -> vocabulary_lib.Vocabulary:
  """Returns the vocabulary in a store's folder.

  Raises:
    UserError: it is missing or damaged.
  """
  if folder.local:
    return vocabulary_lib.load(os.path.join(folder.path, "vocabulary"))
  bucket = Folder(f"{folder.path}/vocabulary")
  with tempfile.TemporaryDirectory() as copy:
    for name in bucket.names():
      Folder(copy).write(name, bucket.read(name) or b"")
    return vocabulary_lib.load(copy)
