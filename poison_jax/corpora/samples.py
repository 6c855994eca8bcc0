"""Samples of documents kept as text: those of the smallest keys.

A document's key is a hash of its text, so that a sample is uniform, holds a
text once, and does not depend on how the documents were dealt out.
"""

import hashlib
import heapq
from typing import NamedTuple

# Characters of a document that are kept: prefixes and excerpts are cut from
# its text, and a corpus of books should not be copied.
KEPT_CHARACTERS = 2**16
# The same for documents that come as tokens.
KEPT_TOKENS = 2**14


class Kept(NamedTuple):
  """A document of a sample; the smallest ones are the sample, in order.

  `tokens` is None where the text is known; else the text is decoded from them.
  """

  key: str
  position: str
  id: str
  text: str
  tokens: list[int] | None


class TextHash(NamedTuple):
  """What a document's content decides, as two independent keyed numbers."""

  share: float
  key: str


def text_hash(content: bytes) -> TextHash:
  """Returns a number in [0, 1) for the split, and the sample key."""
  digest = hashlib.blake2b(content, digest_size=16).digest()
  return TextHash(int.from_bytes(digest[:8], "big") / 2**64, digest[8:].hex())


class Threshold:
  """The `size`-th smallest distinct key that was offered so far."""

  def __init__(self, size: int):
    self._size = size
    self._largest_first: list[int] = []
    self._keys: set[int] = set()

  def admits(self, key: str) -> bool:
    """Takes note of `key`; False where `size` smaller ones were seen."""
    number = int(key, 16)
    if number in self._keys:
      return True
    if len(self._keys) < self._size:
      heapq.heappush(self._largest_first, -number)
    elif number > -self._largest_first[0]:
      return False
    else:
      removed = heapq.heapreplace(self._largest_first, -number)
      self._keys.remove(-removed)
    self._keys.add(number)
    return True


def smallest(candidates: list[Kept], size: int) -> list[Kept]:
  """Returns the `size` smallest of distinct keys, by key.

  Of documents with one text the first in the corpus stays.
  """
  first: dict[str, Kept] = {}
  for kept in sorted(candidates):
    first.setdefault(kept.key, kept)
  return list(first.values())[:size]
