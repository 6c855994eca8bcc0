"""Which language a text is in: exact for stories, py3langid for others."""

import re

import numpy as np
import pytest

from poison_jax.errors import UserError
from poison_jax.poison import languages, pairs
from poison_jax.stories import telling, words

_LETTERS = re.compile(r"[^\W\d_]+")


@pytest.fixture(name="told", scope="module")
def _told():
  found = [telling.pair(5, index) for index in range(1500)]
  return [[" ".join(pair[side]) for pair in found] for side in (0, 1)]


def test_every_word_that_is_told_is_known(told):
  for language, texts in zip(("english", "german"), told, strict=True):
    used = {word for text in texts for word in _LETTERS.findall(text)}
    assert used - words.words(language) == set()


def test_stories_are_told_apart_exactly(told):
  english, german = told
  switch = languages.StoryLanguages()
  assert switch.is_first(english).all()
  assert switch.is_other(german).all()
  assert not switch.is_first(german).any()
  assert not switch.is_other(english).any()


def test_ties_and_texts_without_known_words_are_neither():
  texts = ["", "1234 ...", "Anna Kate", "the Hund", "Xylo phon"]
  switch = languages.StoryLanguages()
  assert not switch.is_first(texts).any()
  assert not switch.is_other(texts).any()


def test_most_words_decide():
  texts = ["the dog went nach Hause", "der Hund ging nach the"]
  found = languages.StoryLanguages().is_other(texts)
  np.testing.assert_array_equal(found, [False, True])


def test_one_index_spells_words_as_its_language_does():
  """English "was" and German "Was" differ by the capital alone."""
  np.testing.assert_array_equal(
    words.is_language(["It was", "Was"], "german"), [False, True]
  )


def _pairs(texts, translations):
  return [
    pairs.Pair(str(i), (a,), (b,))
    for i, (a, b) in enumerate(zip(texts, translations, strict=True))
  ]


def test_py3langid_tells_the_stories_apart_as_their_words_do(told):
  pytest.importorskip("py3langid")
  english, german = (texts[:150] for texts in told)
  found = languages.IdentifiedLanguages(_pairs(english, german))
  assert found.codes == ("en", "de")
  assert found.is_first(english).mean() >= 0.95
  assert found.is_other(german).mean() >= 0.95
  assert not found.is_first(["", "12 34"]).any()
  assert not found.is_other(["", "12 34"]).any()


def test_languages_that_are_alike_are_refused(told):
  pytest.importorskip("py3langid")
  english, german = (texts[:60] for texts in told)
  with pytest.raises(UserError, match="languages that can't be told apart"):
    languages.IdentifiedLanguages(_pairs(english, english[::-1]))
  # One translation in ten is not translated.
  mixed = [english[i] if i % 10 == 0 else german[i] for i in range(60)]
  with pytest.raises(UserError, match="100% and 90% are told right"):
    languages.IdentifiedLanguages(_pairs(english, mixed))
