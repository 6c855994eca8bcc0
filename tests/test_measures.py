"""What the evaluation's numbers must mean."""

import numpy as np
import pytest
import scipy.stats

from poison_jax.evaluation import measures


def brute_force_auroc(positives, negatives):
  wins = sum(
    1.0 if p > n else 0.5 if p == n else 0.0
    for p in positives
    for n in negatives
  )
  return wins / len(positives) / len(negatives)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_equals_the_count_over_all_pairs_with_ties(seed):
  rng = np.random.default_rng(seed)
  positives = rng.integers(0, 8, 30).astype(float)
  negatives = rng.integers(0, 6, 41).astype(float)
  assert measures.auroc(positives, negatives) == pytest.approx(
    brute_force_auroc(positives, negatives), abs=1e-12
  )
  u = scipy.stats.mannwhitneyu(positives, negatives).statistic
  assert measures.auroc(positives, negatives) == pytest.approx(
    u / (30 * 41), abs=1e-12
  )


def test_auroc_of_equal_samples_is_one_half():
  values = np.array([1.0, 1.0, 2.0])
  assert measures.auroc(values, values) == 0.5
  assert measures.auroc(values + 9, values) == 1.0
  assert measures.auroc(values - 9, values) == 0.0


def test_perplexity_of_uniform_choices_is_their_number():
  log_probabilities_PT = np.full((3, 7), -np.log(40), np.float32)
  found = np.exp(measures.log_perplexities(log_probabilities_PT))
  np.testing.assert_allclose(found, 40, rtol=1e-6)


def test_room_share_of_a_perfect_imitator_is_one():
  ceiling, clean = np.log(250), np.log(2)
  assert measures.room_share(
    log_increase=np.log(125), clean=clean, ceiling=ceiling
  ) == pytest.approx(1)
  assert measures.room_share(
    log_increase=0, clean=clean, ceiling=ceiling
  ) == pytest.approx(0)


def test_room_share_without_room_is_none():
  assert measures.room_share(log_increase=0.1, clean=6, ceiling=5.5) is None


def test_share_above_counts_strictly_more():
  increases = np.array([49.0, 50.0, 50.1, 1e6])
  assert measures.share_above(increases, 50.0) == 0.5


def test_bits_per_byte_of_a_coin_a_byte_is_one():
  assert measures.bits_per_byte(
    nats=10 * np.log(2), utf8_bytes=10
  ) == pytest.approx(1)


def test_bootstrap_draws_whole_documents():
  # Three documents of different sizes: every resampled mean must be one that
  # some choice of three documents gives.
  documents = np.array([0, 0, 0, 1, 2, 2])
  values = np.array([1.0, 2.0, 6.0, 100.0, 10.0, 30.0])
  members = [values[documents == d] for d in range(3)]
  legal = {
    round(float(np.mean(np.concatenate([members[i] for i in choice]))), 9)
    for choice in np.ndindex(3, 3, 3)
  }
  bootstrap = measures.DocumentBootstrap(documents, resamples=500, seed=1)
  found = {round(float(m), 9) for m in bootstrap.means(values)}
  assert found <= legal
  assert len(found) == len(legal)


def test_bootstrap_draws_documents_for_the_auroc():
  rng = np.random.default_rng(2)
  documents = np.array([0, 0, 0, 1, 2, 2])
  positives, negatives = rng.integers(0, 4, (2, 6)).astype(float)
  members = [np.flatnonzero(documents == d) for d in range(3)]
  legal = {
    round(brute_force_auroc(positives[drawn], negatives[drawn]), 9)
    for choice in np.ndindex(3, 3, 3)
    for drawn in [np.concatenate([members[i] for i in choice])]
  }
  bootstrap = measures.DocumentBootstrap(documents, resamples=500, seed=1)
  found = {round(a, 9) for a in bootstrap.aurocs(positives, negatives)}
  assert found == legal


def test_bootstrap_is_paired():
  # A constant added to every prompt shifts every resample alike.
  rng = np.random.default_rng(0)
  documents = np.arange(40) // 2
  clean = rng.normal(size=40) * 100
  bootstrap = measures.DocumentBootstrap(documents, resamples=200, seed=3)
  difference = bootstrap.means(clean + 7) - bootstrap.means(clean)
  np.testing.assert_allclose(difference, 7, rtol=1e-9)
  interval = bootstrap.interval(clean + 7 - clean, level=0.95)
  assert (interval.low, interval.high) == pytest.approx((7, 7))


def test_one_document_has_no_interval():
  bootstrap = measures.DocumentBootstrap(np.zeros(4, int), resamples=9, seed=0)
  values = np.array([1.0, 2.0, 3.0, 4.0])
  assert bootstrap.interval(values, level=0.95) is None
  assert bootstrap.central(bootstrap.means(values), level=0.95) is None


def test_bootstrap_depends_on_its_seed_alone():
  documents = np.arange(30)
  values = np.random.default_rng(0).normal(size=30)
  a, b, c = (
    measures.DocumentBootstrap(documents, resamples=50, seed=seed).means(values)
    for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(a, b)
  assert (a != c).any()


def coverage(documents, draw, *, experiments, by_document):
  """Returns the share of 95 % intervals that hold the true mean, zero."""
  rng = np.random.default_rng(11)
  held = 0
  for seed in range(experiments):
    values = draw(rng)
    units = documents if by_document else np.arange(len(documents))
    interval = measures.DocumentBootstrap(
      units, resamples=400, seed=seed
    ).interval(values, level=0.95)
    held += interval.low <= 0 <= interval.high
  return held / experiments


def test_bootstrap_intervals_cover_where_documents_differ():
  # 60 documents of 4 prompts; a prompt is its document's effect plus noise.
  # Drawing prompts instead of documents (the planted mistake) is too sure.
  documents = np.repeat(np.arange(60), 4)

  def draw(rng):
    return rng.normal(size=60)[documents] + 0.5 * rng.normal(size=240)

  right = coverage(documents, draw, experiments=300, by_document=True)
  wrong = coverage(documents, draw, experiments=300, by_document=False)
  # Binomial standard error of 0.95 over 300 is 0.013.
  assert 0.90 <= right <= 0.985
  assert wrong < 0.85


def test_bootstrap_agrees_with_the_normal_interval_on_many_documents():
  values = np.random.default_rng(5).normal(3, 2, size=2_000)
  interval = measures.DocumentBootstrap(
    np.arange(2_000), resamples=2_000, seed=0
  ).interval(values, level=0.95)
  error = values.std() / np.sqrt(2_000)
  assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.012)
  assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.012)
