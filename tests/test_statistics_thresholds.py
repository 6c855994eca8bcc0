"""N50 of one ladder of doses: between which doses it lies."""

import math

import pytest

from poison_jax.studies.statistics import thresholds_by_dose
from poison_jax.studies.statistics.thresholds_by_dose import Censoring

_DOSES = (0, 16, 32, 64, 128)
_INF = math.inf


def _successes(pattern: str) -> list[bool | None]:
  return [{"+": True, "-": False, "?": None}[sign] for sign in pattern]


@pytest.mark.parametrize(
  "pattern, low, high, censoring",
  [
    ("---++", 32, 64, Censoring.INTERVAL),
    ("-++++", 0, 16, Censoring.LEFT),
    ("-----", 128, _INF, Censoring.RIGHT),
    ("----+", 64, 128, Censoring.INTERVAL),
    # A run that is missing or was stopped narrows nothing.
    ("--?++", 16, 64, Censoring.INTERVAL),
    ("-?+++", 0, 32, Censoring.LEFT),
    ("----?", 64, _INF, Censoring.RIGHT),
    ("?--++", 32, 64, Censoring.INTERVAL),
    ("-????", 0, _INF, Censoring.UNOBSERVED),
    ("?????", 0, _INF, Censoring.UNOBSERVED),
  ],
)
def test_monotone_ladders(pattern, low, high, censoring):
  found = thresholds_by_dose.n50(_DOSES, _successes(pattern))
  assert (found.low, found.high) == (low, high)
  assert found.censoring is censoring
  assert found.monotone and not found.clean_success


@pytest.mark.parametrize(
  "pattern, low, high",
  [
    ("-+-++", 0, 64),  # Success at 16, failure at 32.
    ("--+-+", 16, 128),
    ("--+--", 16, _INF),  # No lasting success.
    ("-+--+", 0, 128),
    ("-+?-+", 0, 128),
  ],
)
def test_other_ladders_give_the_widest_interval(pattern, low, high):
  found = thresholds_by_dose.n50(_DOSES, _successes(pattern))
  assert (found.low, found.high, found.monotone) == (low, high, False)


def test_a_success_without_poison_is_flagged_and_bounds_from_above_only():
  found = thresholds_by_dose.n50(_DOSES, _successes("+++++"))
  assert (found.low, found.high) == (0, 16)
  assert found.clean_success and found.monotone
  leaked = thresholds_by_dose.n50(_DOSES, _successes("+--++"))
  assert (leaked.low, leaked.high) == (0, 64)
  assert leaked.clean_success and not leaked.monotone
  alone = thresholds_by_dose.n50((0,), [True])
  assert (alone.low, alone.high) == (0, _INF)


def test_the_order_of_the_doses_does_not_matter():
  pairs = list(zip(_DOSES, _successes("---++"), strict=True))
  doses, successes = zip(*reversed(pairs), strict=True)
  assert thresholds_by_dose.n50(doses, successes) == thresholds_by_dose.n50(
    _DOSES, _successes("---++")
  )


@pytest.mark.parametrize(
  "doses, successes",
  [((16, 16), (True, False)), ((-1, 16), (False, True)), ((16,), ())],
)
def test_ladders_that_are_none_are_refused(doses, successes):
  with pytest.raises(ValueError, match="doses"):
    thresholds_by_dose.n50(doses, successes)
