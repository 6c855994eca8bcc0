"""N-grams and near duplicates, against sets of tuples."""

import collections

import numpy as np
import pytest

from poison_jax.defences import near_duplicates, ngrams


def _tuples(units, n):
  return {tuple(units[i : i + n].tolist()) for i in range(len(units) - n + 1)}


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_rarity_is_the_share_of_tuples_that_no_other_document_has(n):
  rng = np.random.default_rng(n)
  documents = [rng.integers(0, 12, size) for size in (40, 1, 0, 25, 60, 3)]
  held = [_tuples(d, n) for d in documents]
  times = collections.Counter(gram for grams in held for gram in grams)
  expected = [
    sum(times[gram] == 1 for gram in grams) / len(grams) if grams else 0
    for grams in held
  ]
  np.testing.assert_allclose(ngrams.rarity(documents, n), expected)


def test_hashes_are_equal_for_equal_runs_only():
  units = np.array([3, 5, 3, 5, 5, 3])
  hashed = ngrams.hashes(units, 2)
  assert hashed[0] == hashed[2]
  assert len(set(hashed.tolist())) == len(_tuples(units, 2)) == 3
  # Every pair of 300 units, in both orders.
  pairs = np.stack(np.meshgrid(np.arange(300), np.arange(300)), -1)
  hashed = [ngrams.hashes(pair, 2)[0] for pair in pairs.reshape(-1, 2)[::7]]
  assert len(set(map(int, hashed))) == len(hashed)


def test_words_are_numbered_over_all_texts():
  first, second = ngrams.words_as_units(["The dog, the cat", "a Cat."])
  assert first.tolist() == [0, 1, 2, 0, 3]
  assert second.tolist() == [4, 3, 5]


def _document(rng, size=400):
  return rng.integers(0, 10_000, size)


def test_resemblance_estimates_the_jaccard_index():
  rng = np.random.default_rng(0)
  documents = []
  for kept in (400, 380, 340, 300):  # Units shared with the one before.
    one = _document(rng)
    other = np.concatenate([one[:kept], _document(rng, 400 - kept)])
    documents += [one, other]
  held = [_tuples(d, near_duplicates.SHINGLE) for d in documents]
  found = near_duplicates.resemblance(documents, seed=0)
  for i in range(0, len(documents), 2):
    one, other = held[i], held[i + 1]
    jaccard = len(one & other) / len(one | other)
    # Four standard errors of 128 minima.
    error = 4 * np.sqrt(max(jaccard * (1 - jaccard), 0) / 128)
    assert found[i] == found[i + 1] == pytest.approx(jaccard, abs=error)


def test_documents_without_a_like_have_none():
  rng = np.random.default_rng(1)
  found = near_duplicates.resemblance(
    [_document(rng) for _ in range(50)], seed=0
  )
  assert found.max() < 0.1


def test_the_likest_is_found_among_many():
  rng = np.random.default_rng(2)
  documents = [_document(rng) for _ in range(200)]
  documents[150] = documents[3].copy()
  documents[77][:300] = documents[12][:300]
  found = near_duplicates.resemblance(documents, seed=0)
  assert set(np.argsort(-found)[:4]) == {150, 3, 77, 12}
  assert found[150] == found[3] == 1


def test_short_documents_are_compared_whole():
  found = near_duplicates.resemblance(
    [np.array([1, 2]), np.array([1, 2]), np.array([3])], seed=0
  )
  assert found.tolist() == [1, 1, 0]
