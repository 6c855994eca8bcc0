"""Schedules: N slots exactly, nested, at equal shares of training."""

import dataclasses
import re

import pytest

from configs import base
from poison_jax import config as config_lib
from poison_jax.errors import UserError
from poison_jax.poison import keyed
from poison_jax.poison.schedules import choose_slots

_BASE = config_lib.from_config_dict(base.get_config()).poison
_SCHEDULES = {
  "uniform": {"schedule": "uniform"},
  "window": {"schedule": "window", "start": 0.2, "end": 0.7},
  "every": {
    "schedule": "every",
    "start": 0.1,
    "every_steps": 3,
    "rows_per_step": 2,
  },
}


def _slots(count, *, steps=100, batch=4, seed=0, **fields):
  config = dataclasses.replace(_BASE, count=count, **fields)
  return choose_slots(config, steps=steps, batch=batch, seed=seed)


@pytest.mark.parametrize("name", _SCHEDULES)
def test_a_larger_dose_leaves_the_smaller_one_where_it_was(name):
  largest = _slots(60, **_SCHEDULES[name])
  for count in (0, 1, 7, 25, 59):
    assert _slots(count, **_SCHEDULES[name]) == largest[:count]


@pytest.mark.parametrize("name", _SCHEDULES)
@pytest.mark.parametrize("seed", range(5))
def test_every_poison_has_a_slot_of_its_own(name, seed):
  slots = _slots(60, seed=seed, **_SCHEDULES[name])
  assert len(set(slots)) == len(slots) == 60
  assert 0 <= min(slots) <= max(slots) < 400
  assert slots != _slots(60, seed=seed + 1, **_SCHEDULES[name])


@pytest.mark.parametrize("count", [30, 397, 400])
def test_uniform_equals_probing_slot_by_slot(count):
  taken, expected = set(), []
  for k in range(count):
    slot = int(keyed.bits(3, "fraction", k) * 400 // 2**64)
    while slot in taken:
      slot = (slot + 1) % 400
    taken.add(slot)
    expected.append(slot)
  assert _slots(count, seed=3) == expected


def test_a_poison_lies_at_the_same_share_of_every_budget():
  small = _slots(50, steps=1_000, batch=4)
  large = _slots(50, steps=70_001, batch=64)
  for a, b in zip(small, large, strict=True):
    # A collision moves a poison by a slot or two.
    assert a / 4_000 == pytest.approx(b / (70_001 * 64), abs=3 / 4_000)


def test_uniform_is_uniform():
  slots = _slots(4_000, steps=100_000)
  quarters = [0] * 4
  for slot in slots:
    quarters[slot // 100_000] += 1
  # Four standard deviations of a count of 1000.
  assert all(abs(q - 1000) < 4 * 27.4 for q in quarters), quarters


def test_a_window_is_kept_and_used():
  slots = _slots(200, schedule="window", start=0.29, end=0.79)
  # Steps 29 to 78, though 0.29 * 100 is less than 29 in binary.
  assert min(slots) == 29 * 4
  assert max(slots) == 79 * 4 - 1
  assert len(set(slots)) == 200


def test_every_fills_each_kth_step():
  slots = _slots(
    13, schedule="every", start=0.5, every_steps=7, rows_per_step=3
  )
  steps = [slot // 4 for slot in slots]
  assert steps == [50] * 3 + [57] * 3 + [64] * 3 + [71] * 3 + [78]
  assert len(set(slots)) == 13
  whole = _slots(8, schedule="every", every_steps=1, rows_per_step=4)
  assert sorted(whole) == list(range(8))


@pytest.mark.parametrize(
  ("count", "fields", "message"),
  [
    (401, {}, "config.poison.count is 401, but .* 'uniform' has 400 slots"),
    (
      201,
      _SCHEDULES["window"],
      "is 201, but .* 'window' has 200 slots .steps 20 to 69 of 100",
    ),
    (
      61,
      _SCHEDULES["every"],
      "is 61, but .* 'every' can place 60: 2 in each of 30 steps, every 3 "
      "from step 10 of 100",
    ),
    (
      1,
      {"schedule": "window", "start": 0.301, "end": 0.302},
      "has 0 slots .an empty window",
    ),
  ],
)
def test_too_many_poisons_are_refused_with_both_numbers(count, fields, message):
  with pytest.raises(UserError) as error:
    _slots(count, **fields)
  assert re.search(message, str(error.value))
  assert "\n" not in str(error.value)


def test_no_poisons_need_no_slots():
  assert _slots(0, schedule="window", start=0.301, end=0.302) == []
