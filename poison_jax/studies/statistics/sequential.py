"""A pre-registered rule that stops cells whose verdict is decided.

It looks at each evaluation of a run and may stop it for success (the increase
stands clearly above the threshold) or for failure (nearly all poisons were
seen and nothing has begun). It is a rule of thumb, not a test: it errs where
an increase that held for `consecutive` evaluations falls back before the end,
or one that had not begun rises late. Both errors can be counted on runs that
went to their end (`errors`), and should be before the rule is used.

A stopped run has no measure at its end. It is treated as missing by
`thresholds_by_dose.n50`, so a wrong stop widens an N50 and never moves it.
Runs that final curves need must not be triaged: `grid.triage` sees to that.
"""

import dataclasses
import enum
from collections.abc import Iterable, Sequence


class Decision(enum.Enum):
  """What becomes of a run after an evaluation."""

  CONTINUE = "continue"
  DECIDED_SUCCESS = "decided: success"
  DECIDED_FAILURE = "decided: failure"


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One evaluation of a run.

  Attributes:
    training_share: of the training steps done, 0 to 1.
    poisons_share: of the planned poisoned documents seen, 0 to 1.
    log_increase: mean log-perplexity, triggered minus clean, in nats.
  """

  training_share: float
  poisons_share: float
  log_increase: float


@dataclasses.dataclass(frozen=True)
class Rule:
  """When a run may stop; written down before the study runs.

  Attributes:
    success_after: share of training before which no run stops for success.
    success_above: increase in nats that every one of the last evaluations
      must exceed: well above the study's threshold.
    failure_after: share of training before which no run stops for failure.
    failure_poisons: share of the poisons that must have been seen by then.
    failure_below: increase in nats that every one of the last evaluations
      must stay below: well below the threshold.
    consecutive: how many last evaluations count, each of them after the
      share of training (and of poisons) asked for.
  """

  success_after: float
  success_above: float
  failure_after: float
  failure_poisons: float
  failure_below: float
  consecutive: int

  def __post_init__(self):
    shares = (self.success_after, self.failure_after, self.failure_poisons)
    if not all(0 <= value <= 1 for value in shares):
      raise ValueError(f"shares of a rule lie from 0 to 1, not {shares}")
    if self.failure_below >= self.success_above:
      raise ValueError(
        f"failure_below {self.failure_below} must lie under success_above "
        f"{self.success_above}"
      )
    if self.consecutive < 1:
      raise ValueError(f"consecutive is {self.consecutive}, at least 1")


@dataclasses.dataclass(frozen=True)
class Errors:
  """What the rule would have done to runs that went to their end.

  Attributes:
    runs: how many there are.
    stopped: how many it would have stopped.
    wrong: how many of those with the other verdict than their end.
    training_saved: share of all their training that it would have saved.
  """

  runs: int
  stopped: int
  wrong: int
  training_saved: float


def decide(rule: Rule, evaluations: Sequence[Evaluation]) -> Decision:
  """Returns what becomes of a run after its evaluations so far, in order."""
  last = evaluations[-rule.consecutive :]
  if len(last) < rule.consecutive:
    return Decision.CONTINUE
  if all(
    one.training_share >= rule.success_after
    and one.log_increase > rule.success_above
    for one in last
  ):
    return Decision.DECIDED_SUCCESS
  if all(
    one.training_share >= rule.failure_after
    and one.poisons_share >= rule.failure_poisons
    and one.log_increase < rule.failure_below
    for one in last
  ):
    return Decision.DECIDED_FAILURE
  return Decision.CONTINUE


def errors(
  rule: Rule, finished: Iterable[tuple[Sequence[Evaluation], bool]]
) -> Errors:
  """Counts the rule's errors on finished runs.

  Args:
    rule: to be judged.
    finished: of each run, its evaluations in order and its success at the
      end.
  """
  runs = stopped = wrong = 0
  saved = 0.0
  for evaluations, success in finished:
    runs += 1
    for seen in range(1, len(evaluations)):
      decision = decide(rule, evaluations[:seen])
      if decision is Decision.CONTINUE:
        continue
      stopped += 1
      wrong += (decision is Decision.DECIDED_SUCCESS) != success
      saved += 1 - evaluations[seen - 1].training_share
      break
  return Errors(runs, stopped, wrong, saved / runs if runs else 0.0)
