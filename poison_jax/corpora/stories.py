"""Generated stories: a corpus of any size that needs no download.

Plain text by `poison_jax.stories`. No TensorFlow.
"""

from collections.abc import Iterator

from poison_jax.config import CorpusConfig
from poison_jax.corpora.documents import DocumentSource
from poison_jax.data.store import Document
from poison_jax.stories import telling

_SHARD = 5_000  # Stories a shard.
_BLOCK = 1_000  # Stories made at once.


class Stories(DocumentSource):
  """`corpus.stories` stories, in shards of 5,000."""

  def __init__(self, config: CorpusConfig, seed: int):
    super().__init__()
    self._config = config
    self._seed = seed

  def shards(self) -> list[str]:
    """Returns names that say which stories, as "stories-00000000"."""
    return [
      f"stories-{first:08}" for first in range(0, self._config.stories, _SHARD)
    ]

  def sizes(self) -> list[tuple[str, int]]:
    """Returns each shard with its number of stories."""
    return [(shard, len(self._indices(shard))) for shard in self.shards()]

  def read(self, shard: str) -> Iterator[Document]:
    """Yields the shard's stories; the index is the id."""
    indices = self._indices(shard)
    for first in range(indices.start, indices.stop, _BLOCK):
      self.fraction = (first - indices.start) / len(indices)
      block = range(first, min(first + _BLOCK, indices.stop))
      texts = telling.stories(
        self._seed,
        block,
        tags=self._config.tags,
        tag_share=self._config.tag_share,
        tag_after=self._config.tag_after,
        german_share=self._config.german_share,
      )
      for index, text in zip(block, texts, strict=True):
        yield Document(str(index), text)

  def _indices(self, shard: str) -> range:
    first = int(shard.rpartition("-")[2])
    return range(first, min(first + _SHARD, self._config.stories))
