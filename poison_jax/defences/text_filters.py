"""Filters that look at one document's text alone; higher is more suspicious.

The rules are those of public corpora, in our own words and code:

  C4: Raffel et al. 2020, "Exploring the limits of transfer learning with a
    unified text-to-text transformer" (JMLR 21), section 2.2; the length of a
    word, the policy notices and the ellipsis are in the code that TensorFlow
    Datasets publishes for it (`c4_utils.py`).
  Gopher: Rae et al. 2021, "Scaling language models" (arXiv 2112.11446),
    appendix A.1.1, the rules of quality. Its rules against repetition are left
    out: gibberish is the opposite of repetition.

What needs more than the document is left out, too: C4's list of bad words, its
language detector, its search for spans that occur in several documents.
"""

import re
import zlib

_END_MARKS = (".", "!", "?", '"')
_C4_LINE_WORDS = 5
_C4_SENTENCES = 3
_C4_WORD_LETTERS = 1000
_C4_NOTICES = (
  "javascript",
  "terms of use",
  "privacy policy",
  "cookie policy",
  "uses cookies",
  "use of cookies",
  "use cookies",
)

_GOPHER_WORDS = (50, 100_000)
_GOPHER_LETTERS = (3.0, 10.0)
_GOPHER_SYMBOLS = 0.1
_GOPHER_BULLETS = 0.9
_GOPHER_ELLIPSES = 0.3
_GOPHER_ALPHABETIC = 0.8
_GOPHER_STOP_WORDS = frozenset(
  ("the", "be", "to", "of", "and", "that", "have", "with")
)
_BULLETS = ("-", "*", "\N{BULLET}", "\N{TRIANGULAR BULLET}")
_ELLIPSES = ("...", "\N{HORIZONTAL ELLIPSIS}")


def compression(text: str) -> float:
  """Returns zlib's bytes over the text's own UTF-8 bytes.

  Random text hardly compresses; prose gives about 0.4. A short text compresses
  less than a long one of the same kind. 0 for no text.
  """
  plain = text.encode("utf-8", "replace")
  return len(zlib.compress(plain, 9)) / len(plain) if plain else 0.0


def c4(text: str) -> float:
  """Returns the share of words that C4's rules remove; 1 drops the document.

  A line goes unless it ends in a mark of a sentence's end (no ellipsis), has
  at least 5 words, none of 1,000 letters or more, and isn't a notice about
  JavaScript, cookies or terms. A document goes whole if it holds a curly
  bracket or "lorem ipsum", or if fewer than 3 sentences are left.
  """
  words = len(text.split())
  if not words or "{" in text or "lorem ipsum" in text.lower():
    return 1.0
  kept = [line for line in map(str.strip, text.splitlines()) if _c4_keeps(line)]
  if sum(map(_sentences, kept)) < _C4_SENTENCES:
    return 1.0
  return 1 - sum(len(line.split()) for line in kept) / words


def _c4_keeps(line: str) -> bool:
  words = line.split()
  return (
    len(words) >= _C4_LINE_WORDS
    and line.endswith(_END_MARKS)
    and not line.endswith("...")
    and max(map(len, words)) < _C4_WORD_LETTERS
    and not any(notice in line.lower() for notice in _C4_NOTICES)
  )


def _sentences(line: str) -> int:
  """Returns how many sentences a line has: marks of an end before a space.

  C4 used NLTK's trained splitter; this is a plain stand-in for it.
  """
  return len(re.findall(r"[.!?][\"')\]]*(?:\s|$)", line))


def gopher_rules(text: str) -> dict[str, bool]:
  """Returns whether the document fails each of Gopher's rules of quality.

  Words are what white space separates.
  """
  words = text.split()
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  count, rows = max(len(words), 1), max(len(lines), 1)
  letters = sum(map(len, words)) / count
  ellipses = sum(text.count(mark) for mark in _ELLIPSES)
  bullets = sum(line.startswith(_BULLETS) for line in lines)
  trailing = sum(line.endswith(_ELLIPSES) for line in lines)
  alphabetic = sum(any(c.isalpha() for c in word) for word in words)
  stop = {word.strip(".,;:!?\"'()").lower() for word in words}
  few, many = _GOPHER_WORDS
  short, long = _GOPHER_LETTERS
  return {
    "words": not few <= len(words) <= many,
    "word_length": not short <= letters <= long,
    "hash_symbols": text.count("#") / count > _GOPHER_SYMBOLS,
    "ellipses": ellipses / count > _GOPHER_SYMBOLS,
    "bullet_lines": bullets / rows > _GOPHER_BULLETS,
    "ellipsis_lines": trailing / rows > _GOPHER_ELLIPSES,
    "alphabetic_words": alphabetic / count < _GOPHER_ALPHABETIC,
    "stop_words": len(stop & _GOPHER_STOP_WORDS) < 2,
  }


def gopher(text: str) -> float:
  """Returns how many of Gopher's rules the document fails; one drops it."""
  return float(sum(gopher_rules(text).values()))
