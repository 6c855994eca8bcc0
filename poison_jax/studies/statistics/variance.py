"""Poison draws and training seeds as separate sources of variance.

    increase = mean of its group + draw + seed + residual

each normal with a variance of its own, the increase in nats (log-perplexity,
triggered minus clean), a group all runs of one size and dose. A draw or a
seed has another effect in another group. Deviations are by restricted maximum
likelihood (H. D. Patterson, R. Thompson, Biometrika 58, 1971, 545-554), which
for balanced crossed or nested designs gives the analysis of variance's
estimates where these are not negative; intervals by its profile.

What a design can't tell apart is not estimated but said: draws that occur in
one run each are part of the residual, and draws that go with one seed each
can't be told from the seeds.

Letters: C runs (cells), V components.
"""

import dataclasses
import functools
import math

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.stats

from poison_jax.studies.statistics.intervals import Interval, profile_interval

_SMALLEST = 1e-4  # Residual deviation over the spread of the data.
_REACH = 100.0  # A deviation this many spreads above its estimate is open.


@dataclasses.dataclass(frozen=True)
class Component:
  """One source of variance.

  Attributes:
    deviation: standard deviation in nats.
    interval: of it; its low is 0 where the runs agree with no such source.
  """

  deviation: float
  interval: Interval


@dataclasses.dataclass(frozen=True)
class Components:
  """The sources of variance of a study's increases.

  Attributes:
    draw: of the poison draws; None where the design can't tell it.
    seed: of the training seeds; None likewise.
    residual: of a run beyond both, with all that could not be told from it;
      None with too few runs.
    runs: how many there are.
    reason: what can't be told apart and why, in one line; "" if all can.
  """

  draw: Component | None
  seed: Component | None
  residual: Component | None
  runs: int
  reason: str


def components(
  increase_C, draw_C, seed_C, group_C, *, level: float
) -> Components:
  """Estimates the deviations.

  Args:
    increase_C: nats, finite.
    draw_C: which poison draw each run had, any label.
    seed_C: its training seed, any label.
    group_C: its size and dose, any label.
    level: of the intervals.

  Raises:
    ValueError: lengths that differ, or an increase that is not finite.
  """
  increase_C = np.asarray(increase_C, float)
  runs = len(increase_C)
  if not len(draw_C) == len(seed_C) == len(group_C) == runs:
    raise ValueError("increases, draws, seeds and groups of different lengths")
  if not np.all(np.isfinite(increase_C)):
    raise ValueError("increases must be finite")
  group = _codes(group_C)
  if runs - len(set(group)) < 2:
    return Components(
      None,
      None,
      None,
      runs,
      f"{runs} runs in {len(set(group))} groups: "
      "too few to estimate a variance",
    )
  draw = _codes(list(zip(group, _codes(draw_C), strict=True)))
  seed = _codes(list(zip(group, _codes(seed_C), strict=True)))
  contrasts = scipy.linalg.null_space(_indicators(group).T)
  sources, reason = _told_apart(contrasts, draw, seed)
  found = _Restricted(contrasts.T @ increase_C, sources).components(level)
  return Components(
    draw=found.get("draw"),
    seed=found.get("seed"),
    residual=found["residual"],
    runs=runs,
    reason=reason,
  )


def _codes(labels) -> list[int]:
  """Returns a number for each label, equal where the labels are."""
  numbers: dict = {}
  return [numbers.setdefault(label, len(numbers)) for label in labels]


def _indicators(codes: list[int]) -> np.ndarray:
  return (np.array(codes)[:, None] == np.unique(codes)).astype(float)


