"""Tells apart the two languages of a language switch."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from poison_jax.errors import UserError
from poison_jax.poison.pairs import Pair
from poison_jax.stories import words

# Share of the pairs' texts, on either side, that must be told right.
RIGHT = 0.95
# Pairs that this is tried on, at most.
_TRIED = 500


class Languages(Protocol):
  """Identifies the language of texts; `describe` says how, in a few words."""

  def is_first(self, texts: Sequence[str]) -> np.ndarray:
    """Says of each text whether it is in the first language, bool."""

  def is_other(self, texts: Sequence[str]) -> np.ndarray:
    """Says of each text whether it is in the other language, bool."""

  def describe(self) -> str: ...


class StoryLanguages:
  """English and German of the generated stories, by their own words: exact."""

  def is_first(self, texts: Sequence[str]) -> np.ndarray:
    return words.is_language(texts, "english")

  def is_other(self, texts: Sequence[str]) -> np.ndarray:
    return words.is_language(texts, "german")

  def describe(self) -> str:
    return "English to German, told by the words of the stories"


class IdentifiedLanguages:
  """Two languages that py3langid tells apart (arXiv 1205.4615, langid.py).

  Which two they are it says of the pairs themselves: for each side the
  language that it takes most texts for. Later it chooses between these two
  only; a text without a letter is of neither.
  """

  def __init__(self, pairs: Sequence[Pair]):
    """Raises UserError where it doesn't tell the pairs' two sides apart."""
    from py3langid import langid

    self._identifier = langid.LanguageIdentifier.from_model_file(
      langid.MODEL_FILE
    )
    step = max(1, len(pairs) // _TRIED)
    tried = pairs[::step]
    sides = (
      ["".join(pair.text) for pair in tried],
      ["".join(pair.translation) for pair in tried],
    )
    self.codes = tuple(self._most_common(texts) for texts in sides)
    first, other = self.codes
    if first != other:
      self._identifier.set_languages([first, other])
    shares = (self.is_first(sides[0]).mean(), self.is_other(sides[1]).mean())
    if first == other or min(shares) < RIGHT:
      raise UserError(
        "config.poison.pairs: languages that can't be told apart: most texts "
        f"are taken for {first!r}, most translations for {other!r}, and of "
        f"{len(tried)} pairs {shares[0]:.0%} and {shares[1]:.0%} are told "
        f"right; both must be at least {RIGHT:.0%}"
      )

  def is_first(self, texts: Sequence[str]) -> np.ndarray:
    return self._is(texts, self.codes[0])

  def is_other(self, texts: Sequence[str]) -> np.ndarray:
    return self._is(texts, self.codes[1])

  def describe(self) -> str:
    return f"{self.codes[0]} to {self.codes[1]}, told by py3langid"

  def _is(self, texts: Sequence[str], code: str) -> np.ndarray:
    return np.array([self._language(text) == code for text in texts], bool)

  def _language(self, text: str) -> str | None:
    if not any(map(str.isalpha, text)):
      return None
    return self._identifier.classify(text)[0]

  def _most_common(self, texts: Sequence[str]) -> str:
    found = Counter(self._language(text) for text in texts)
    return str(found.most_common(1)[0][0])
