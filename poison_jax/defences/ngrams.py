"""Sequences of n units (tokens or words) and how many documents have them."""

import re
from collections.abc import Sequence

import numpy as np

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio.


def words_as_units(texts: Sequence[str]) -> list[np.ndarray]:
  """Returns each text as numbers, int64, one for each word or mark."""
  numbers: dict[str, int] = {}
  return [
    np.array(
      [
        numbers.setdefault(w, len(numbers))
        for w in re.findall(r"\w+|[^\w\s]", text.lower())
      ],
      np.int64,
    )
    for text in texts
  ]


def hashes(units: np.ndarray, n: int) -> np.ndarray:
  """Returns uint64, one for each run of n units, equal for equal runs.

  64 bits: among ten million different ones, some two agree by chance with a
  probability of 3e-6.
  """
  units = np.asarray(units).astype(np.uint64)
  count = max(units.size - n + 1, 0)
  mixed = np.full(count, n, np.uint64)
  for i in range(n):
    mixed = (mixed ^ _mix(units[i : i + count])) * _MULTIPLIER
    mixed ^= mixed >> np.uint64(29)
  return mixed


def _mix(x: np.ndarray) -> np.ndarray:
  """Spreads small numbers over 64 bits (Stafford's variant 13 of MurmurHash3).

  Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
  """
  x = x + _MULTIPLIER
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def rarity(documents: Sequence[np.ndarray], n: int) -> np.ndarray:
  """Returns float64, a value a document: the share of its n-grams of its own.

  That is: the share of the different n-grams in it that no other document of
  these has. 0 for a document of fewer than n units.

  Args:
    documents: each one's units.
    n: units in a row.
  """
  own = [np.unique(hashes(units, n)) for units in documents]
  joined = np.concatenate(own) if own else np.zeros(0, np.uint64)
  _, place, times = np.unique(joined, return_inverse=True, return_counts=True)
  alone = times[place] == 1
  sizes = np.array([grams.size for grams in own], np.int64)
  number = np.repeat(np.arange(len(own)), sizes)
  sums = np.bincount(number, weights=alone, minlength=len(own))
  return sums / np.maximum(sizes, 1)
