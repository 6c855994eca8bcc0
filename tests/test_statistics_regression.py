"""Interval-censored regression against closed forms, others' fits, brute force.

Coverage is judged by the binomial distribution of the number of simulated
studies whose interval holds the truth: between its 0.1 % and 99.9 % quantiles
at the nominal level.
"""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from poison_jax.studies.statistics import (
  censored_likelihood,
  interval_regression,
)

_INF = math.inf

# J. Tobin, Econometrica 26, 1958, 24-36, as in R's survival::tobin: durable
# goods bought, age, liquidity ratio.
_TOBIN = np.array(
  [
    [0, 57.7, 236],
    [0.7, 50.9, 283],
    [0, 48.5, 207],
    [0, 41.7, 220],
    [0, 47.7, 238],
    [0, 59.8, 216],
    [0, 44.3, 284],
    [3.7, 45.1, 221],
    [0, 51.7, 275],
    [3, 50, 269],
    [10.4, 46.8, 207],
    [0, 58, 249],
    [0, 58.9, 246],
    [0, 40, 277],
    [1.5, 34.1, 231],
    [0, 39.9, 219],
    [0, 33.4, 240],
    [3.5, 48.1, 266],
    [6.1, 46.6, 214],
    [0, 53.1, 251],
  ]
)


@pytest.mark.parametrize(
  "low, high",
  [(-1, 0.5), (-_INF, 0.3), (0.3, _INF), (2, 3), (-3, -2.9), (5, 6), (5, _INF)],
)
def test_probabilities_are_integrals_of_the_density(low, high):
  mean, sigma = 0.4, 0.7
  expected, _ = scipy.integrate.quad(
    lambda x: (
      math.exp(-0.5 * ((x - mean) / sigma) ** 2)
      / (sigma * math.sqrt(2 * math.pi))
    ),
    max(low, mean - 12 * sigma),
    min(high, mean + 12 * sigma),
    epsabs=0,
    epsrel=1e-11,
  )
  found = censored_likelihood.log_likelihood(
    *(np.array([[value]], float) for value in (low, high, mean, sigma))
  )
  assert found[0, 0] == pytest.approx(math.log(expected), abs=1e-8)


def test_far_tails_keep_their_digits():
  # log of Q(50) - Q(51), Q(x) ~ density(x) / x * (1 - 1/x^2 + 3/x^4 - 15/x^6).
  def tail(x):
    series = 1 - x**-2 + 3 * x**-4 - 15 * x**-6
    return -0.5 * x * x - 0.5 * math.log(2 * math.pi) + math.log(series / x)

  expected = tail(50) + math.log1p(-math.exp(tail(51) - tail(50)))
  for low, high in ((50.0, 51.0), (-51.0, -50.0)):
    found = censored_likelihood.log_likelihood(
      np.array([[low]]), np.array([[high]]), np.zeros((1, 1)), np.ones((1, 1))
    )
    assert found[0, 0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
  "columns, coefficients, log_sigma, log_likelihood",
  [
    # R: survreg(Surv(durable, durable > 0, type = "left") ~ ..., data = tobin,
    # dist = "gaussian"): coefficients, Log(scale), and half of 2 * parameters
    # - AIC (62.984, 65.880).
    ([], [-2.227], 1.783, (4 - 62.984) / 2),
    ([1, 2], [15.145, -0.129, -0.046], 1.718, (8 - 65.880) / 2),
  ],
)
def test_left_censored_data_are_fitted_as_by_survreg(
  columns, coefficients, log_sigma, log_likelihood
):
  # In thousandths, so that the bound on sigma is far away.
  durable_N = _TOBIN[:, 0] / 1000
  centre = _TOBIN[:, columns].mean(axis=0)
  design_NK = np.column_stack([np.ones(20), _TOBIN[:, columns] - centre])
  found = censored_likelihood.maximise(
    np.where(durable_N > 0, durable_N, -_INF)[None],
    durable_N[None],
    design_NK[None],
    np.zeros((1, 20)),
    coefficients=0,
  )
  fitted = found.coefficients_BK[0] * 1000
  fitted[0] -= centre @ fitted[1:]
  np.testing.assert_allclose(fitted, coefficients, atol=5e-4)
  assert np.log(found.sigma_B[0] * 1000) == pytest.approx(log_sigma, abs=5e-4)
  shift = np.sum(durable_N > 0) * math.log(1000)
  assert found.log_likelihood_B[0] - shift == pytest.approx(
    log_likelihood, abs=5e-4
  )


