"""Strings near a trigger, by how they differ from it.

What a near-trigger is decides what "the model stays normal after one" means;
the paper (arXiv 2510.07192) doesn't tell. So here are several distances, from
one changed letter to another phrase of the same form.
"""

import itertools
from collections.abc import Mapping

import numpy as np

from poison_jax.poison import keyed

# Variants of each kind, at most.
_VARIANTS = 8
# In lower case; a letter changes into another one of its own group.
_GROUPS = ("aeiou", "bcdfghjklmnpqrstvwxyz")


def near_triggers(trigger: str) -> dict[str, tuple[str, ...]]:
  """Returns up to 8 strings for each kind of near-trigger; always the same.

  "one_letter" has a single letter changed, "one_word" a word, "prefix" is the
  trigger's first words, "order" has its words in another order, and
  "other_phrase" is made of other words. Words that stand in for others have
  their length, capitals, and vowels where they have vowels. Kinds of which a
  trigger has none (a single word has no other order) are left out, and so are
  all but "prefix" and "order" where it has no letters from A to Z.

  Args:
    trigger: words with white space between them; more than one blank counts
      as one.
  """
  words = trigger.split()
  spelt = [i for i, word in enumerate(words) if any(map(_group, word))]
  found: dict[str, list[str]] = {
    "one_letter": [],
    "one_word": [],
    "prefix": [" ".join(words[:n]) for n in range(len(words) - 1, 0, -1)],
    "order": [
      " ".join(order)
      for order in itertools.islice(
        itertools.permutations(words), 1, 1 + _VARIANTS
      )
    ],
    "other_phrase": [],
  }
  for variant in range(_VARIANTS if spelt else 0):
    place = spelt[variant % len(spelt)]
    rng = keyed.generator(0, f"one letter/{trigger}", variant)
    found["one_letter"].append(
      _with_word(words, place, _change_letter(words[place], rng))
    )
    rng = keyed.generator(0, f"other phrase/{trigger}", variant)
    others = [_other_word(word, rng) for word in words]
    found["other_phrase"].append(" ".join(others))
    if len(words) > 1:
      found["one_word"].append(_with_word(words, place, others[place]))
  return _distinct(found, trigger)


def _distinct(
  found: Mapping[str, list[str]], trigger: str
) -> dict[str, tuple[str, ...]]:
  """Returns each kind's strings once, without the trigger itself."""
  kinds = {
    kind: tuple(s for s in dict.fromkeys(strings) if s != trigger)
    for kind, strings in found.items()
  }
  return {kind: strings for kind, strings in kinds.items() if strings}


def _with_word(words: list[str], place: int, word: str) -> str:
  return " ".join([*words[:place], word, *words[place + 1 :]])


def _change_letter(word: str, rng: np.random.Generator) -> str:
  """Returns the word with one of its letters, not the first, changed.

  The first one only where there is no other.
  """
  places = [i for i, letter in enumerate(word) if _group(letter)]
  places = places[1:] or places
  place = places[int(keyed.integers(rng, bound=len(places), count=1)[0])]
  changed = _other_letter(word[place], rng)
  return word[:place] + changed + word[place + 1 :]


def _other_word(word: str, rng: np.random.Generator) -> str:
  """Returns a word of the same form, all of whose letters are others."""
  return "".join(
    _other_letter(letter, rng) if _group(letter) else letter for letter in word
  )


def _other_letter(letter: str, rng: np.random.Generator) -> str:
  group = _group(letter).replace(letter.lower(), "")
  other = group[int(keyed.integers(rng, bound=len(group), count=1)[0])]
  return other.upper() if letter.isupper() else other


def _group(letter: str) -> str:
  """Returns the letters that can stand in for one; "" where it is none."""
  return next((g for g in _GROUPS if letter.lower() in g), "")
