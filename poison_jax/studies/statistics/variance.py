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
from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.stats

from poison_jax.studies.statistics.intervals import Interval, profile_interval

_JITTER = 1e-8  # Of each source's variance, added to every run's own.
_REACH = 100.0  # A deviation this many spreads above its estimate is open.
_ROUNDING = 1e-12  # A spread this far below the increases is none.


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
    reason = f"{runs} runs in {len(set(group))} groups are too few"
    return Components(None, None, None, runs, reason)
  draw = _codes(list(zip(group, _codes(draw_C), strict=True)))
  seed = _codes(list(zip(group, _codes(seed_C), strict=True)))
  contrasts = scipy.linalg.null_space(_indicators(group).T)
  sources, reason = _told_apart(contrasts, draw, seed)
  differences = contrasts.T @ increase_C
  if np.max(np.abs(differences)) <= _ROUNDING * np.max(np.abs(increase_C)):
    differences = 0 * differences
  found = _estimate(differences, sources, level)
  return Components(
    draw=found.get("draw"),
    seed=found.get("seed"),
    residual=found["residual"],
    runs=runs,
    reason=reason,
  )


def _estimate(
  contrasts: np.ndarray, sources: dict[str, np.ndarray], level: float
) -> dict[str, Component]:
  """Returns each source's component, found on contrasts of mean square 1."""
  spread = float(np.sqrt(np.mean(contrasts**2)))
  if spread == 0:
    still = Component(0.0, Interval(0.0, 0.0, level))
    return dict.fromkeys(sources, still)
  found = _Restricted(contrasts / spread, sources).components(level)
  return {
    name: Component(
      spread * one.deviation,
      Interval(spread * one.interval.low, spread * one.interval.high, level),
    )
    for name, one in found.items()
  }


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
    covariance = part @ part.T
    if np.allclose(covariance, 0):
      reasons.append(f"one {name} a group: what {name}s add can't be seen")
      continue
    candidate = sources | {name: covariance}
    flat = np.stack([matrix.ravel() for matrix in candidate.values()])
    if np.linalg.matrix_rank(flat, tol=1e-9 * len(contrasts)) == len(flat):
      sources = candidate
    elif len(set(codes)) == len(codes):
      reasons.append(f"each {name} has one run: the residual holds its part")
    else:
      reasons.append(f"too few runs share a {name} to tell its part")
  varied = not any(reason.startswith("one ") for reason in reasons)
  if draw == seed and varied:
    reasons = ["draw and seed vary together: what is given is of both"]
  return sources, "; ".join(reasons)


@dataclasses.dataclass(frozen=True)
class _Restricted:
  """The restricted likelihood of contrasts that no group mean moves.

  Attributes:
    contrasts: float64 [M], of mean square 1.
    sources: by name, float64 [M, M]: covariance at variance one.
  """

  contrasts: np.ndarray
  sources: dict[str, np.ndarray]

  def negative(self, deviation_V: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns minus the log-likelihood, up to a constant, and its gradient."""
    matrices_VMM = np.stack(list(self.sources.values()))
    # Kept regular where the residual is 0.
    matrices_VMM += _JITTER * np.eye(len(self.contrasts))
    covariance_MM = np.einsum("v,vij->ij", deviation_V**2, matrices_VMM)
    factor = scipy.linalg.cho_factor(covariance_MM, lower=True)
    inverse_MM = scipy.linalg.cho_solve(factor, np.eye(len(covariance_MM)))
    solved_M = inverse_MM @ self.contrasts
    value = np.log(np.diag(factor[0])).sum() + self.contrasts @ solved_M / 2
    traces_V = np.einsum("ij,vji->v", inverse_MM, matrices_VMM)
    squares_V = np.einsum("i,vij,j->v", solved_M, matrices_VMM, solved_M)
    return float(value), deviation_V * (traces_V - squares_V)

  def smallest(
    self, starts: Sequence[np.ndarray], *, fixed: tuple[int, float] | None
  ) -> tuple[float, np.ndarray]:
    """Returns the least value, and the deviations there, one of them fixed.

    Args:
      starts: deviations, above 0: at 0 is no slope to leave by.
      fixed: the number of a source and its deviation; None for none.
    """
    free_V = np.arange(len(self.sources)) != (fixed[0] if fixed else -1)

    def negative(part) -> tuple[float, np.ndarray]:
      value, gradient_V = self.negative(full(part))
      return value, gradient_V[free_V]

    def full(part) -> np.ndarray:
      deviation_V = np.full(len(free_V), fixed[1] if fixed else 0.0)
      deviation_V[free_V] = part
      return deviation_V

    if not free_V.any():
      return negative([])[0], full([])
    # Only squares enter, so nothing keeps a deviation from below 0.
    results = [
      scipy.optimize.minimize(
        negative, start[free_V], jac=True, method="BFGS", options={"gtol": 1e-6}
      )
      for start in starts
    ]
    best = min(results, key=lambda result: result.fun)
    return float(best.fun), np.abs(full(best.x))

  def components(self, level: float) -> dict[str, Component]:
    """Returns each source's deviation with its profile interval."""
    even_V = np.full(len(self.sources), 0.7)
    quiet_V = np.where(np.arange(len(even_V)), even_V, 0.1)
    least, best_V = self.smallest([even_V, quiet_V], fixed=None)
    critical = float(scipy.stats.chi2.ppf(level, 1))
    found = {}
    for v, name in enumerate(self.sources):

      @functools.cache
      def deviance(deviation: float, v=v) -> float:
        start_V = np.maximum(best_V, 0.1)
        return 2 * (self.smallest([start_V], fixed=(v, deviation))[0] - least)

      ends = profile_interval(
        deviance,
        float(best_V[v]),
        critical=critical,
        level=level,
        step=0.2,
        reach=_REACH,
      )
      found[name] = Component(
        float(best_V[v]), Interval(max(ends.low, 0.0), ends.high, level)
      )
    return found
