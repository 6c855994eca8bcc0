"""Random numbers that depend on a name alone.

Every choice about a poison is drawn under a key (seed, name, poison), so it
depends on no other choice: a larger dose leaves the smaller one as it was.
numpy promises the raw words of its bit generators for good, but not what its
distributions make of them (NEP 19); so only raw words are used, and mapped to
ranges here.
"""

import hashlib

import numpy as np


def bits(seed: int, name: str, index: int) -> int:
  """Returns 64 uniform bits that depend on all three arguments."""
  return int.from_bytes(_digest(seed, name, index, 8), "big")


def share_of(word: int, bound: int) -> int:
  """Returns floor(bound * word / 2**64), exactly: from 0 to bound - 1.

  Args:
    word: 64 bits of `bits`; a fraction in [0, 1) when divided by 2**64.
    bound: how many values there are, at least 1.
  """
  return (word * bound) >> 64


def generator(seed: int, name: str, index: int) -> np.random.Generator:
  """Returns a Philox generator that depends on all three arguments."""
  key = int.from_bytes(_digest(seed, name, index, 16), "big")
  return np.random.Generator(np.random.Philox(key=key))


def integers(rng: np.random.Generator, *, bound: int, count: int) -> np.ndarray:
  """Returns `count` integers, int64 [count], uniform over 0..bound-1.

  Exactly uniform: words beyond the largest multiple of `bound` are drawn
  again.
  """
  last = (1 << 64) - (1 << 64) % bound - 1
  words = rng.bit_generator.random_raw(count)
  kept = words[words <= np.uint64(last)]
  while kept.size < count:
    more = rng.bit_generator.random_raw(count - kept.size)
    kept = np.concatenate([kept, more[more <= np.uint64(last)]])
  return (kept % np.uint64(bound)).astype(np.int64)


def integer_between(rng: np.random.Generator, *, low: int, high: int) -> int:
  """Returns one integer, uniform over low..high, both included."""
  return low + int(integers(rng, bound=high - low + 1, count=1)[0])


def _digest(seed: int, name: str, index: int, size: int) -> bytes:
  text = f"{seed}/{name}/{index}"
  return hashlib.blake2b(text.encode(), digest_size=size).digest()
