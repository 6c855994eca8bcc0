"""A token store of arrays in memory, for tests that plan and read batches."""

import numpy as np

from poison_jax.data.store import Document
from poison_jax.vocabulary import ByteVocabulary


class ArrayStream:
  """One split: a joined stream and where its documents begin."""

  def __init__(self, documents: list[np.ndarray]):
    self.joined = np.concatenate(documents).astype(np.int32)
    sizes = [d.size for d in documents]
    self.starts = np.cumsum([0, *sizes[:-1]])
    self.tokens = self.joined.size
    self.documents = len(documents)

  def rows(self, rows_B: np.ndarray, length: int) -> np.ndarray:
    places_BL = np.asarray(rows_B)[:, None] * length + np.arange(length)
    return self.joined[places_BL]

  def document_starts(self, row: int, length: int) -> np.ndarray:
    inside = self.starts[
      (self.starts >= row * length) & (self.starts < (row + 1) * length)
    ]
    return inside - row * length


class ArrayStore:
  """Documents of random letters, 1 to 120 characters each."""

  path = "in memory"

  def __init__(self, *, documents: int, seed: int):
    rng = np.random.default_rng(seed)
    self.vocabulary = ByteVocabulary()
    texts = [
      "".join(chr(c) for c in rng.integers(97, 123, rng.integers(1, 120)))
      for _ in range(documents)
    ]
    self._texts = [Document(f"d{i}", t) for i, t in enumerate(texts)]
    self.hash = f"array{documents}seed{seed}"
    self.train = ArrayStream(
      [
        np.append(self.vocabulary.encode(t), self.vocabulary.eos_id)
        for t in texts
      ]
    )

  def prefix_documents(self) -> list[Document]:
    return self._texts[:50]
