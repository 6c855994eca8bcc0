"""The order of the clean rows: a keyed permutation computed by index.

Slot `s` of a run reads row `permutation(s % M)` of the store in epoch
`s // M`, with M the rows that the store has. A Feistel network permutes the
smallest power of two that holds the rows; an index that lands outside walks
on until it lands inside (Black and Rogaway, "Ciphers with arbitrary finite
domains", 2002). No table, no state, no library version that could change it:
anybody's data order stays what it was.
"""

import hashlib

import numpy as np

_ROUNDS = 6
# Halves of fewer than four bits are mixed badly: of the 120 orders of five
# rows some came up three times as often as others.
_LEAST_WIDTH = 8
# Odd constants of splitmix64's finaliser (Steele, Lea and Flood, 2014).
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def permutation(
  index: np.ndarray, *, size: int, seed: int, epoch: int
) -> np.ndarray:
  """Returns where a keyed bijection of range(size) sends each index.

  Args:
    index: integers from 0 to size - 1, any shape.
    size: how many items are permuted, 1 to 2**62.
    seed: names the family of permutations.
    epoch: names the permutation in the family.

  Returns:
    int64, shaped like `index`.

  Raises:
    ValueError: an index lies outside.
  """
  index = np.asarray(index, np.int64)
  if index.size and not 0 <= index.min() <= index.max() < size:
    raise ValueError(f"indices must lie from 0 to {size - 1}")
  width = max(_LEAST_WIDTH, (size - 1).bit_length())
  keys = _round_keys(seed, epoch)
  result = _feistel(index.astype(np.uint64).ravel(), width, keys)
  bound = np.uint64(size)
  outside = np.flatnonzero(result >= bound)
  while outside.size:
    walked = _feistel(result[outside], width, keys)
    result[outside] = walked
    outside = outside[walked >= bound]
  return result.astype(np.int64).reshape(index.shape)


def slots_to_rows(
  slots: np.ndarray, *, rows_in_store: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the store rows that slots read, and the epochs they lie in.

  Args:
    slots: int64, any shape; slot = step * batch + row of the batch.
    rows_in_store: M, whole rows in the store.
    seed: the order's seed.

  Returns:
    Rows and epochs, int64, each shaped like `slots`.
  """
  slots = np.asarray(slots, np.int64)
  epochs, index = np.divmod(slots, rows_in_store)
  if not slots.size:
    return index, epochs
  first, last = int(epochs.min()), int(epochs.max())
  rows = np.empty_like(index)
  for epoch in range(first, last + 1):
    chosen = epochs == epoch
    rows[chosen] = permutation(
      index[chosen], size=rows_in_store, seed=seed, epoch=epoch
    )
  return rows, epochs


def _round_keys(seed: int, epoch: int) -> np.ndarray:
  """Returns uint64 [_ROUNDS], big-endian words of one BLAKE2b digest."""
  digest = hashlib.blake2b(
    f"{seed}/order/{epoch}".encode(), digest_size=8 * _ROUNDS
  ).digest()
  return np.frombuffer(digest, ">u8").astype(np.uint64)


def _feistel(index: np.ndarray, width: int, keys: np.ndarray) -> np.ndarray:
  """Permutes range(2**width), elementwise; uint64 in and out.

  The halves differ by a bit where `width` is odd; rounds change them in turn.
  """
  low_width = width // 2
  low_shift = np.uint64(low_width)
  low = index & np.uint64((1 << low_width) - 1)
  high = index >> low_shift
  keep_low = np.uint64(64 - low_width)
  keep_high = np.uint64(64 - (width - low_width))
  for number, key in enumerate(keys):
    if number % 2:
      low ^= _mix(high, key) >> keep_low
    else:
      high ^= _mix(low, key) >> keep_high
  high <<= low_shift
  high |= low
  return high


def _mix(half: np.ndarray, key: np.uint64) -> np.ndarray:
  """Returns 64 bits a value, of which the topmost are mixed best."""
  mixed = half + key
  mixed *= _FIRST
  mixed ^= mixed >> np.uint64(32)
  mixed *= _SECOND
  return mixed
