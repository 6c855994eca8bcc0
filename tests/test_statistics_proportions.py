"""Shares: published intervals, and coverage counted exactly."""

import numpy as np
import pytest
import scipy.stats

from poison_jax.studies.statistics import proportions


@pytest.mark.parametrize(
  "successes, runs, low, high",
  [
    # R. G. Newcombe, Stat. Med. 17, 1998, 857-872, table I, "Clopper-Pearson".
    (81, 263, 0.2527, 0.3676),
    (15, 148, 0.0578, 0.1617),
    (0, 20, 0.0, 0.1684),
    (1, 29, 0.0009, 0.1776),
    # Closed form of no failure: (0.05 / 2)^(1 / 3).
    (3, 3, 0.025 ** (1 / 3), 1.0),
  ],
)
def test_intervals_are_the_published_ones(successes, runs, low, high):
  found = proportions.share(successes, runs, level=0.95)
  assert found.interval.low == pytest.approx(low, abs=5e-5)
  assert found.interval.high == pytest.approx(high, abs=5e-5)
  assert found.value == successes / runs


@pytest.mark.parametrize("chance", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_coverage_is_never_below_the_level(chance, level):
  runs = 12
  covered = sum(
    scipy.stats.binom.pmf(k, runs, chance)
    for k in range(runs + 1)
    if proportions.share(k, runs, level=level).interval.contains(chance)
  )
  assert covered >= level


def test_no_runs_say_nothing():
  found = proportions.share(0, 0, level=0.95)
  assert (found.interval.low, found.interval.high) == (0, 1)
  assert np.isnan(found.value)


@pytest.mark.parametrize("successes, runs", [(4, 3), (-1, 3)])
def test_impossible_counts_are_refused(successes, runs):
  with pytest.raises(ValueError, match=f"{successes} successes of {runs}"):
    proportions.share(successes, runs, level=0.95)
