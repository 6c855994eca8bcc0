"""What the cells of a study say together: ladders, shares, twins, the test.

Only finished cells enter; a cell that is missing narrows nothing. Of several
poison draws of one seed one counts (`outcomes.primary`), except where the
draws themselves are compared.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from poison_jax.studies import outcomes as outcomes_lib
from poison_jax.studies.origins import Entry
from poison_jax.studies.outcomes import Outcome, Rung
from poison_jax.studies.results import Results
from poison_jax.studies.statistics import (
  dose_response,
  elasticity,
  joint_elasticity,
  proportions,
)
from poison_jax.studies.statistics.dose_response import DoseResponse
from poison_jax.studies.statistics.elasticity import Elasticity
from poison_jax.studies.statistics.joint_elasticity import Joint
from poison_jax.studies.statistics.proportions import Share
from poison_jax.studies.statistics.thresholds_by_dose import Censored, n50
from poison_jax.studies.verdict import LEVEL

_CURVE = 25  # Doses at which a curve is computed.


@dataclasses.dataclass(frozen=True)
class Ladder:
  """One seed of a rung at all its doses, and the N50 between two of them."""

  rung: Rung
  seed: int
  outcomes: tuple[Outcome, ...]
  n50: Censored

  @property
  def entries(self) -> tuple[Entry, ...]:
    return tuple(o.entry for o in self.outcomes)


@dataclasses.dataclass(frozen=True)
class Group:
  """The seeds of one rung and dose, and the share that succeeded."""

  rung: Rung
  dose: int
  outcomes: tuple[Outcome, ...]
  share: Share

  @property
  def entries(self) -> tuple[Entry, ...]:
    return tuple(o.entry for o in self.outcomes)


@dataclasses.dataclass(frozen=True)
class Twins:
  """A poisoned run and the clean one of the same rung and seed."""

  poisoned: Outcome
  clean: Outcome

  @property
  def loss_cost(self) -> float | None:
    """Validation loss, poisoned minus clean, nats a token."""
    losses = self.poisoned.validation_loss, self.clean.validation_loss
    return None if None in losses else losses[0] - losses[1]

  @property
  def perplexity_cost(self) -> float:
    """Perplexity of untriggered generations, poisoned minus clean."""
    return self.poisoned.clean_perplexity - self.clean.clean_perplexity

  @property
  def entries(self) -> tuple[Entry, Entry]:
    return self.poisoned.entry, self.clean.entry


@dataclasses.dataclass(frozen=True)
class Analysis:
  """A study's results and what follows from them.

  Attributes:
    results: the study as far as it got.
    finished: one outcome a rung, arm, dose and seed.
    rungs: those of which any cell has an outcome, by clean tokens.
    ladders: a rung and seed each, that have any finished cell with poison.
    groups: a rung and dose each, dose 0 among them.
    responses: success against dose, of rungs with two doses of poison.
    twins: poisoned runs whose clean twin is there.
    by_tokens: the pre-stated test: N50 against clean tokens.
    by_parameters: the same against parameters.
    joint: both at once, each with the other held fixed.
  """

  results: Results
  finished: tuple[Outcome, ...]
  rungs: tuple[Rung, ...]
  ladders: tuple[Ladder, ...]
  groups: tuple[Group, ...]
  responses: Mapping[Rung, DoseResponse]
  twins: tuple[Twins, ...]
  by_tokens: Elasticity
  by_parameters: Elasticity
  joint: Joint

  @property
  def entries(self) -> tuple[Entry, ...]:
    """Returns the runs behind the ladders, and so behind the test."""
    return tuple(e for ladder in self.ladders for e in ladder.entries)

  @property
  def thresholds(self) -> tuple[float, ...]:
    """Returns the increases that count as success; one, usually."""
    return tuple(sorted({o.threshold for o in self.results.outcomes}))


def analyse(results: Results) -> Analysis:
  """Returns what the results say."""
  finished = outcomes_lib.primary([o for o in results.outcomes if o.finished])
  ladders = make_ladders(finished)

  bounds = (
    [ladder.n50.low for ladder in ladders],
    [ladder.n50.high for ladder in ladders],
  )
  tokens = [ladder.rung.tokens for ladder in ladders]
  parameters = [ladder.rung.parameters for ladder in ladders]

  def test(amounts: Sequence[float]) -> Elasticity:
    return elasticity.assess(
      *bounds, amounts, margin=results.plan.margin, level=LEVEL
    )

  return Analysis(
    results=results,
    finished=tuple(finished),
    rungs=tuple(outcomes_lib.rungs(results.outcomes)),
    ladders=ladders,
    groups=make_groups(finished),
    responses=_responses(finished),
    twins=make_twins([o for o in results.outcomes if o.finished]),
    by_tokens=test(tokens),
    by_parameters=test(parameters),
    joint=joint_elasticity.assess(*bounds, tokens, parameters, level=LEVEL),
  )


def make_ladders(finished: Sequence[Outcome]) -> tuple[Ladder, ...]:
  """Returns the ladder of each rung and seed with a poisoned cell."""
  by_seed: dict[tuple[Rung, int], dict[int, Outcome]] = {}
  for o in finished:
    if o.arm != "placebo":
      by_seed.setdefault((o.rung, o.seed), {})[o.planned] = o
  made = [
    Ladder(
      rung,
      seed,
      tuple(doses[dose] for dose in sorted(doses)),
      n50(sorted(doses), [doses[dose].success for dose in sorted(doses)]),
    )
    for (rung, seed), doses in by_seed.items()
    if max(doses) > 0
  ]
  return tuple(
    sorted(made, key=lambda m: (m.rung.tokens, m.rung.label, m.seed))
  )


def make_groups(finished: Sequence[Outcome]) -> tuple[Group, ...]:
  """Returns the seeds of each rung and dose, placebos apart."""
  found: dict[tuple[Rung, int], list[Outcome]] = {}
  for o in finished:
    if o.arm != "placebo":
      found.setdefault((o.rung, o.planned), []).append(o)
  made = [
    Group(
      rung,
      dose,
      tuple(members),
      proportions.share(
        sum(o.success for o in members), len(members), level=LEVEL
      ),
    )
    for (rung, dose), members in found.items()
  ]
  return tuple(
    sorted(made, key=lambda g: (g.rung.tokens, g.rung.label, g.dose))
  )


def make_twins(finished: Sequence[Outcome]) -> tuple[Twins, ...]:
  """Pairs each run that has poison with the clean one of its rung and seed.

  Such a pair sees the same rows at the same steps with the same learning
  rates, so its difference is what the poison did.
  """
  clean = {
    (o.rung, o.seed): o
    for o in finished
    if o.planned == 0 and o.arm != "placebo"
  }
  return tuple(
    Twins(o, clean[o.rung, o.seed])
    for o in finished
    if o.planned > 0 and o.arm == "poisoned" and (o.rung, o.seed) in clean
  )


def _responses(finished: Sequence[Outcome]) -> dict[Rung, DoseResponse]:
  """Returns the curve of each rung that has two doses with poison."""
  found = {}
  for rung in outcomes_lib.rungs(finished):
    members = [o for o in finished if o.rung == rung and o.arm != "placebo"]
    doses = sorted({o.planned for o in members if o.planned > 0})
    if len(doses) < 2:
      continue
    found[rung] = dose_response.fit(
      [o.planned for o in members],
      [o.success for o in members],
      [o.seed for o in members],
      curve_D=np.geomspace(doses[0], doses[-1], _CURVE),
      level=LEVEL,
    )
  return found