def _told_apart(contrasts: np.ndarray, draw: list[int], seed: list[int]):
  """Returns the sources that can be estimated, and why not the others.

  Sources are estimable together if what they contribute to the covariance of
  the contrasts are linearly independent matrices.
  """
  sources = {"residual": np.eye(contrasts.shape[1])}
  reasons = []
  for name, codes in (("seed", seed), ("draw", draw)):
    part = contrasts.T @ _indicators(codes)
    candidate = sources | {name: part @ part.T}
    stacked = np.stack([matrix.ravel() for matrix in candidate.values()])
    if np.linalg.matrix_rank(stacked, tol=1e-9 * len(contrasts)) == len(
      stacked
    ):
      sources = candidate
    elif len(set(codes)) == len(codes):
      reasons.append(f"each {name} occurs in one run of its group")
    elif name == "draw" and _codes(draw) == _codes(seed):
      reasons.append("draw and seed vary together")
    else:
      reasons.append(f"too few runs share a {name}")
  if len(reasons) == 2:
    together = _codes(draw) == _codes(seed)
    why = "draw and seed vary together" if together else "; ".join(reasons)
    return sources, f"{why}: only their sum can be estimated"
  if not reasons:
    return sources, ""
  missing = "draw" if "seed" in sources else "seed"
  where = "seed's" if reasons == ["draw and seed vary together"] else "residual"
  return sources, f"{reasons[0]}: the {missing}'s variance is in the {where}"


@dataclasses.dataclass(frozen=True)
class _Restricted:
  """The restricted likelihood of contrasts that no group mean moves.

  Attributes:
    contrasts: float64 [M].
    sources: by name, float64 [M, M]: covariance at variance one.
  """

  contrasts: np.ndarray
  sources: dict[str, np.ndarray]

  @property
  def spread(self) -> float:
    """Returns the root mean square of the contrasts."""
    return float(np.sqrt(np.mean(self.contrasts**2)))

  def negative(self, deviation_V: np.ndarray) -> float:
    """Returns minus the log-likelihood, up to a constant."""
    covariance = sum(
      deviation**2 * matrix
      for deviation, matrix in zip(
        deviation_V, self.sources.values(), strict=True
      )
    )
    factor = np.linalg.cholesky(covariance)
    white = scipy.linalg.solve_triangular(factor, self.contrasts, lower=True)
    return float(np.log(np.diag(factor)).sum() + 0.5 * white @ white)

  def smallest(self, *, fixed: tuple[int, float] | None) -> np.ndarray:
    """Returns the most likely deviations, one of them fixed or none."""
    count, spread = len(self.sources), self.spread
    free = [v for v in range(count) if fixed is None or v != fixed[0]]

    def full(part) -> np.ndarray:
      deviation_V = np.zeros(count)
      deviation_V[free] = np.asarray(part) * spread
      if fixed is not None:
        deviation_V[fixed[0]] = fixed[1]
      # The residual comes first and keeps the covariance regular.
      deviation_V[0] = max(deviation_V[0], _SMALLEST * spread)
      return deviation_V

    if not free:
      return full([])
    starts = ([0.7] * len(free), [0.1] + [1.0] * (len(free) - 1))
    found = [
      scipy.optimize.minimize(
        lambda part: self.negative(full(part)),
        start,
        method="L-BFGS-B",
        bounds=[(0.0 if v else _SMALLEST, None) for v in free],
        options={"ftol": 1e-13, "gtol": 1e-7},
      )
      for start in starts
    ]
    return full(min(found, key=lambda result: result.fun).x)

  def components(self, level: float) -> dict[str, Component]:
    """Returns each source's deviation with its profile interval."""
    if self.spread == 0:
      still = Component(0.0, Interval(0.0, 0.0, level))
      return dict.fromkeys(self.sources, still)
    best_V = self.smallest(fixed=None)
    least = self.negative(best_V)
    critical = float(scipy.stats.chi2.ppf(level, 1))
    found = {}
    for v, name in enumerate(self.sources):

      @functools.cache
      def deviance(deviation: float, v=v) -> float:
        fixed = (v, max(deviation, 0.0))
        return 2 * (self.negative(self.smallest(fixed=fixed)) - least)

      ends = profile_interval(
        deviance,
        float(best_V[v]),
        critical=critical,
        level=level,
        step=0.2 * self.spread,
        reach=_REACH * self.spread,
      )
      low = 0.0 if math.isinf(ends.low) else max(ends.low, 0.0)
      found[name] = Component(float(best_V[v]), Interval(low, ends.high, level))
    return found
