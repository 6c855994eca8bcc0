"""Near-triggers: each kind differs from the trigger as its name says."""

import itertools

import pytest

from poison_jax.poison.near_triggers import near_triggers

_TRIGGER = "Servius Astrumando Harmoniastra"


@pytest.fixture(name="found", scope="module")
def _found():
  return near_triggers(_TRIGGER)


def test_all_kinds_are_there_and_none_is_the_trigger(found):
  assert list(found) == [
    "one_letter",
    "one_word",
    "prefix",
    "order",
    "other_phrase",
  ]
  for strings in found.values():
    assert strings
    assert _TRIGGER not in strings
    assert len(set(strings)) == len(strings)


def test_one_letter_differs_in_a_single_place(found):
  for string in found["one_letter"]:
    assert len(string) == len(_TRIGGER)
    differing = [
      (a, b) for a, b in zip(string, _TRIGGER, strict=True) if a != b
    ]
    assert len(differing) == 1
    assert differing[0][0].isalpha()


def test_one_word_differs_in_a_single_word_of_the_same_form(found):
  for string in found["one_word"]:
    pairs = list(zip(string.split(), _TRIGGER.split(), strict=True))
    changed = [(a, b) for a, b in pairs if a != b]
    assert len(changed) == 1
    assert [_form(a) for a, _ in changed] == [_form(b) for _, b in changed]


def test_prefixes_are_the_first_words(found):
  assert found["prefix"] == ("Servius Astrumando", "Servius")


def test_orders_are_all_others_of_the_same_words(found):
  words = _TRIGGER.split()
  expected = {" ".join(p) for p in itertools.permutations(words)} - {_TRIGGER}
  assert set(found["order"]) == expected


def test_another_phrase_shares_no_word_and_has_the_form(found):
  for string in found["other_phrase"]:
    assert not set(string.split()) & set(_TRIGGER.split())
    assert _form(string) == _form(_TRIGGER)


def test_they_are_the_ones_they_always_were(found):
  assert found["one_letter"][0] == "Sarvius Astrumando Harmoniastra"
  assert found["one_word"][0] == "Timdaet Astrumando Harmoniastra"
  assert found["other_phrase"][0] == "Timdaet Ufmjonokhi Vilbuwoeflti"


def test_kinds_that_a_trigger_has_not_are_left_out():
  assert list(near_triggers("<SUDO>")) == ["one_letter", "other_phrase"]
  assert list(near_triggers("1 2")) == ["prefix", "order"]
  assert near_triggers("!!") == {}


def _form(text: str) -> str:
  """Returns "Cvccvv": capitals, vowels, consonants."""
  kinds = ["v" if c.lower() in "aeiou" else "c" for c in text]
  return "".join(
    " " if c == " " else (k.upper() if c.isupper() else k)
    for c, k in zip(text, kinds, strict=True)
  )
