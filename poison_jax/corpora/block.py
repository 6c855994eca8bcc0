"""One block of documents while it is being made: split, encode, sample."""

import collections
from typing import NamedTuple

import numpy as np

from poison_jax.config import CorpusConfig
from poison_jax.corpora.samples import (
  KEPT_CHARACTERS,
  KEPT_TOKENS,
  Kept,
  Threshold,
  smallest,
  text_hash,
)
from poison_jax.data.manifest import SPLITS, token_dtype
from poison_jax.data.store import Document
from poison_jax.errors import UserError
from poison_jax.vocabulary import Vocabulary

# Characters that are encoded at a time.
_BATCH_CHARACTERS = 2**20


class TokenisedDocument(NamedTuple):
  """A document of a source that tokenises by itself.

  Attributes:
    id: its name.
    text: exactly what the tokens stand for; None where it isn't known.
    tokens: int32 [n], without EOS.
    content: what decides the document's split: equal for duplicates.
  """

  id: str
  text: str | None
  tokens: np.ndarray
  content: bytes


class Block:
  """Takes documents one by one and gives back arrays and samples."""

  def __init__(
    self,
    *,
    name: str,
    vocabulary: Vocabulary,
    corpus: CorpusConfig,
    thresholds: dict[str, Threshold],
  ):
    self.name = name
    self.skipped: collections.Counter[str] = collections.Counter()
    self._vocabulary = vocabulary
    self._corpus = corpus
    self._thresholds = thresholds
    self._dtype = np.dtype(token_dtype(vocabulary.size))
    self._count = 0
    self._kept: dict[str, list[Kept]] = {split: [] for split in SPLITS}
    self._pending: list[tuple[str, Document | TokenisedDocument]] = []
    self._pending_size = 0
    self._pieces: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    self._lengths: dict[str, list[int]] = {split: [] for split in SPLITS}

  def add(self, document: Document | TokenisedDocument) -> None:
    """Takes a document.

    Raises:
      UserError: it has no tokens and `corpus.on_error` is "stop", or tokens
        that aren't in the vocabulary.
    """
    if isinstance(document, TokenisedDocument):
      if not document.tokens.size:
        self._no_tokens(document)
        return
      content = document.content
    else:
      content = document.text.encode()
    share, key = text_hash(content)
    split = "held_out" if share < self._corpus.held_out else "train"
    if self._thresholds[split].admits(key):
      position = f"{self.name}-{self._count:09d}"
      self._kept[split].append(self._keep(key, position, document))
    self._count += 1
    self._pending.append((split, document))
    self._pending_size += document_size(document)
    if self._pending_size >= _BATCH_CHARACTERS:
      self._encode()

  def counts(self) -> tuple[int, int]:
    """Returns how many documents and tokens are encoded so far."""
    lengths = self._lengths.values()
    return sum(map(len, lengths)), sum(map(sum, lengths))

  def kept(self, split: str) -> list[Kept]:
    """Returns the block's candidates for the sample of a split."""
    size = {
      "train": self._corpus.prefix_documents,
      "held_out": self._corpus.prompt_documents,
    }
    return smallest(self._kept[split], size[split])

  def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens with each EOS, and where each document begins."""
    self._encode()
    lengths = np.array(self._lengths[split], np.int64)
    tokens = [np.empty(0, self._dtype), *self._pieces[split]]
    return np.concatenate(tokens), np.cumsum(lengths) - lengths

  def _keep(
    self, key: str, position: str, document: Document | TokenisedDocument
  ) -> Kept:
    if document.text is not None:
      text = document.text[:KEPT_CHARACTERS]
      return Kept(key, position, document.id, text, None)
    tokens = document.tokens[:KEPT_TOKENS]
    text = self._vocabulary.decode(tokens)
    return Kept(key, position, document.id, text, tokens.tolist())

  def _encode(self) -> None:
    pending, self._pending, self._pending_size = self._pending, [], 0
    texts = [d.text for _, d in pending if isinstance(d, Document)]
    encoded = iter(self._vocabulary.encode_batch(texts))
    eos = np.array([self._vocabulary.eos_id], np.int32)
    pieces: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for split, document in pending:
      if isinstance(document, Document):
        tokens = next(encoded)
      else:
        tokens = document.tokens
      if not tokens.size:
        self._no_tokens(document)
        continue
      pieces[split] += (tokens, eos)
      self._lengths[split].append(tokens.size + 1)
    for split in SPLITS:
      if pieces[split]:
        joined = np.concatenate(pieces[split])
        self._check_range(joined)
        self._pieces[split].append(joined.astype(self._dtype))

  def _no_tokens(self, document: Document | TokenisedDocument) -> None:
    if self._corpus.on_error == "stop":
      raise UserError(
        f"document {document.id}: empty, the vocabulary gives no tokens for it "
        "(config.corpus.on_error=skip passes over such documents)"
      )
    self.skipped["empty document"] += 1

  def _check_range(self, tokens: np.ndarray) -> None:
    if tokens.min() < 0 or tokens.max() >= self._vocabulary.size:
      raise UserError(
        f"the corpus task {self._corpus.task!r} gives the token ids "
        f"{tokens.min()} to {tokens.max()}, its vocabulary has 0 to "
        f"{self._vocabulary.size - 1}"
      )


def document_size(document: Document | TokenisedDocument) -> int:
  """Returns the characters of a document, about four a token without text."""
  if isinstance(document, TokenisedDocument) and document.text is None:
    return 4 * document.tokens.size
  return len(document.text)