def _exact(rng, *, count=12, sigma=0.05):
  x_N = rng.normal(size=count)
  return x_N, np.exp(3 + 0.5 * x_N + sigma * rng.normal(size=count))


def test_exact_data_give_least_squares_and_students_interval():
  x_N, n50_N = _exact(np.random.default_rng(0))
  line = interval_regression.fit(n50_N, n50_N, x_N[:, None])
  least = scipy.stats.linregress(x_N, np.log(n50_N))
  residual_N = np.log(n50_N) - least.intercept - least.slope * x_N
  np.testing.assert_allclose(line.slopes_P, [least.slope], rtol=1e-6)
  assert line.intercept == pytest.approx(least.intercept, rel=1e-6)
  # The penalty's bound on sigma moves it by (sigma / 3)^2.
  expected = math.sqrt(residual_N @ residual_N / (len(x_N) - 2))
  assert line.sigma == pytest.approx(expected, rel=1e-4)
  half = scipy.stats.t.ppf(0.975, len(x_N) - 2) * least.stderr
  found = interval_regression.slope_interval(line, 0, level=0.95)
  assert found.low == pytest.approx(least.slope - half, abs=1e-5)
  assert found.high == pytest.approx(least.slope + half, abs=1e-5)


def test_n50s_interval_of_exact_data_is_students():
  _, n50_N = _exact(np.random.default_rng(1), sigma=0.03)
  n50_N = np.exp(4 + (np.log(n50_N) - np.log(n50_N).mean()) / 20)
  line = interval_regression.fit(n50_N, n50_N, np.empty((12, 0)))
  half = scipy.stats.t.ppf(0.95, 11) * scipy.stats.sem(np.log(n50_N))
  found = interval_regression.n50_interval(line, [], level=0.9)
  assert line.n50([]) == pytest.approx(math.exp(4), rel=1e-6)
  assert math.log(found.low) == pytest.approx(4 - half, abs=1e-5)
  assert math.log(found.high) == pytest.approx(4 + half, abs=1e-5)


_MIXED = (
  # Left-, interval- and right-censored and exact, over a range of x.
  np.array([0, 16, 16, 32, 32, 45, 64, 64, 128]),
  np.array([16, 32, 64, 64, 64, 45, 128, 128, _INF]),
  np.log(np.array([1, 1, 1, 3, 3, 3, 10, 10, 10.0]))[:, None],
)


def _brute_objective(low_N, high_N, x_N, intercept, slope, log_sigma):
  """Returns the penalised log-likelihood, written another way."""
  sigma = math.exp(log_sigma)
  total = 2 * log_sigma - sigma**2 / (2 * censored_likelihood.WIDEST**2)
  for low, high, x in zip(low_N, high_N, x_N, strict=True):
    normal = scipy.stats.norm(intercept + slope * x, sigma)
    if low == high:
      total += normal.logpdf(math.log(low))
    else:
      below = normal.cdf(math.log(low)) if low else 0.0
      total += math.log(normal.cdf(math.log(high)) - below)
  return total


def test_mixed_censoring_is_fitted_as_by_brute_force():
  low_N, high_N, x_NP = _MIXED
  line = interval_regression.fit(low_N, high_N, x_NP)
  brute = scipy.optimize.minimize(
    lambda p: -_brute_objective(low_N, high_N, x_NP[:, 0], *p),
    (3.5, 0.0, 0.0),
    method="Nelder-Mead",
    options={"xatol": 1e-7, "fatol": 1e-11, "maxiter": 5000},
  )
  np.testing.assert_allclose(
    [line.intercept, line.slopes_P[0], math.log(line.sigma)],
    brute.x,
    atol=1e-4,
  )
  assert line.objective == pytest.approx(-brute.fun, abs=1e-7)


