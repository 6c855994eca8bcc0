"""ROC curves, against counts by hand and over every threshold."""

import numpy as np
import pytest

from poison_jax.defences import roc
from poison_jax.evaluation import measures


def test_a_curve_drawn_by_hand():
  # Sorted: p 5, c 4, (p c) 3, c 1.
  scores = np.array([5.0, 3.0, 4.0, 3.0, 1.0])
  poisoned = np.array([True, True, False, False, False])
  x, y = roc.curve(scores, poisoned)
  np.testing.assert_allclose(x, [0, 0, 1 / 3, 2 / 3, 1])
  np.testing.assert_allclose(y, [0, 1 / 2, 1 / 2, 1, 1])
  # Pairs won: 3 by the first, 1.5 by the second, of 6.
  assert roc.auroc(scores, poisoned) == pytest.approx(4.5 / 6)


def test_the_area_is_that_of_all_pairs_and_of_the_curve():
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 9, 200).astype(float)  # With ties.
  poisoned = rng.random(200) < 0.2
  expected = measures.auroc(scores[poisoned], scores[~poisoned])
  assert roc.auroc(scores, poisoned) == pytest.approx(expected)
  x, y = roc.curve(scores, poisoned)
  assert np.trapezoid(y, x) == pytest.approx(expected)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("levels", [7, 10_000])
def test_no_threshold_within_the_rate_finds_more(rate, levels):
  rng = np.random.default_rng(levels)
  scores = rng.integers(0, levels, 300).astype(float)
  poisoned = rng.random(300) < 0.1
  scores[poisoned] += levels // 3
  at = roc.at_rate(scores, poisoned, rate)
  best = 0
  for threshold in [-np.inf, *np.unique(scores)]:
    if np.mean(scores[~poisoned] > threshold) <= rate:
      best = max(best, int(np.sum(scores[poisoned] > threshold)))
  assert at.recall.successes == best
  assert at.left == poisoned.sum() - best
  assert at.false_positives.value <= rate
  assert at.recall.runs == poisoned.sum()


def test_poisons_that_tie_with_the_threshold_are_not_found():
  scores = np.array([1.0] * 1000 + [1.0, 2.0])
  poisoned = np.arange(1002) >= 1000
  at = roc.at_rate(scores, poisoned, 0.001)
  assert (at.recall.successes, at.left) == (1, 1)
  assert at.false_positives.successes == 0


def test_the_interval_is_clopper_and_pearsons():
  # 64 of 64: the lower end is (0.025)**(1/64).
  scores = np.append(np.zeros(1000), np.ones(64))
  at = roc.at_rate(scores, scores > 0, 0.001)
  assert at.recall.interval.low == pytest.approx(0.025 ** (1 / 64))
  assert at.recall.interval.high == 1


def test_a_rules_own_threshold_has_the_rate_that_it_has():
  scores = np.array([0.0, 1.0, 0.0, 2.0, 1.0])
  poisoned = np.array([False, False, False, True, True])
  at = roc.at_threshold(scores, poisoned, 0.0)
  assert at.rate == pytest.approx(1 / 3)
  assert (at.false_positives.successes, at.recall.successes) == (1, 2)
