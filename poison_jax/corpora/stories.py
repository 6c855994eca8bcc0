"""Generated stories: a corpus of any size that needs no download.

Plain text by the grammar in `story_grammar.py`, a pure function of (seed,
index). The random numbers come from a hash written out here, so no library's
release can change a story. No TensorFlow.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from poison_jax.config import CorpusConfig
from poison_jax.corpora import story_grammar as grammar
from poison_jax.corpora.documents import DocumentSource
from poison_jax.data.store import Document

_SHARD = 5_000  # Stories a shard.
_BLOCK = 1_000  # Stories made at once.

# Draws of one story, in the order of the hash's counter.
_CHILD = 0
_FIRST_WORD = 1
_FIRST_BEAT = _FIRST_WORD + len(grammar.WORDS)
_TAGGED = _FIRST_BEAT + 2 * len(grammar.BEATS)
_WHICH_TAG = _TAGGED + 1
_TAG_PLACE = _TAGGED + 2
_DRAWS = _TAGGED + 3


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
      texts = _block(
        self._seed, block, self._config.tags, self._config.tag_share
      )
      for index, text in zip(block, texts, strict=True):
        yield Document(str(index), text)

  def _indices(self, shard: str) -> range:
    first = int(shard.rpartition("-")[2])
    return range(first, min(first + _SHARD, self._config.stories))


def story(seed: int, index: int, tags: Sequence[str], tag_share: float) -> str:
  """Returns story `index` of the corpus `seed`, about 190 to 640 characters.

  Args:
    seed: names the corpus; any integer.
    index: from 0.
    tags: harmless strings, of which a tagged story carries one.
    tag_share: share of the stories, 0 to 1, that are tagged: in their middle
      half the tag follows a word, and the text goes on as without it.
  """
  return _block(seed, range(index, index + 1), tags, tag_share)[0]


def _block(
  seed: int, indices: range, tags: Sequence[str], tag_share: float
) -> list[str]:
  draws = _draws(seed, indices)
  children = _choose(draws[_CHILD], grammar.CHILDREN)
  words = [
    _choose(draw, options)
    for draw, options in zip(
      draws[_FIRST_WORD:_FIRST_BEAT], grammar.WORDS.values(), strict=True
    )
  ]
  beats = [
    _tell(draws[_FIRST_BEAT + 2 * k : _FIRST_BEAT + 2 * k + 2], beat)
    for k, beat in enumerate(grammar.BEATS)
  ]
  stories = []
  for child, drawn, told in zip(
    children, zip(*words, strict=True), zip(*beats, strict=True), strict=True
  ):
    name, he, him, his, boy = child
    slots = dict(zip(grammar.WORDS, drawn, strict=True))
    slots["name"], slots["he"], slots["him"] = name, he, him
    slots["his"], slots["boy"] = his, boy
    slots["He"], slots["His"] = he.capitalize(), his.capitalize()
    stories.append(" ".join(filter(None, told)) % slots)
  if tags and tag_share:
    _put_tags(stories, draws[_TAGGED:], tags, tag_share)
  return stories


def _tell(draws: np.ndarray, beat: grammar.Beat) -> list[str]:
  """Returns the beat's sentence in each story; "" where it isn't told."""
  told = draws[0] < np.uint64(int(beat.share * 2**32))
  choices = _choose(draws[1], beat.sentences)
  return [s if t else "" for s, t in zip(choices, told.tolist(), strict=True)]


def _put_tags(
  stories: list[str], draws: np.ndarray, tags: Sequence[str], share: float
) -> None:
  tagged, which, place = draws
  for i in np.flatnonzero(tagged < np.uint64(int(share * 2**32))).tolist():
    text = stories[i]
    tag = tags[(int(which[i]) * len(tags)) >> 32]
    near = len(text) // 4 + ((int(place[i]) * (len(text) // 2)) >> 32)
    at = text.index(" ", near)
    stories[i] = text[:at] + tag + text[at:]


def _choose(draw: np.ndarray, options: Sequence) -> list:
  """Returns an option for each of the 32-bit draws, uniformly."""
  chosen = (draw * np.uint64(len(options))) >> np.uint64(32)
  return [options[i] for i in chosen.tolist()]


def _draws(seed: int, indices: range) -> np.ndarray:
  """Returns 32 uniform bits for each draw and story, uint64 [draws, stories].

  SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
  generators", 2014): one stream a story, started at a mix of seed and index.
  """
  start = np.array([seed % 2**64], np.uint64)
  index = np.arange(indices.start, indices.stop, dtype=np.uint64)
  stream = _mix(_mix(start) + index * _GAMMA)
  counter = np.arange(1, _DRAWS + 1, dtype=np.uint64)[:, None]
  return _mix(stream + counter * _GAMMA) >> np.uint64(32)


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
  """SplitMix64's output function; uint64 arrays wrap around silently."""
  z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return z ^ (z >> np.uint64(31))
