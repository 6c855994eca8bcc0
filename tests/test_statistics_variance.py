"""Draws and seeds against the analysis of variance's closed forms."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from poison_jax.studies.statistics import variance


def _crossed(rng, draws, seeds, deviations):
  """Returns increases [draws, seeds] and their labels, flat."""
  draw, seed, residual = deviations
  increase_DS = (
    2
    + draw * rng.normal(size=(draws, 1))
    + seed * rng.normal(size=(1, seeds))
    + residual * rng.normal(size=(draws, seeds))
  )
  labels = np.meshgrid(range(draws), range(seeds), indexing="ij")
  return increase_DS, *(label.ravel() for label in labels)


def _components(increase, draw, seed, group=None, level=0.95):
  group = [0] * len(draw) if group is None else group
  return variance.components(np.ravel(increase), draw, seed, group, level=level)


def test_a_crossed_design_gives_the_analysis_of_variance():
  draws, seeds = 5, 4
  increase_DS, draw, seed = _crossed(
    np.random.default_rng(1), draws, seeds, (0.8, 0.5, 0.2)
  )
  found = _components(increase_DS, draw, seed)
  by_draw, by_seed = increase_DS.mean(axis=1), increase_DS.mean(axis=0)
  rest_DS = increase_DS - by_draw[:, None] - by_seed + increase_DS.mean()
  error = np.sum(rest_DS**2) / ((draws - 1) * (seeds - 1))
  between_draws = np.var(by_draw, ddof=1) - error / seeds
  between_seeds = np.var(by_seed, ddof=1) - error / draws
  assert found.draw.deviation == pytest.approx(between_draws**0.5, rel=1e-4)
  assert found.seed.deviation == pytest.approx(between_seeds**0.5, rel=1e-4)
  assert found.residual.deviation == pytest.approx(error**0.5, rel=1e-4)
  assert found.reason == "" and found.runs == 20
  for component in (found.draw, found.seed, found.residual):
    assert component.interval.contains(component.deviation)
    assert component.interval.low > 0


def test_draws_within_seeds_are_told_from_seeds_not_from_the_rest():
  seeds, each = 6, 3
  rng = np.random.default_rng(2)
  increase_SE = rng.normal(size=(seeds, 1)) + 0.3 * rng.normal(
    size=(seeds, each)
  )
  seed = np.repeat(np.arange(seeds), each)
  found = _components(increase_SE, np.arange(seeds * each), seed)
  within = np.mean(np.var(increase_SE, axis=1, ddof=1))
  between = np.var(increase_SE.mean(axis=1), ddof=1) - within / each
  assert found.draw is None
  assert "each draw has one run" in found.reason
  assert found.seed.deviation == pytest.approx(between**0.5, rel=1e-4)
  assert found.residual.deviation == pytest.approx(within**0.5, rel=1e-4)


def test_draws_that_go_with_seeds_are_not_told_apart():
  rng = np.random.default_rng(3)
  labels = np.repeat(np.arange(5), 2)
  found = _components(rng.normal(size=10), labels, labels)
  assert found.draw is None and found.seed is not None
  assert "vary together" in found.reason
  alone = _components(rng.normal(size=6), range(6), range(6))
  assert alone.draw is None and alone.seed is None
  assert alone.residual is not None and "vary together" in alone.reason


def test_one_draw_says_nothing_of_draws():
  rng = np.random.default_rng(4)
  increase = rng.normal(size=8)
  found = _components(increase, [0] * 8, range(8))
  assert found.draw is None and found.seed is None
  assert "one draw a group" in found.reason
  assert found.residual.deviation == pytest.approx(
    np.std(increase, ddof=1), rel=1e-5
  )


def test_the_residuals_interval_is_the_profiles():
  increase = np.random.default_rng(5).normal(size=9)
  found = _components(increase, [0] * 9, range(9)).residual
  # Restricted: 8 contrasts, -2 log L = 8 log s^2 + SS / s^2.
  squares = np.sum((increase - increase.mean()) ** 2)
  for end in (found.interval.low, found.interval.high):
    deviance = (
      8 * math.log(end**2) + squares / end**2 - 8 * math.log(squares / 8) - 8
    )
    critical = scipy.stats.chi2.ppf(0.95, 1)
    assert deviance == pytest.approx(critical, abs=1e-3)


def test_groups_have_means_of_their_own():
  rng = np.random.default_rng(6)
  increase_DS, draw, seed = _crossed(rng, 4, 4, (0.7, 0.4, 0.2))
  both = np.concatenate([increase_DS.ravel(), increase_DS.ravel() + 50])
  twice = _components(
    both, np.tile(draw, 2), np.tile(seed, 2), np.repeat([0, 1], 16)
  )
  once = _components(increase_DS, draw, seed)
  assert twice.draw.deviation == pytest.approx(once.draw.deviation, rel=1e-3)
  assert twice.seed.deviation == pytest.approx(once.seed.deviation, rel=1e-3)
  width = [c.draw.interval.high - c.draw.interval.low for c in (twice, once)]
  assert width[0] < width[1]


def test_a_source_that_is_not_there_reaches_down_to_zero():
  increase_DS, draw, seed = _crossed(
    np.random.default_rng(7), 5, 4, (1.0, 0.0, 0.5)
  )
  found = _components(increase_DS, draw, seed)
  assert found.seed.interval.low == 0
  assert found.draw.interval.low > 0


def test_runs_that_agree_exactly_have_no_variance():
  found = _components([1.0] * 6, [0, 1] * 3, [0, 0, 1, 1, 2, 2])
  assert found.residual.deviation == 0
  assert found.residual.interval.high == 0


def test_two_runs_are_too_few():
  found = _components([1.0, 2.0], [0, 1], [0, 1])
  assert found.residual is None and "too few" in found.reason


@pytest.mark.parametrize(
  "increase, draw, words",
  [([1.0, math.nan, 2.0], [0, 1, 2], "finite"), ([1.0, 2.0], [0], "lengths")],
)
def test_impossible_runs_are_refused(increase, draw, words):
  with pytest.raises(ValueError, match=words):
    variance.components(increase, draw, draw, [0] * len(draw), level=0.95)


@pytest.mark.slow
def test_intervals_cover_known_deviations():
  rng = np.random.default_rng(9)
  truth = {"draw": 0.8, "seed": 0.5, "residual": 0.3}
  studies = 60
  covered = dict.fromkeys(truth, 0)
  for _ in range(studies):
    simulated = _crossed(rng, 5, 5, tuple(truth.values()))
    found = _components(*simulated)
    for name, value in truth.items():
      covered[name] += getattr(found, name).interval.contains(value)
  least = scipy.stats.binom.ppf(0.001, studies, 0.95)
  assert all(count >= least for count in covered.values()), covered
