"""The dose-response of one size against closed forms and brute force."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from poison_jax.studies.statistics import dose_response

_INF = math.inf
_DOSES = [16, 32, 64, 128]


def _fit(ladders, **changes):
  """Fits seeds given as strings of + and - over the doses."""
  settings = {"curve_D": [16, 45, 128], "level": 0.95} | changes
  return dose_response.fit(
    np.tile(_DOSES, len(ladders)),
    [sign == "+" for ladder in ladders for sign in ladder],
    np.repeat(np.arange(len(ladders)), len(_DOSES)),
    **settings,
  )


def test_two_doses_give_firths_closed_form():
  # With a parameter a dose, Jeffreys' prior adds half a success and half a
  # failure to each (D. Firth, Biometrika 80, 1993, section 3.3): 3 of 20 and
  # 15 of 20.
  doses = [10] * 20 + [40] * 20
  successes = [True] * 3 + [False] * 17 + [True] * 15 + [False] * 5
  found = dose_response.fit(
    doses, successes, range(40), curve_D=[10, 40], level=0.95
  )
  np.testing.assert_allclose(found.chance_D, [3.5 / 21, 15.5 / 21], rtol=1e-5)
  logits = [math.log(3.5 / 17.5), math.log(15.5 / 5.5)]
  slope = (logits[1] - logits[0]) / math.log(4)
  assert found.slope == pytest.approx(slope, rel=1e-5)
  assert math.log(found.n50) == pytest.approx(
    math.log(10) - logits[0] / slope, rel=1e-5
  )
  assert not found.separated and found.design_effect == 1


def _brute(log_dose_C, success_C, intercept, slope):
  """Returns the penalised likelihood by way of the information matrix."""
  design_CK = np.column_stack([np.ones_like(log_dose_C), log_dose_C])
  chance_C = scipy.special.expit(design_CK @ [intercept, slope])
  likelihood = scipy.stats.bernoulli.logpmf(success_C, chance_C).sum()
  weighted_CK = design_CK * (chance_C * (1 - chance_C))[:, None]
  return likelihood + 0.5 * np.linalg.slogdet(design_CK.T @ weighted_CK)[1]


def test_the_interval_is_the_profiles_of_a_brute_force_fit():
  ladders = ["--++", "-+-+", "---+", "-+++"]
  found = _fit(ladders)
  log_dose_C = np.log(np.tile(_DOSES, 4).astype(float))
  success_C = np.array([s == "+" for ladder in ladders for s in ladder], int)
  best = scipy.optimize.minimize(
    lambda p: -_brute(log_dose_C, success_C, *p),
    (-5.0, 1.5),
    method="Nelder-Mead",
    options={"xatol": 1e-8, "fatol": 1e-12},
  )
  assert found.slope == pytest.approx(best.x[1], rel=1e-4)
  assert found.n50 == pytest.approx(math.exp(-best.x[0] / best.x[1]), rel=1e-4)
  t = scipy.stats.t.ppf(0.975, 3)
  critical = found.design_effect * 3 * math.log1p(t * t / 3)
  assert not found.n50_interval.is_open
  for end in (found.n50_interval.low, found.n50_interval.high):
    profile = scipy.optimize.minimize_scalar(
      lambda slope, end=end: (
        -_brute(log_dose_C, success_C, -slope * math.log(end), slope)
      ),
      bounds=(0.01, 20),
      method="bounded",
      options={"xatol": 1e-8},
    )
    assert 2 * (profile.fun - best.fun) == pytest.approx(critical, abs=2e-3)


def test_doses_that_separate_give_a_finite_curve():
  found = _fit(["--++"] * 3)
  assert found.separated
  assert found.n50 == pytest.approx(math.sqrt(32 * 64), rel=1e-3)
  assert 0 < found.slope < 20
  assert found.n50_interval.low > 16 and found.n50_interval.high < 128


@pytest.mark.parametrize("ladder", ["----", "++++"])
def test_a_flat_curve_has_no_n50(ladder):
  found = _fit([ladder] * 3)
  assert math.isnan(found.n50)
  assert (found.n50_interval.low, found.n50_interval.high) == (0, _INF)
  assert np.all(found.chance_D < 0.2) or np.all(found.chance_D > 0.8)


def test_an_n50_at_the_edge_of_the_doses_is_open():
  found = _fit(["---+", "----", "---+"])
  assert found.n50_interval.high == _INF and found.n50_interval.low > 16


def test_the_band_holds_the_curve_and_rises_with_it():
  doses = np.geomspace(4, 512, 9)
  found = _fit(["--++", "-+++", "---+"], curve_D=doses)
  assert np.all(found.low_D < found.chance_D)
  assert np.all(found.chance_D < found.high_D)
  for values_D in (found.low_D, found.chance_D, found.high_D):
    assert np.all(np.diff(values_D) > 0)
  assert np.all((found.low_D >= 0) & (found.high_D <= 1))


def test_the_band_meets_one_half_at_the_ends_of_n50s_interval():
  ladders = ["--++", "-+++", "---+"] * 2
  found = _fit(ladders)
  ends = [found.n50_interval.low, found.n50_interval.high]
  at = _fit(ladders, curve_D=ends)
  assert at.high_D[0] == pytest.approx(0.5, abs=1e-3)
  assert at.low_D[1] == pytest.approx(0.5, abs=1e-3)


def test_runs_without_poison_stand_apart():
  ladders = ["--++", "-+++", "---+"]
  alone = _fit(ladders)
  assert alone.at_zero is None
  doses = [*np.tile(_DOSES, 3), 0, 0, 0]
  successes = (
    [s == "+" for ladder in ladders for s in ladder] + [True] + [False] * 2
  )
  found = dose_response.fit(
    doses,
    successes,
    [*np.repeat(range(3), 4), 0, 1, 2],
    curve_D=[16, 45, 128],
    level=0.95,
  )
  assert (found.at_zero.successes, found.at_zero.runs) == (1, 3)
  np.testing.assert_array_equal(found.chance_D, alone.chance_D)


def test_seeds_that_differ_widen_the_interval():
  # The same runs at each dose, once dealt out evenly, once seeds apart.
  apart = ["++++", "++++", "----", "----"]
  even = ["+-+-", "-+-+", "+-+-", "-+-+"]
  effects = [_fit(ladders).design_effect for ladders in (apart, even)]
  # Sums of residuals +-2 a seed, 4/3 * 16, over 16 * 1/4; and 0.
  assert effects == [pytest.approx(16 / 3, rel=1e-3), 1]


@pytest.mark.slow
@pytest.mark.parametrize("sigma, seeds", [(0.5, 5), (0.8, 10)])
def test_n50s_interval_covers_a_known_median(sigma, seeds):
  # Coarse doses make it conservative where seeds hardly differ.
  rng = np.random.default_rng(8)
  studies, covered = 100, 0
  for _ in range(studies):
    n50_S = 45 * np.exp(sigma * rng.normal(size=seeds))
    ladders = [["-+"[int(d >= n50)] for d in _DOSES] for n50 in n50_S]
    covered += _fit(ladders, curve_D=[45]).n50_interval.contains(45)
  assert covered >= scipy.stats.binom.ppf(0.001, studies, 0.95)


@pytest.mark.parametrize(
  "doses, successes, seeds, words",
  [
    ([16, 32], [True], [0, 1], "different lengths"),
    ([0, 16], [False, True], [0, 0], "two different doses"),
    ([-1, 16], [False, True], [0, 0], "at least 0"),
  ],
)
def test_impossible_runs_are_refused(doses, successes, seeds, words):
  with pytest.raises(ValueError, match=words):
    dose_response.fit(doses, successes, seeds, curve_D=[16], level=0.95)
