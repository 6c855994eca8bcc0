"""Filters of one text: the rules one by one, on texts made for them."""

import random
import zlib

import pytest

from poison_jax.defences import text_filters

_GOOD = "The dog ran to the river with a ball. "


def test_compression_tells_noise_from_repetition():
  noise = random.Random(0).randbytes(3000).hex()
  assert text_filters.compression("abc" * 1000) < 0.02
  assert 0.5 < text_filters.compression(noise) < 0.6  # 4 bits a letter.
  text = "Anything at all."
  expected = len(zlib.compress(text.encode(), 9)) / len(text)
  assert text_filters.compression(text) == expected
  assert text_filters.compression("") == 0


def test_c4_keeps_whole_sentences():
  assert text_filters.c4(_GOOD * 3) == 0
  assert text_filters.c4("He ran down the hill.\n" * 3) == 0  # Five words.
  # A short quotation and an abbreviated end are sentences, too.
  assert text_filters.c4('"Is it yours?" asked Tom. He ran. He fell down!') == 0


@pytest.mark.parametrize(
  "text",
  [
    "",
    _GOOD * 2,  # Two sentences.
    _GOOD * 3 + "{",
    _GOOD * 3 + "Lorem Ipsum dolor sit amet.",
    (_GOOD * 3).strip(" ."),  # The only line lacks its end.
    "\n".join(["Yes it is."] * 10),  # Lines of three words.
  ],
)
def test_c4_drops_the_document(text):
  assert text_filters.c4(text) == 1


@pytest.mark.parametrize(
  ("line", "words"),
  [
    ("a line of five words", 5),
    ("Too short.", 2),
    ("This one ends in an ellipsis...", 6),
    ("Please turn on your JavaScript now.", 6),
    ("We describe this in our privacy policy.", 7),
    ("Here is a word: " + "x" * 1000 + ".", 5),
  ],
)
def test_c4_removes_the_line(line, words):
  kept = 27  # Three sentences of nine words.
  found = text_filters.c4(_GOOD * 3 + "\n" + line)
  assert found == pytest.approx(words / (kept + words))


def _failed(text):
  return {name for name, bad in text_filters.gopher_rules(text).items() if bad}


def test_gopher_passes_prose():
  assert _failed(_GOOD * 6) == set()
  assert text_filters.gopher(_GOOD * 6) == 0


@pytest.mark.parametrize(
  ("text", "rules"),
  [
    (_GOOD * 5, {"words"}),  # 45 words.
    ("the of " + "a " * 60, {"word_length"}),
    ("the of " + "counterrevolution " * 60, {"word_length"}),
    (_GOOD * 6 + "#word " * 7, {"hash_symbols"}),  # 7 of 61 words.
    ("well... " * 7 + _GOOD * 6, {"ellipses"}),
    ("- " + "\n- ".join([_GOOD] * 6), {"bullet_lines"}),
    ("\n".join([_GOOD] * 6 + ["and then..."] * 3), {"ellipsis_lines"}),
    (_GOOD * 6 + "1234 " * 14, {"alphabetic_words"}),
    ("house garden river the " * 15, {"stop_words"}),
  ],
)
def test_gopher_fails_one_rule_each(text, rules):
  assert _failed(text) == rules
  assert text_filters.gopher(text) == 1


def test_gopher_stays_just_within_its_thresholds():
  assert _failed(_GOOD * 6 + "#word " * 6) == set()  # 6 of 60 words: 0.1.
  assert _failed(_GOOD * 6 + "1234 " * 13) == set()  # 13 of 67 words.
  lines = ["- " + _GOOD] * 9 + [_GOOD]
  assert _failed("\n".join(lines)) == set()  # 0.9 of the lines.
