"""How many seeds would settle it: the whole test on simulated studies.

Each seed of each size draws its own N50, log-normal around the law
`N50 = c * amount^e`; a run succeeds where its dose reaches the N50 of its
seed; the ladders give censored N50s, these the verdict of `elasticity`.

Letters: R replicates, N seeds over all sizes, S sizes, D doses.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from poison_jax.studies.statistics import elasticity as elasticity_lib
from poison_jax.studies.statistics.elasticity import Verdict
from poison_jax.studies.statistics.proportions import Share, share


@dataclasses.dataclass(frozen=True)
class Design:
  """A study to simulate.

  Attributes:
    amounts: clean tokens (or parameters) of each size.
    doses: documents of each size's ladder; a zero is allowed and says nothing.
    n50: median N50 in documents at the geometric mean of the amounts.
    sigma: standard deviation of log N50 between seeds, in nats.
  """

  amounts: tuple[float, ...]
  doses: tuple[tuple[float, ...], ...]
  n50: float
  sigma: float


@dataclasses.dataclass(frozen=True)
class Row:
  """How often a design reaches each verdict.

  Attributes:
    seeds: of each size, as the amounts stand in the design.
    elasticity: the true one.
    verdicts: share of the replicates by verdict, with its interval.
  """

  seeds: tuple[int, ...]
  elasticity: float
  verdicts: dict[Verdict, Share]


def power_table(
  design: Design,
  *,
  elasticities: Sequence[float],
  seeds: Sequence[Sequence[int]],
  margin: float,
  level: float,
  replicates: int,
  rng: np.random.Generator,
) -> list[Row]:
  """Returns the shares of the verdicts for each number of seeds and truth.

  Args:
    design: what is simulated.
    elasticities: true ones: 0, 1, ...
    seeds: numbers to try, each one a size: (3, 3, 2).
    margin: of equivalence, the study's.
    level: of the test, the study's.
    replicates: simulated studies a row.
    rng: draws the N50s.

  Raises:
    ValueError: seeds of another number of sizes, or a design outside its
      ranges.
  """
  rows = []
  for numbers in seeds:
    for truth in elasticities:
      low_RN, high_RN, log_amount_N = simulate(
        design, truth, numbers, replicates=replicates, rng=rng
      )
      tests = elasticity_lib.p_values(
        low_RN, high_RN, log_amount_N, margin=margin
      )
      found = elasticity_lib.decide(tests, level=level)
      shares = {
        verdict: share(found.count(verdict), replicates, level=level)
        for verdict in Verdict
      }
      rows.append(Row(tuple(numbers), truth, shares))
  return rows


def simulate(
  design: Design,
  elasticity: float,
  seeds: Sequence[int],
  *,
  replicates: int,
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns logs of the N50s' bounds, [R, N] low and high, and amounts [N].

  Args:
    design: what is simulated.
    elasticity: the true one.
    seeds: of each size.
    replicates: R.
    rng: draws the N50s.

  Raises:
    ValueError: as `power_table` does.
  """
  _check(design, seeds)
  log_amount_S = np.log(design.amounts)
  log_amount_N = np.repeat(log_amount_S, seeds)
  mean_N = np.log(design.n50) + elasticity * (
    log_amount_N - log_amount_S.mean()
  )
  noise_RN = rng.normal(size=(replicates, len(mean_N)))
  # Of each size, by its own doses.
  parts = [
    bracket(log_n50_RN, doses)
    for log_n50_RN, doses in zip(
      np.split(mean_N + design.sigma * noise_RN, np.cumsum(seeds)[:-1], axis=1),
      design.doses,
      strict=True,
    )
  ]
  low_RN, high_RN = (
    np.concatenate(bounds, axis=1) for bounds in zip(*parts, strict=True)
  )
  return low_RN, high_RN, log_amount_N


def bracket(
  log_n50: np.ndarray, doses: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns logs of the doses between which each N50 lies; infinite outside.

  A dose equal to the N50 is enough.
  """
  log_dose_D = np.log(sorted(dose for dose in doses if dose > 0))
  edges = np.concatenate([[-np.inf], log_dose_D, [np.inf]])
  above = np.searchsorted(log_dose_D, log_n50, side="left")
  return edges[above], edges[above + 1]


def _check(design: Design, seeds: Sequence[int]) -> None:
  if len(seeds) != len(design.amounts):
    raise ValueError(f"{len(seeds)} seeds for {len(design.amounts)} sizes")
  if len(design.doses) != len(design.amounts):
    raise ValueError(
      f"{len(design.doses)} ladders for {len(design.amounts)} sizes"
    )
  if min(design.amounts) <= 0 or design.n50 <= 0 or design.sigma < 0:
    raise ValueError("amounts and n50 must be above 0, sigma at least 0")
  if not all(any(dose > 0 for dose in doses) for doses in design.doses):
    raise ValueError("it takes a dose above 0 at each size")
