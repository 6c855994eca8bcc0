"""Power: simulated ladders are as asked, and more seeds settle more."""

import math

import numpy as np
import pytest

from poison_jax.studies.statistics import power, thresholds_by_dose
from poison_jax.studies.statistics.elasticity import Verdict

_DESIGN = power.Design(
  amounts=(660e3, 2.1e6, 6.6e6),
  doses=((0, 16, 32, 64, 128, 256),) * 3,
  n50=45,
  sigma=0.2,
)


def test_brackets_are_those_of_the_ladder_itself():
  doses = [0, 16, 32, 64, 128]
  n50s = [3, 16, 16.1, 40, 64, 128, 128.1, 500]
  low, high = power.bracket(np.log(n50s), doses)
  for n, n50 in enumerate(n50s):
    found = thresholds_by_dose.n50(doses, [0 < n50 <= d for d in doses])
    assert math.exp(low[n]) == pytest.approx(found.low)
    assert math.exp(high[n]) == pytest.approx(found.high)


@pytest.mark.parametrize("truth", [0, 1])
def test_simulated_n50s_follow_the_law(truth):
  # One seed without spread at each size: the law itself, bracketed.
  design = power.Design((1e6, 1e8), ((0, *range(1, 800)),) * 2, n50=50, sigma=0)
  low, high, log_amount = power.simulate(
    design, truth, (1, 1), replicates=1, rng=np.random.default_rng(0)
  )
  expected = [50 / 10**truth, 50 * 10**truth]
  for n in range(2):
    assert math.exp(low[0, n]) < expected[n] * (1 + 1e-9)
    assert math.exp(high[0, n]) > expected[n] * (1 - 1e-9)
  np.testing.assert_allclose(log_amount, np.log([1e6, 1e8]))


def test_each_size_has_its_own_doses():
  # N50s of 50 without spread; only the second size has a dose between 32 and
  # 128, and only the third none as high.
  design = power.Design(
    (1e6, 1e7, 1e8), ((32, 128), (0, 32, 64, 128), (16, 32)), n50=50, sigma=0
  )
  low, high, _ = power.simulate(
    design, 0, (2, 1, 1), replicates=1, rng=np.random.default_rng(0)
  )
  np.testing.assert_allclose(np.exp(low[0]), [32, 32, 32, 32])
  np.testing.assert_allclose(np.exp(high[0]), [128, 128, 64, np.inf])


def test_doses_of_one_size_do_not_count_for_another():
  """The tiny study: the highest dose is the smallest size's alone.

  With an elasticity of one the largest size's N50 is then out of reach, and
  ladders that end at 128 say so little that constant shares are rarely shown.
  Counted by hand over 1,000 simulated studies of a separate script, each seed
  bracketed by its size's list: 15.6 %, and 67 % with the doses of all sizes.
  """
  doses = (0, 16, 32, 64, 128)
  shares = {}
  for name, first in (("own", doses), ("all", (*doses, 256))):
    design = power.Design(
      (7.0e5, 2.46e6, 7.14e6),
      ((*doses, 256), first, first),
      n50=54,
      sigma=0.21,
    )
    (row,) = power.power_table(
      design,
      elasticities=(1,),
      seeds=((5, 5, 5),),
      margin=0.25,
      level=0.95,
      replicates=400,
      rng=np.random.default_rng(3),
    )
    shares[name] = row.verdicts[Verdict.PROPORTIONAL]
  assert shares["own"].interval.low < 0.156 < shares["own"].interval.high
  assert shares["all"].interval.low < 0.67 < shares["all"].interval.high


def test_more_seeds_settle_more():
  rows = power.power_table(
    _DESIGN,
    elasticities=(0, 1),
    seeds=((2, 2, 2), (3, 3, 2), (10, 10, 10)),
    margin=0.25,
    level=0.95,
    replicates=200,
    rng=np.random.default_rng(2),
  )
  assert [(row.seeds, row.elasticity) for row in rows] == [
    (seeds, truth)
    for seeds in ((2, 2, 2), (3, 3, 2), (10, 10, 10))
    for truth in (0, 1)
  ]
  right = {0: Verdict.CONSTANT, 1: Verdict.PROPORTIONAL}
  for row in rows:
    assert sum(share.successes for share in row.verdicts.values()) == 200
    assert all(share.runs == 200 for share in row.verdicts.values())
  for truth in (0, 1):
    shares = [
      row.verdicts[right[truth]] for row in rows if row.elasticity == truth
    ]
    assert shares[0].interval.high < shares[-1].interval.low
    # With ten seeds of small spread most studies are settled.
    assert shares[-1].value > 0.6


def test_the_same_numbers_come_of_the_same_seed():
  tables = [
    power.power_table(
      _DESIGN,
      elasticities=(0,),
      seeds=((2, 2, 2),),
      margin=0.25,
      level=0.95,
      replicates=20,
      rng=np.random.default_rng(seed),
    )
    for seed in (7, 7)
  ]
  assert tables[0] == tables[1]


@pytest.mark.parametrize(
  "changes, seeds, words",
  [
    ({}, (3, 3), "2 seeds for 3 sizes"),
    ({"sigma": -1}, (3, 3, 3), "sigma at least 0"),
    ({"doses": ((16,), (0,), (16,))}, (3, 3, 3), "a dose above 0 at each"),
    ({"doses": ((16,),)}, (3, 3, 3), "1 ladders for 3 sizes"),
  ],
)
def test_impossible_designs_are_refused(changes, seeds, words):
  settings = {
    "amounts": (1.0, 2.0, 4.0),
    "doses": ((16,),) * 3,
    "n50": 45,
    "sigma": 0.5,
  }
  with pytest.raises(ValueError, match=words):
    power.simulate(
      power.Design(**(settings | changes)),
      0,
      seeds,
      replicates=1,
      rng=np.random.default_rng(0),
    )