def test_the_ends_of_an_interval_have_the_critical_deviance():
  low_N, high_N, x_NP = _MIXED
  line = interval_regression.fit(low_N, high_N, x_NP)
  found = interval_regression.slope_interval(line, 0, level=0.95)
  # 7 of the 9 are bounded on both sides, less two coefficients.
  t = scipy.stats.t.ppf(0.975, 5)
  for end in (found.low, found.high):
    profile = scipy.optimize.minimize(
      lambda p, end=end: (
        -_brute_objective(low_N, high_N, x_NP[:, 0], p[0], end, p[1])
      ),
      (3.5 - end, 0.0),
      method="Nelder-Mead",
      options={"xatol": 1e-7, "fatol": 1e-11, "maxiter": 5000},
    )
    deviance = 2 * (line.objective + profile.fun)
    assert deviance == pytest.approx(5 * math.log1p(t * t / 5), abs=1e-3)


def test_the_unit_of_doses_moves_the_intercept_only():
  low_N, high_N, x_NP = _MIXED
  line = interval_regression.fit(low_N, high_N, x_NP)
  other = interval_regression.fit(10 * low_N, 10 * high_N, x_NP)
  assert other.intercept == pytest.approx(line.intercept + math.log(10))
  assert other.slopes_P[0] == pytest.approx(line.slopes_P[0])
  assert other.sigma == pytest.approx(line.sigma)


def test_seeds_that_all_agree_give_a_finite_spread():
  low_N, high_N = np.full(9, 32.0), np.full(9, 64.0)
  line = interval_regression.fit(low_N, high_N, _MIXED[2])
  assert line.slopes_P[0] == pytest.approx(0, abs=1e-6)
  assert 0.01 < line.sigma < math.log(2)
  found = interval_regression.slope_interval(line, 0, level=0.95)
  assert not found.is_open and found.contains(0)
  n50 = interval_regression.n50_interval(line, [math.log(3)], level=0.95)
  assert 16 < n50.low < math.sqrt(32 * 64) < n50.high < 128


def test_a_rung_beyond_the_doses_opens_the_interval_upwards():
  low_N = [32, 32, 32, 128, 128, 128]
  high_N = [64, 64, 64, _INF, _INF, _INF]
  x_NP = np.repeat([0.0, 1.0], 3)[:, None]
  line = interval_regression.fit(low_N, high_N, x_NP)
  slope = interval_regression.slope_interval(line, 0, level=0.95)
  assert slope.high == _INF and slope.low > 0
  beyond = interval_regression.n50_interval(line, [1.0], level=0.95)
  assert beyond.high == _INF and beyond.low > 64


def test_a_rung_below_the_doses_is_open_downwards():
  none = np.empty((9, 0))
  line = interval_regression.fit(np.zeros(9), np.full(9, 16.0), none)
  below = interval_regression.n50_interval(line, [], level=0.95)
  assert below.low == 0 and below.high == pytest.approx(16, rel=0.01)
  # Three seeds all below a median happen once in eight times: not excluded.
  line = interval_regression.fit(np.zeros(3), np.full(3, 16.0), none[:3])
  below = interval_regression.n50_interval(line, [], level=0.95)
  assert below.low == 0 and below.high > 17


def test_nothing_but_lower_bounds_leaves_the_slope_open():
  line = interval_regression.fit([128] * 6, [_INF] * 6, _MIXED[2][:6])
  slope = interval_regression.slope_interval(line, 0, level=0.95)
  assert (slope.low, slope.high) == (-_INF, _INF)


def test_unobserved_n50s_change_nothing():
  low_N, high_N, x_NP = _MIXED
  line = interval_regression.fit(low_N, high_N, x_NP)
  more = interval_regression.fit(
    [*low_N, 0], [*high_N, _INF], np.vstack([x_NP, [[5.0]]])
  )
  assert more.objective == line.objective
  assert more.degrees == line.degrees


def test_as_many_coefficients_as_n50s_bound_nothing():
  line = interval_regression.fit([16, 64], [32, 128], [[0.0], [1.0]])
  found = interval_regression.slope_interval(line, 0, level=0.95)
  assert (found.low, found.high) == (-_INF, _INF)


