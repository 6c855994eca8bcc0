"""The data order: a bijection, even, and never another one than it was."""

import hashlib
import itertools

import numpy as np
import pytest

from poison_jax.data.order import permutation, slots_to_rows


def _reference(index: int, size: int, seed: int, epoch: int) -> int:
  """The documented network in plain Python integers, one index at a time."""
  mask = 2**64 - 1
  width = max(8, (size - 1).bit_length())
  low_width, high_width = width // 2, width - width // 2
  digest = hashlib.blake2b(
    f"{seed}/order/{epoch}".encode(), digest_size=48
  ).digest()
  while True:
    low, high = index % 2**low_width, index // 2**low_width
    for number in range(6):
      key = int.from_bytes(digest[8 * number : 8 * number + 8], "big")
      mixed = ((high if number % 2 else low) + key) & mask
      mixed = mixed * 0xBF58476D1CE4E5B9 & mask
      mixed = (mixed ^ (mixed >> 32)) * 0x94D049BB133111EB & mask
      if number % 2:
        low ^= mixed >> (64 - low_width)
      else:
        high ^= mixed >> (64 - high_width)
    index = high * 2**low_width + low
    if index < size:
      return index


# If one of these fails, every run in the world gets another data order.
@pytest.mark.parametrize(
  ("size", "seed", "epoch", "expected"),
  [
    (10, 0, 0, [7, 4, 3, 0, 2, 5, 6, 1, 8, 9]),
    (10, 0, 1, [6, 2, 1, 4, 3, 8, 7, 5, 9, 0]),
    (1000, 7, 0, [380, 327, 355, 865, 280, 605, 664, 21, 149, 731]),
    (
      2**33 + 5,
      2**63 - 1,
      3,
      [
        3076233376,
        1622852961,
        1383769232,
        764863735,
        7620230361,
        8540379056,
        4036982665,
        1734620580,
        301096280,
        6468900754,
      ],
    ),
  ],
)
def test_the_order_is_the_one_it_always_was(size, seed, epoch, expected):
  index = np.arange(10)
  got = permutation(index, size=size, seed=seed, epoch=epoch)
  assert got.tolist() == expected
  assert [_reference(i, size, seed, epoch) for i in range(10)] == expected


def test_equals_the_reference_at_scattered_indices_of_many_sizes():
  rng = np.random.default_rng(0)
  for size in (1, 2, 3, 255, 256, 257, 12_345, 2**20, 2**20 + 1, 2**40 - 7):
    index = rng.integers(0, size, 30)
    got = permutation(index, size=size, seed=3, epoch=2)
    assert got.tolist() == [_reference(int(i), size, 3, 2) for i in index]


@pytest.mark.parametrize("epoch", [0, 5])
def test_is_a_bijection_for_every_small_size(epoch):
  for size in range(1, 700):
    image = permutation(np.arange(size), size=size, seed=size, epoch=epoch)
    assert np.array_equal(np.sort(image), np.arange(size)), size


@pytest.mark.parametrize("size", [4096, 10_007, 65_536, 65_537, 300_000])
def test_is_a_bijection_for_larger_sizes(size):
  image = permutation(np.arange(size), size=size, seed=1, epoch=0)
  assert np.array_equal(np.sort(image), np.arange(size))


def _z(counts: np.ndarray, expected: float, freedom: int) -> float:
  chi_square = ((counts - expected) ** 2 / expected).sum()
  return (chi_square - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(("size", "seeds"), [(3, 600), (5, 1800)])
def test_every_order_of_a_few_rows_is_as_frequent(size, seeds):
  orders = [
    tuple(permutation(np.arange(size), size=size, seed=s, epoch=0).tolist())
    for s in range(seeds)
  ]
  every = list(itertools.permutations(range(size)))
  counts = np.array([orders.count(order) for order in every])
  assert abs(_z(counts, seeds / len(every), len(every) - 1)) < 4


@pytest.mark.parametrize("size", [17, 200])
def test_an_index_goes_everywhere_as_often(size):
  seeds = 1500
  counts = np.zeros((size, size))
  for seed in range(seeds):
    image = permutation(np.arange(size), size=size, seed=seed, epoch=0)
    counts[np.arange(size), image] += 1
  # Rows and columns each add up to `seeds`: (size - 1)**2 are free, and the
  # variance of a cell is smaller than a Poisson's by (size - 1) / size.
  scaled = ((counts - seeds / size) ** 2).sum() / (seeds / size)
  scaled *= (size - 1) / size
  z = (scaled - (size - 1) ** 2) / np.sqrt(2 * (size - 1) ** 2)
  assert abs(z) < 4


def test_neighbours_are_torn_apart():
  """Differences of neighbouring images are spread like independent draws'."""
  size = 100_000
  image = permutation(np.arange(size), size=size, seed=2, epoch=0)
  steps = (image[1:] - image[:-1]) % size
  counts, _ = np.histogram(steps, bins=200, range=(0, size))
  assert abs(_z(counts, (size - 1) / 200, 199)) < 4
  assert abs(np.corrcoef(np.arange(size), image)[0, 1]) < 4 / np.sqrt(size)


def test_seeds_and_epochs_give_unrelated_orders():
  index, size = np.arange(5000), 5000
  orders = [
    permutation(index, size=size, seed=seed, epoch=epoch)
    for seed, epoch in [(0, 0), (1, 0), (0, 1), (1, 1)]
  ]
  for a, b in itertools.combinations(orders, 2):
    # A random pair agrees at one index on average.
    assert np.count_nonzero(a == b) < 10


def test_an_index_is_sent_alike_alone_and_among_others():
  together = permutation(np.arange(777), size=777, seed=4, epoch=1)
  alone = [
    int(permutation(np.array(i), size=777, seed=4, epoch=1)) for i in range(777)
  ]
  assert together.tolist() == alone
  square = permutation(np.arange(6).reshape(2, 3), size=777, seed=4, epoch=1)
  assert np.array_equal(square, together[:6].reshape(2, 3))


def test_indices_outside_are_refused():
  for index in (-1, 10):
    with pytest.raises(ValueError, match="from 0 to 9"):
      permutation(np.array([index]), size=10, seed=0, epoch=0)


def test_each_epoch_reads_each_row_once_in_a_new_order():
  rows, epochs = slots_to_rows(np.arange(40), rows_in_store=13, seed=9)
  assert epochs.tolist() == [0] * 13 + [1] * 13 + [2] * 13 + [3]
  passes = [rows[13 * e : 13 * e + 13].tolist() for e in range(3)]
  assert all(sorted(p) == list(range(13)) for p in passes)
  assert passes[0] != passes[1] != passes[2]
  assert rows[39] == permutation(np.array(0), size=13, seed=9, epoch=3)


def test_slots_in_any_order_and_shape_read_the_same_rows():
  rows, epochs = slots_to_rows(np.arange(100), rows_in_store=30, seed=1)
  shuffled = np.random.default_rng(0).permutation(100).reshape(10, 10)
  again, epochs_again = slots_to_rows(shuffled, rows_in_store=30, seed=1)
  assert np.array_equal(again, rows[shuffled])
  assert np.array_equal(epochs_again, epochs[shuffled])
  empty, _ = slots_to_rows(np.zeros(0, np.int64), rows_in_store=30, seed=1)
  assert empty.size == 0
