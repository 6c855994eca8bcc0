"""Vocabularies that are known by a table of their ids only."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from poison_jax.errors import UserError
from poison_jax.vocabulary.base import Vocabulary


class TableVocabulary(Vocabulary):
  """The ids of a vocabulary that only its user's seqio task can encode with.

  `prepare` writes the bytes of each id and the texts that a run will ask for:
  trigger, near-triggers, tags, and the documents of prefixes and prompts.
  """

  kind = "table"
  file_name = "table.json"

  def __init__(self, model: bytes):
    """Raises ValueError for bytes that `make` has not written."""
    self.model = model
    try:
      table = json.loads(model)
      self._bytes = [base64.b64decode(piece) for piece in table["pieces"]]
      self._known = {
        text: np.array(ids, np.int32) for text, ids in table["known"].items()
      }
      self.eos_id = int(table["eos_id"])
      self.control_ids = frozenset(table["control_ids"])
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(f"no table of pieces ({error})") from None
    self.size = len(self._bytes)

  @classmethod
  def make(
    cls,
    *,
    pieces: Sequence[bytes],
    eos_id: int,
    control_ids: Iterable[int],
    known: Mapping[str, Sequence[int]],
  ) -> "TableVocabulary":
    """Returns the vocabulary of V pieces that can encode the `known` texts."""
    table = {
      "eos_id": int(eos_id),
      "control_ids": sorted(map(int, control_ids)),
      "pieces": [base64.b64encode(piece).decode() for piece in pieces],
      "known": {k: [int(i) for i in ids] for k, ids in known.items()},
    }
    return cls(json.dumps(table, sort_keys=True).encode())

  def with_known(self, known: Mapping[str, Sequence[int]]) -> "TableVocabulary":
    """Returns this vocabulary with more texts that it can encode."""
    return TableVocabulary.make(
      pieces=self._bytes,
      eos_id=self.eos_id,
      control_ids=self.control_ids,
      known={**self._known, **known},
    )

  def __reduce__(self):
    return TableVocabulary, (self.model,)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self._encode(text) for text in texts]

  def _encode(self, text: str) -> np.ndarray:
    if text in self._known:
      return self._known[text]
    if not text:
      return np.zeros(0, np.int32)
    for known, ids in self._known.items():
      if known.startswith(text):
        return self._cut(ids, len(text.encode()))
    raise UserError(
      f"the store's vocabulary is a table, which can't encode {text[:40]!r}: "
      "it holds the trigger, near-triggers, tags and documents that `prepare` "
      "was given; prepare the store with this config"
    )

  def _cut(self, ids: np.ndarray, length: int) -> np.ndarray:
    """Returns the first ids whose bytes fit in `length`."""
    ends = np.cumsum([len(self._bytes[i]) for i in ids])
    return ids[: np.searchsorted(ends, length, side="right")]

  def decode(self, ids: Iterable[int]) -> str:
    ids = np.asarray(ids, np.int64).reshape(-1)
    return b"".join(self._bytes[i] for i in ids).decode("utf-8", "replace")

  def token_bytes(self) -> np.ndarray:
    return np.array([len(piece) for piece in self._bytes], np.int32)

  def piece(self, token: int) -> str:
    if token in self.control_ids:
      return f"<{token}>"
    return self._bytes[token].decode("utf-8", "backslashreplace")
