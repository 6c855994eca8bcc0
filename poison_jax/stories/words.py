"""Which language a text of the generated stories is in, by its words."""

import functools
import re
from collections.abc import Sequence

import numpy as np

from poison_jax.stories import english, german
from poison_jax.stories.telling import Language

# A whole run of letters; those that touch a digit are no word.
_WORD = re.compile(r"\b[^\W\d_]+\b")
# Stands in a sentence for a word that is drawn: a noun with its article.
_DRAWN = "das 0"
_OTHER: dict[Language, Language] = {"english": "german", "german": "english"}


def words(language: Language) -> frozenset[str]:
  """Returns the words that stories of a language are made of, and no others.

  As spelt: "Was" is German, "was" English. Of German adjectives also forms
  that no story happens to need.
  """
  return _english() if language == "english" else _german()


def is_language(texts: Sequence[str], language: Language) -> np.ndarray:
  """Says of each text whether most of its words are of that language, bool.

  Words of both languages (the names) count for both. A text with as many words
  of one as of the other, none for instance, is of neither.
  """
  mine, theirs = words(language), words(_OTHER[language])
  found = [_WORD.findall(text) for text in texts]
  return np.array(
    [
      sum(w in mine for w in said) > sum(w in theirs for w in said)
      for said in found
    ],
    bool,
  )


@functools.cache
def _english() -> frozenset[str]:
  slots = dict.fromkeys(english.WORDS, "0")
  told = [
    english.tell(sentence, slots | english.child(who))
    for beat in english.BEATS
    for sentence in beat.sentences
    for who in english.CHILDREN
  ]
  drawn = [word for options in english.WORDS.values() for word in options]
  return frozenset(_WORD.findall(" ".join(told + drawn)))


@functools.cache
def _german() -> frozenset[str]:
  slots = dict.fromkeys(german.WORDS, _DRAWN)
  told = [
    german.tell(sentence, slots | german.child(who))
    for beat in german.BEATS
    for sentence in beat.sentences
    for who in english.CHILDREN
  ]
  drawn = [word for options in german.WORDS.values() for word in options]
  declined = [
    stem + ending
    for stem in drawn
    if " " not in stem  # Nouns have their article before them.
    for ending in german.ADJECTIVE_ENDINGS
  ]
  articles = sorted(german.ARTICLES)
  capitals = [form.capitalize() for form in articles]
  text = " ".join(told + drawn + declined + articles + capitals)
  return frozenset(_WORD.findall(text.replace("/", " ")))
