"""Keyed random numbers: exact, even, and the same for good."""

import hashlib

import numpy as np
import pytest

from poison_jax.poison import keyed

_MASK = 2**64 - 1


def test_bits_are_what_they_always_were():
  assert [keyed.bits(0, "fraction", k) for k in range(2)] == [
    11504104874759152124,
    17658027916232565834,
  ]
  assert (
    len({keyed.bits(s, n, k) for s in (0, 1) for n in "ab" for k in (0, 1)})
    == 8
  )


def test_integers_are_what_they_always_were():
  rng = keyed.generator(0, "document", 3)
  assert keyed.integers(rng, bound=1000, count=6).tolist() == [
    998,
    431,
    780,
    679,
    862,
    699,
  ]
  assert keyed.integer_between(rng, low=400, high=900) == 543


def _philox(key: int, words: int) -> list[int]:
  """Philox 4x64-10 of Salmon et al., 2011, as numpy counts: from 1."""
  out = []
  for block in range(1, words // 4 + 1):
    x = [block, 0, 0, 0]
    k = [key & _MASK, key >> 64]
    for _ in range(10):
      first, second = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
      x = [
        (second >> 64) ^ x[1] ^ k[0],
        second & _MASK,
        (first >> 64) ^ x[3] ^ k[1],
        first & _MASK,
      ]
      k[0] = (k[0] + 0x9E3779B97F4A7C15) & _MASK
      k[1] = (k[1] + 0xBB67AE8584CAA73B) & _MASK
    out += x
  return out


def test_the_generator_is_philox_under_the_key_of_its_name():
  digest = hashlib.blake2b(b"5/document/7", digest_size=16).digest()
  expected = _philox(int.from_bytes(digest, "big"), 8)
  rng = keyed.generator(5, "document", 7)
  assert rng.bit_generator.random_raw(8).tolist() == expected


def test_share_of_is_the_floor_of_the_fraction():
  for bound in (1, 7, 10**12):
    assert keyed.share_of(0, bound) == 0
    assert keyed.share_of(_MASK, bound) == bound - 1
  assert keyed.share_of(1 << 63, 7) == 3
  assert keyed.share_of((1 << 63) - 1, 10) == 4


class _Words:
  """A generator whose raw words are given."""

  def __init__(self, words):
    self._words = list(words)
    self.bit_generator = self

  def random_raw(self, count):
    taken, self._words = self._words[:count], self._words[count:]
    return np.array(taken, np.uint64)


def test_words_beyond_the_last_multiple_are_drawn_again():
  # 2**64 = 6 * k + 4: the last four words would favour 0 to 3.
  biased = [2**64 - 4, 2**64 - 1]
  rng = _Words([7, *biased, 2**64 - 5, biased[0], 9])
  assert keyed.integers(rng, bound=6, count=3).tolist() == [1, 5, 3]


@pytest.mark.parametrize("bound", [1, 2, 1 << 32])
def test_powers_of_two_draw_nothing_again(bound):
  rng = _Words([_MASK, 0])
  expected = [(bound - 1), 0]
  assert keyed.integers(rng, bound=bound, count=2).tolist() == expected


def test_integers_are_even():
  rng = keyed.generator(0, "even", 0)
  counts = np.bincount(keyed.integers(rng, bound=100, count=100_000))
  chi_square = ((counts - 1000) ** 2 / 1000).sum()
  assert abs(chi_square - 99) < 4 * np.sqrt(2 * 99)


def test_both_ends_of_a_range_come_up():
  rng = keyed.generator(0, "ends", 0)
  found = {keyed.integer_between(rng, low=3, high=5) for _ in range(100)}
  assert found == {3, 4, 5}
