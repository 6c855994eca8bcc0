"""Generated stories, in English or German: a pure function of (seed, index).

The random numbers come from a hash written out here, so no library's release
can change a story. One index tells the same story in both languages, sentence
by sentence.
"""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from poison_jax.stories import english, german

Language = Literal["english", "german"]
TagPlace = Literal["word", "sentence"]

# The blank that a tag comes before; a story ends without one.
_PLACES = {
  "word": re.compile(" "),
  "sentence": re.compile(r"(?<=[.!?\"]) (?=[^a-z])"),
}

# Draws of one story, in the order of the hash's counter. New ones come last:
# they change none before them.
_CHILD = 0
_FIRST_WORD = 1
_FIRST_BEAT = _FIRST_WORD + len(english.WORDS)
_TAGGED = _FIRST_BEAT + 2 * len(english.BEATS)
_WHICH_TAG = _TAGGED + 1
_TAG_PLACE = _TAGGED + 2
_GERMAN = _TAGGED + 3
_DRAWS = _GERMAN + 1


def story(seed: int, index: int, tags: Sequence[str], tag_share: float) -> str:
  """Returns English story `index` of the corpus `seed`, 190 to 640 characters.

  Args:
    seed: names the corpus; any integer.
    index: from 0.
    tags: harmless strings, of which a tagged story carries one.
    tag_share: share of the stories, 0 to 1, that are tagged: in their middle
      half the tag follows a word, and the text goes on as without it.
  """
  indices = range(index, index + 1)
  return stories(seed, indices, tags=tags, tag_share=tag_share)[0]


def stories(
  seed: int,
  indices: range,
  *,
  tags: Sequence[str] = (),
  tag_share: float = 0.0,
  tag_after: TagPlace = "word",
  german_share: float = 0.0,
) -> list[str]:
  """Returns several stories; each is the same in any block.

  Args:
    seed: names the corpus.
    indices: of the stories.
    tags: as for `story`.
    tag_share: as for `story`.
    tag_after: what a tag follows: a "word", or a "sentence".
    german_share: share of the stories, 0 to 1, that are told in German.
  """
  draws = _draws(seed, indices)
  texts = [" ".join(told) for told in _tell(draws, "english")]
  german_too = np.flatnonzero(_below(draws[_GERMAN], german_share))
  if german_too.size:
    told = _tell(draws[:, german_too], "german")
    for i, sentences in zip(german_too.tolist(), told, strict=True):
      texts[i] = " ".join(sentences)
  if tags and tag_share:
    _put_tags(texts, draws[_TAGGED:_GERMAN], tags, tag_share, tag_after)
  return texts


def pair(seed: int, index: int) -> tuple[list[str], list[str]]:
  """Returns a story's sentences in English and in German, as many of each."""
  draws = _draws(seed, range(index, index + 1))
  return _tell(draws, "english")[0], _tell(draws, "german")[0]


def _tell(draws: np.ndarray, language: Language) -> list[list[str]]:
  """Returns the sentences of each story."""
  grammar = english if language == "english" else german
  children = _choose(draws[_CHILD], english.CHILDREN)
  words = [
    _choose(draw, options)
    for draw, options in zip(
      draws[_FIRST_WORD:_FIRST_BEAT], grammar.WORDS.values(), strict=True
    )
  ]
  beats = [
    _told(draws[_FIRST_BEAT + 2 * k : _FIRST_BEAT + 2 * k + 2], beat)
    for k, beat in enumerate(grammar.BEATS)
  ]
  found = []
  for who, drawn, told in zip(
    children, zip(*words, strict=True), zip(*beats, strict=True), strict=True
  ):
    slots = dict(zip(grammar.WORDS, drawn, strict=True)) | grammar.child(who)
    found.append([grammar.tell(s, slots) for s in told if s])
  return found


def _told(draws: np.ndarray, beat: english.Beat) -> list[str]:
  """Returns the beat's sentence in each story; "" where it isn't told."""
  told = _below(draws[0], beat.share).tolist()
  choices = _choose(draws[1], beat.sentences)
  return [s if t else "" for s, t in zip(choices, told, strict=True)]


def _put_tags(
  texts: list[str],
  draws: np.ndarray,
  tags: Sequence[str],
  share: float,
  after: TagPlace,
) -> None:
  tagged, which, place = draws
  for i in np.flatnonzero(_below(tagged, share)).tolist():
    text = texts[i]
    tag = tags[(int(which[i]) * len(tags)) >> 32]
    near = len(text) // 4 + ((int(place[i]) * (len(text) // 2)) >> 32)
    found = _PLACES[after].search(text, near)
    at = len(text) if found is None else found.start()
    texts[i] = text[:at] + tag + text[at:]


def _below(draw: np.ndarray, share: float) -> np.ndarray:
  """Says which 32-bit draws lie in the first `share` of their range."""
  return draw < np.uint64(int(share * 2**32))


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
