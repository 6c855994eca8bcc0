"""The rule that stops decided runs."""

import pytest

from poison_jax.studies.statistics import sequential
from poison_jax.studies.statistics.sequential import (
  Decision,
  Evaluation,
  Rule,
)

_SETTINGS = {
  "success_after": 0.3,
  "success_above": 3.0,
  "failure_after": 0.8,
  "failure_poisons": 0.75,
  "failure_below": 0.2,
  "consecutive": 2,
}
_RULE = Rule(**_SETTINGS)


def _run(*log_increases, poisons=None):
  """Returns evaluations at tenths of training, from 0.1 on."""
  shares = [(n + 1) / 10 for n in range(len(log_increases))]
  return [
    Evaluation(share, share if poisons is None else poisons, log_increase)
    for share, log_increase in zip(shares, log_increases, strict=True)
  ]


@pytest.mark.parametrize(
  "evaluations, decision",
  [
    ([], Decision.CONTINUE),
    (_run(5.0), Decision.CONTINUE),
    # High enough, but one of the two came before its time.
    (_run(0.0, 5.0, 5.0), Decision.CONTINUE),
    (_run(0.0, 5.0, 5.0, 5.0), Decision.DECIDED_SUCCESS),
    (_run(0.0, 5.0, 5.0, 2.0), Decision.CONTINUE),
    (_run(0.0, 5.0, 5.0, 3.0), Decision.CONTINUE),
    (_run(*[0.0] * 8), Decision.CONTINUE),
    (_run(*[0.0] * 9), Decision.DECIDED_FAILURE),
    (_run(*[0.0] * 8, 0.2), Decision.CONTINUE),
    # The poisons come late: nothing is decided before they were seen.
    (_run(*[0.0] * 9, poisons=0.7), Decision.CONTINUE),
    (_run(*[1.0] * 10), Decision.CONTINUE),
  ],
)
def test_decisions(evaluations, decision):
  assert sequential.decide(_RULE, evaluations) is decision


def test_errors_are_counted_on_finished_runs():
  late = _run(*[0.0] * 9, 6.0)
  clear = _run(0.0, 0.0, *[5.0] * 8)
  fallen = _run(0.0, 0.0, *[5.0] * 7, 0.0)
  slow = _run(*[1.0] * 10)
  found = sequential.errors(
    _RULE, [(late, True), (clear, True), (fallen, False), (slow, False)]
  )
  assert (found.runs, found.stopped, found.wrong) == (4, 3, 2)
  # Stopped after 0.9, 0.4 and 0.4 of training.
  assert found.training_saved == pytest.approx((0.1 + 0.6 + 0.6) / 4)


def test_no_runs_have_no_errors():
  assert sequential.errors(_RULE, []) == sequential.Errors(0, 0, 0, 0.0)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"failure_after": 1.2}, "from 0 to 1"),
    ({"failure_below": 3.0}, "must lie under success_above"),
    ({"consecutive": 0}, "at least 1"),
  ],
)
def test_impossible_rules_are_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    Rule(**(_SETTINGS | changes))
