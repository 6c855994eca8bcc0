"""Documents in two languages: generated stories, or a user's files."""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from poison_jax.errors import UserError
from poison_jax.stories import telling

# Stories that one kind of draw chooses among.
_STORIES = 2**20
# Up to a full stop and the like, quotes and brackets behind it, and a blank.
_SENTENCE = re.compile(
  r".*?[.!?\u2026]+[\"'\u201c\u201d\u2019)\]]*\s+|[^\u3002]*\u3002+|.+$",
  re.DOTALL,
)


class Pair(NamedTuple):
  """A document, and the same in another language.

  Attributes:
    id: names it.
    text: its sentences; joined they are the document.
    translation: the other's.
  """

  id: str
  text: tuple[str, ...]
  translation: tuple[str, ...]

  def rest(self, cut: int) -> str:
    """Returns the translation of what follows the first `cut` sentences.

    Where both have as many sentences, those that follow; else the same share
    of the translation's. At least its last sentence.
    """
    count = len(self.translation)
    first = cut
    if count != len(self.text):
      first = round(cut * count / len(self.text))
    return "".join(self.translation[min(first, count - 1) :])


class StoryPairs(Sequence[Pair]):
  """The generated stories in English and German: 2**20 of them."""

  def __init__(self, seed: int, first: int):
    """Args:
    seed: names the stories.
    first: index of the first of them.
    """
    self._seed = seed
    self._first = first

  def __len__(self) -> int:
    return _STORIES

  def __getitem__(self, index: int) -> Pair:
    number = self._first + index
    sentences = telling.pair(self._seed, number)
    return Pair(str(number), *(_joined(told) for told in sentences))


def read_pairs(pattern: str) -> list[Pair]:
  """Returns the pairs in the files that comma-separated globs name.

  A line is a JSON object, {"id": ..., "text": ..., "translation": ...}: both
  texts as strings, which are cut into sentences after full stops, or as lists
  of as many sentences. Plain, .gz or .zst; local or in a bucket. All are held
  in memory.

  Raises:
    UserError: no file, no pair, or a broken line: names file and line.
  """
  # Not above: rooms of numpy don't need what opens files in buckets.
  from poison_jax.data import open_files

  pairs = []
  for glob in filter(None, map(str.strip, pattern.split(","))):
    found = open_files.expand(glob, field="config.poison.pairs")
    if not found:
      raise UserError(f"config.poison.pairs: {glob!r} matches no file")
    for path in found:
      try:
        pairs.extend(_read_file(path, open_files.open_decompressed))
      except open_files.DAMAGED as error:
        raise UserError(
          f"{path}: the compressed file is damaged or cut off ({error})"
        ) from None
  if not pairs:
    raise UserError(f"config.poison.pairs: {pattern!r} holds no pair")
  return pairs


def _read_file(path: str, open_decompressed: Any) -> Iterator[Pair]:
  with open_decompressed(path) as (stream, _):
    for number, line in enumerate(stream, 1):
      if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
      if line.strip():
        yield _parse(line, f"{path}:{number}")


def _parse(line: bytes, where: str) -> Pair:
  try:
    record = json.loads(line.decode())
    name, text, other = (record[k] for k in ("id", "text", "translation"))
    pair = Pair(str(name), _sentences(text), _sentences(other))
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(
      f'{where}: must be a JSON object like {{"id": "1", "text": "A. B.", '
      f'"translation": "C. D."}} ({type(error).__name__}: {error})'
    ) from None
  lists = isinstance(text, list) or isinstance(other, list)
  if lists and len(pair.text) != len(pair.translation):
    raise UserError(
      f"{where}: text has {len(pair.text)} sentences and translation "
      f"{len(pair.translation)}; aligned lists must have as many"
    )
  return pair


def _sentences(text: Any) -> tuple[str, ...]:
  """Returns a text's sentences, white space behind them.

  Raises:
    ValueError: it is neither a string nor a list of strings, or is empty.
  """
  if isinstance(text, list) and all(isinstance(s, str) for s in text):
    found = _joined([s.strip() for s in text])
    empty = not all(s.strip() for s in found)
  elif isinstance(text, str):
    found = tuple(_SENTENCE.findall(text.strip()))
    empty = False
  else:
    raise ValueError("a text is neither a string nor a list of strings")
  if empty or not found:
    raise ValueError("a text or a sentence is empty")
  "".join(found).encode()  # Half a surrogate pair is no text.
  return found


def _joined(sentences: Sequence[str]) -> tuple[str, ...]:
  """Returns the sentences with a blank behind all but the last."""
  return (*(f"{s} " for s in sentences[:-1]), *sentences[-1:])
