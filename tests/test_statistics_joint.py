"""Elasticities by tokens and parameters at once, on simulated studies."""

import math

import numpy as np
import pytest
import scipy.stats

from poison_jax.studies.statistics import joint_elasticity, power

_INF = math.inf

# The paper's eight configurations: parameters, and 10, 20 and 40 tokens each
# of the two smaller models, 20 of the two larger.
_PARAMETERS = np.array([6e8] * 3 + [2e9] * 3 + [7e9, 13e9])
_TOKENS = _PARAMETERS * np.array([10, 20, 40] * 2 + [20, 20])
_FINE = tuple(np.geomspace(5, 5000, 25))


def _studies(rng, *, by_tokens, by_parameters, count, sigma=0.3, seeds=3):
  """Yields (low, high, tokens, parameters) of seeds with known elasticities."""
  tokens_N, parameters_N = (np.repeat(a, seeds) for a in (_TOKENS, _PARAMETERS))
  mean_N = math.log(180) + (
    by_tokens * np.log(tokens_N / 4e10)
    + by_parameters * np.log(parameters_N / 2e9)
  )
  for _ in range(count):
    log_n50_N = mean_N + sigma * rng.normal(size=len(mean_N))
    low_N, high_N = power.bracket(log_n50_N, _FINE)
    yield np.exp(low_N), np.exp(high_N), tokens_N, parameters_N


def test_exact_data_give_least_squares_with_students_interval():
  rng = np.random.default_rng(0)
  tokens_N, parameters_N = (np.repeat(a, 2) for a in (_TOKENS, _PARAMETERS))
  design_N3 = np.column_stack(
    [np.ones(16), np.log(tokens_N), np.log(parameters_N)]
  )
  log_n50_N = design_N3 @ [1.0, 0.3, -0.2] + 0.05 * rng.normal(size=16)
  n50_N = np.exp(log_n50_N)
  found = joint_elasticity.assess(
    n50_N, n50_N, tokens_N, parameters_N, level=0.95
  )
  least, squares, *_ = np.linalg.lstsq(design_N3, log_n50_N, rcond=None)
  variances = squares[0] / 13 * np.linalg.inv(design_N3.T @ design_N3)
  t = scipy.stats.t.ppf(0.975, 13)
  for slope, k in ((found.by_tokens, 1), (found.by_parameters, 2)):
    half = t * math.sqrt(variances[k, k])
    assert slope.estimate == pytest.approx(least[k], rel=1e-4)
    assert slope.interval.low == pytest.approx(least[k] - half, abs=1e-4)
    assert slope.interval.high == pytest.approx(least[k] + half, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("by_tokens, by_parameters", [(0.5, 0), (0, 0.5)])
def test_the_cause_is_recovered_and_covered(by_tokens, by_parameters):
  studies = 80
  truths = {"by_tokens": by_tokens, "by_parameters": by_parameters}
  estimates = {name: [] for name in truths}
  covered = dict.fromkeys(truths, 0)
  for data in _studies(
    np.random.default_rng(1), **truths, count=studies, sigma=0.3
  ):
    found = joint_elasticity.assess(*data, level=0.95)
    for name, truth in truths.items():
      slope = getattr(found, name)
      estimates[name].append(slope.estimate)
      covered[name] += slope.interval.contains(truth)
  lowest, highest = scipy.stats.binom.ppf([0.001, 0.999], studies, 0.95)
  for name, truth in truths.items():
    assert lowest <= covered[name] <= highest
    error = np.std(estimates[name]) / math.sqrt(studies)
    assert abs(np.mean(estimates[name]) - truth) < 4 * error


@pytest.mark.parametrize(
  "tokens, parameters, words",
  [
    # 20 tokens a parameter everywhere, but for rounding.
    ([7.0e5, 2.46e6, 7.14e6], [35e3, 123e3, 357e3], "tokens hardly vary"),
    # One model: its parameters don't vary at all.
    ([1e6, 2e6, 4e6], [35e3] * 3, "parameters hardly vary"),
    # Two sizes: a line passes through both, whatever their ratios.
    ([1e6, 8e6, 8e6], [1e5, 2e5, 2e5], "tokens hardly vary"),
  ],
)
def test_what_can_not_be_told_apart_is_said(tokens, parameters, words):
  low_N, high_N = [16, 32, 32] * 3, [32, 64, 64] * 3
  found = joint_elasticity.assess(
    low_N, high_N, tokens * 3, parameters * 3, level=0.95
  )
  assert found.by_tokens is None and found.by_parameters is None
  assert words in found.reason


def test_sizes_beyond_the_doses_do_not_tell_apart():
  tokens, parameters = [1e6, 2e6, 4e6, 2e7], [1e5, 2e5, 4e5, 2e5]
  low_N = np.array([16, 32, 32, 128] * 3)
  high_N = np.array([32, 64, 64, _INF] * 3)
  found = joint_elasticity.assess(
    low_N, high_N, tokens * 3, parameters * 3, level=0.95
  )
  assert "hardly vary" in found.reason
  high_N[3::4] = 256
  found = joint_elasticity.assess(
    low_N, high_N, tokens * 3, parameters * 3, level=0.95
  )
  assert not found.reason and found.by_tokens.estimate > 0.5
  few = joint_elasticity.assess(
    [16, 32, 64], [32, 64, 128], tokens[1:], parameters[1:], level=0.95
  )
  assert "it takes 4" in few.reason


def test_impossible_data_are_refused():
  with pytest.raises(ValueError, match="1 N50s, 2 amounts"):
    joint_elasticity.assess([16], [32], [1, 2], [1, 2], level=0.95)
  with pytest.raises(ValueError, match="above 0"):
    joint_elasticity.assess([16], [32], [0], [1], level=0.95)