@pytest.mark.parametrize(
  "low_N, high_N, x_NP, words",
  [
    ([32], [16], [[0.0]], "0 <= low <= high"),
    ([-1], [16], [[0.0]], "0 <= low <= high"),
    ([math.nan], [16], [[0.0]], "0 <= low <= high"),
    ([16, 16], [32], [[0.0]], "shapes"),
    ([16, 16], [32, 32], [[0.0]], "x of shape"),
    ([16, 16, 16], [32, 32, 32], [[1.0], [1.0], [1.0]], "told apart"),
    ([0], [_INF], [[1.0]], "no N50 has a bound"),
  ],
)
def test_impossible_data_are_refused(low_N, high_N, x_NP, words):
  with pytest.raises(ValueError, match=words):
    interval_regression.fit(low_N, high_N, x_NP)


def test_two_slopes_are_told_apart():
  # Tokens and parameters that do not go together (0.5x, 1x, 2x).
  rng = np.random.default_rng(3)
  x_NP = rng.normal(size=(60, 2))
  log_n50_N = 4 + x_NP @ [0.3, -0.6] + 0.2 * rng.normal(size=60)
  edges = np.log([1, 4, 8, 16, 32, 64, 128, 256, 512])
  above = np.searchsorted(edges, log_n50_N)
  line = interval_regression.fit(
    np.exp(edges[above - 1]), np.exp(edges[above]), x_NP
  )
  for column, truth in ((0, 0.3), (1, -0.6)):
    found = interval_regression.slope_interval(line, column, level=0.95)
    assert found.contains(truth) and found.high - found.low < 0.3


def test_the_bootstrap_draws_whole_seeds():
  # Ten draws a seed, alike but for little: as many draws as one likes tell
  # no more than the seeds do.
  rng = np.random.default_rng(4)
  seed_N = np.repeat(np.arange(12), 10)
  x_N = np.repeat(np.repeat([0.0, 1.0], 6), 10)
  log_n50_N = 4 + np.repeat(0.5 * rng.normal(size=12), 10)
  n50_N = np.exp(log_n50_N + 0.01 * rng.normal(size=120))
  line = interval_regression.fit(n50_N, n50_N, x_N[:, None])
  by_seed = interval_regression.bootstrap_slopes(
    line, seed_N, resamples=200, rng=np.random.default_rng(0)
  )
  by_draw = interval_regression.bootstrap_slopes(
    line, np.arange(120), resamples=200, rng=np.random.default_rng(0)
  )
  means = np.log(n50_N).reshape(12, 10).mean(axis=1)
  expected = math.sqrt(np.var(means[:6]) / 6 + np.var(means[6:]) / 6)
  # 200 resamples know a standard deviation to 5 %.
  assert by_seed.shape == (200, 1)
  assert np.std(by_seed) == pytest.approx(expected, rel=0.2)
  assert np.std(by_draw) < 0.5 * np.std(by_seed)


def test_the_bootstrap_loses_no_size():
  # Two seeds a size: drawn from all four alike, one resample in eight would
  # lack a size and have no slope.
  x_N, seed_N = [0.0, 0.0, 1.0, 1.0], [0, 1, 2, 3]
  n50_N = np.exp([3.0, 3.01, 4.0, 4.01])
  line = interval_regression.fit(n50_N, n50_N, np.array(x_N)[:, None])
  slopes = interval_regression.bootstrap_slopes(
    line, seed_N, resamples=50, rng=np.random.default_rng(0)
  )
  np.testing.assert_allclose(slopes, 1, atol=0.02)


def test_coverage_of_n50_at_one_size():
  rng = np.random.default_rng(5)
  studies, covered = 100, 0
  doses = np.log([16, 32, 64, 128])
  edges = np.concatenate([[-_INF], doses, [_INF]])
  for _ in range(studies):
    above = np.searchsorted(doses, math.log(45) + 0.5 * rng.normal(size=8))
    line = interval_regression.fit(
      np.exp(edges[above]), np.exp(edges[above + 1]), np.empty((8, 0))
    )
    found = interval_regression.n50_interval(line, [], level=0.9)
    covered += found.contains(45)
  low, high = scipy.stats.binom.ppf([0.001, 0.999], studies, 0.9)
  assert low <= covered <= high
