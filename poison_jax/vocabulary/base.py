"""What every vocabulary can do."""

import abc
import hashlib
import json
import os
from collections.abc import Iterable, Sequence

import numpy as np

DESCRIPTION = "vocabulary.json"
_FORMAT = 1


class Vocabulary(abc.ABC):
  """V ids, 0 to V-1, and what they stand for.

  Attributes:
    kind: "bytes", "sentencepiece", "tokenizer_json" or "table".
    file_name: name of the model's file inside `save`'s folder; "" for none.
    model: bytes of that file.
    size: V.
    eos_id: ends each document and begins each prompt.
    control_ids: ids that stand for no text: padding, unknown, begin, end,
      unused. Gibberish is never drawn from them.
  """

  kind: str
  file_name: str
  model: bytes
  size: int
  eos_id: int
  control_ids: frozenset[int]

  def encode(self, text: str) -> np.ndarray:
    """Returns int32 [n], without begin or end of document."""
    return self.encode_batch([text])[0]

  @abc.abstractmethod
  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns `encode` of each, faster; the arrays may be read-only."""

  @abc.abstractmethod
  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of all ids; bytes that are no UTF-8 become U+FFFD."""

  @abc.abstractmethod
  def token_bytes(self) -> np.ndarray:
    """Returns int32 [V], the UTF-8 bytes of text that each id stands for.

    0 for control ids, except that an unknown piece counts as the one byte that
    it stands for at least.
    """

  @abc.abstractmethod
  def piece(self, token: int) -> str:
    """Returns a printable form of one id."""

  @property
  def fingerprint(self) -> str:
    """64 hex digits over the kind, the end id and the model's bytes."""
    head = f"{self.kind}/{self.eos_id}/".encode()
    return hashlib.sha256(head + self.model).hexdigest()

  def save(self, folder: str) -> None:
    """Writes the description and the model's file into `folder`."""
    os.makedirs(folder, exist_ok=True)
    if self.file_name:
      with open(os.path.join(folder, self.file_name), "wb") as f:
        f.write(self.model)
    description = {
      "format": _FORMAT,
      "kind": self.kind,
      "file": self.file_name,
      "size": self.size,
      "eos_id": self.eos_id,
      "fingerprint": self.fingerprint,
    }
    path = os.path.join(folder, DESCRIPTION)
    with open(path, "w", encoding="utf-8") as f:
      json.dump(description, f, indent=2)
      f.write("\n")
