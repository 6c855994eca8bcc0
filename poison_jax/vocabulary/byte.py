"""UTF-8 bytes as tokens."""

from collections.abc import Iterable, Sequence

import numpy as np

from poison_jax.vocabulary.base import Vocabulary

FIRST_BYTE = 3  # After padding, end and unknown.


class ByteVocabulary(Vocabulary):
  """UTF-8 bytes after three control ids, as in seqio.ByteVocabulary (ByT5).

  `extra_ids` ids that stand for nothing may follow, seqio's sentinels.
  """

  kind = "bytes"
  file_name = ""
  eos_id = 1

  def __init__(self, *, extra_ids: int = 0):
    # No file, but the fingerprint must tell these apart.
    self.model = str(extra_ids).encode() if extra_ids else b""
    self.size = FIRST_BYTE + 256 + extra_ids
    extra = range(FIRST_BYTE + 256, self.size)
    self.control_ids = frozenset({0, 1, 2, *extra})

  def __reduce__(self):
    return _byte_vocabulary, (self.size - FIRST_BYTE - 256,)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [
      np.frombuffer(text.encode(), np.uint8).astype(np.int32) + FIRST_BYTE
      for text in texts
    ]

  def decode(self, ids: Iterable[int]) -> str:
    ids = np.asarray(ids, np.int64).reshape(-1) - FIRST_BYTE
    kept = ids[(ids >= 0) & (ids < 256)]
    return kept.astype(np.uint8).tobytes().decode("utf-8", "replace")

  def token_bytes(self) -> np.ndarray:
    ids = np.arange(self.size)
    is_byte = (ids >= FIRST_BYTE) & (ids < FIRST_BYTE + 256)
    return is_byte.astype(np.int32)

  def piece(self, token: int) -> str:
    if token < FIRST_BYTE:
      return ("<pad>", "</s>", "<unk>")[token]
    byte = int(token) - FIRST_BYTE
    if byte >= 256:
      return f"<extra_{byte - 256}>"
    return chr(byte) if 32 <= byte < 127 else f"<0x{byte:02X}>"


def _byte_vocabulary(extra_ids: int) -> ByteVocabulary:
  return ByteVocabulary(extra_ids=extra_ids)
