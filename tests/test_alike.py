"""Which runs may share a program."""

import pathlib

import pytest
import small_run

from poison_jax.training.alike import batch_key, can_train_together


def _config(**changes):
  return small_run.make_config(pathlib.Path("store"), **changes)


@pytest.mark.parametrize(
  "changes",
  [
    {"poison__count": 0},
    {"poison__arm": "clean"},
    {"poison__payload_max": 12},
    {"seeds__init": 4, "seeds__sampling": 5},
    {"optimizer__learning_rate": 1e-5},
    {"seed": 8},
  ],
)
def test_what_is_data_to_the_program_may_differ(changes):
  configs = [_config(seeds__order=1), _config(seeds__order=1, **changes)]
  assert can_train_together(configs) is None
  assert batch_key(configs[0]) == batch_key(configs[1])


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"model__depth": 2}, "model.depth"),
    ({"train__batch": 4}, "train.batch"),
    ({"optimizer__schedule": "wsd"}, "optimizer.schedule"),
    ({"evaluation__prompts": 5}, "evaluation.prompts"),
    ({"checkpoint__every": 4}, "checkpoint.every"),
    ({"seed": 8}, "seeds.order"),  # From which the order's is derived.
  ],
)
def test_what_shapes_the_program_must_agree(changes, field):
  configs = [_config(), _config(), _config(**changes)]
  reason = can_train_together(configs)
  assert f"config.{field} (" in reason and "\n" not in reason
  assert batch_key(configs[0]) != batch_key(configs[2])


def test_a_pinned_order_is_that_order():
  pinned = _config(seed=8, seeds__order=_config().seed_for("order"))
  assert can_train_together([_config(), pinned]) is None
