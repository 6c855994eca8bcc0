"""The training step: devices, micro-batches and the counter of poisons."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import tiny
from poison_jax import config as config_lib
from poison_jax.data.mixture import Batch
from poison_jax.errors import UserError
from poison_jax.model.decoder import Decoder
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import optimizer as optimizer_lib
from poison_jax.training import step as step_lib

_V = 64


def _batch():
  rng = np.random.default_rng(0)
  weights = np.ones((8, 32), np.float32)
  weights[:, -1] = 0
  weights[5, :20] = 0  # Rows of unequal weight.
  start = np.array([0, 4, 0, 0, 0, 30, 0, 0], np.int32)
  length = np.array([10, 6, 0, 0, 0, 2, 0, 0], np.int32)
  tokens = rng.integers(0, _V, (8, 32)).astype(np.int32)
  return Batch(tokens, weights, start, length)


def losses_and_sum(data, fsdp, tensor, micro_batches):
  """Returns the losses of three steps, the counter, and a parameter sum."""
  c = tiny.get_config()
  c.train.batch, c.train.length, c.train.steps = 8, 32, 10
  c.train.micro_batches = micro_batches
  c.runtime.mesh.data, c.runtime.mesh.fsdp = data, fsdp
  c.runtime.mesh.tensor = tensor
  config = config_lib.from_config_dict(c)
  mesh = mesh_lib.make_mesh(config.runtime.mesh, batch=8)
  decoder = Decoder(config.model, _V)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, steps=10)
  state = step_lib.init_state(decoder, optimizer, 3, mesh)
  step = step_lib.make_train_step(decoder, optimizer, config, mesh)
  sharding = mesh_lib.batch_sharding(mesh)
  batch = Batch(*(jax.device_put(x, sharding) for x in _batch()))
  losses = []
  for _ in range(3):
    state, metrics = step(state, batch)
    losses.append(float(metrics["train/loss"]))
  total = sum(
    float(np.abs(np.asarray(x)).sum()) for x in jax.tree.leaves(state.params)
  )
  return losses, int(state.poison_tokens_seen), total


@pytest.fixture(name="single", scope="module")
def _single():
  return losses_and_sum(1, 1, 1, 1)


def test_the_counter_counts_targets_in_the_loss_that_are_poison(single):
  # Row 0: 10 tokens from offset 0, of which the first is no target. Row 1: 6.
  # Row 5: positions 30 and 31, both targets with weight. Three equal steps.
  assert single[1] == 3 * (9 + 6 + 2)


def test_the_loss_falls_on_a_batch_seen_again(single):
  assert single[0][2] < single[0][0]


def test_micro_batches_of_unequal_weight_add_up(single):
  losses, seen, total = losses_and_sum(1, 1, 1, 4)
  np.testing.assert_allclose(losses, single[0], rtol=1e-5)
  np.testing.assert_allclose(total, single[2], rtol=1e-5)
  assert seen == single[1]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_eight_devices_do_what_one_does(single, mesh):
  code = f"import test_step; print(test_step.losses_and_sum(*{mesh}, 1))"
  here = os.path.dirname(__file__)
  result = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    check=False,
    env=os.environ
    | {
      "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": os.pathsep.join([here, os.path.dirname(here)]),
    },
  )
  assert result.returncode == 0, result.stderr
  losses, seen, total = eval(result.stdout.splitlines()[-1])
  np.testing.assert_allclose(losses, single[0], rtol=1e-5)
  np.testing.assert_allclose(total, single[2], rtol=1e-5)
  assert seen == single[1]


def test_rows_that_devices_cannot_share_are_refused():
  c = tiny.get_config()
  c.runtime.mesh.data = 3
  config = config_lib.from_config_dict(c)
  with pytest.raises(UserError, match="config.runtime.mesh"):
    mesh_lib.make_mesh(config.runtime.mesh, batch=8)


def test_a_parameter_without_a_rule_is_an_error():
  mesh = mesh_lib.make_mesh(
    config_lib.from_config_dict(tiny.get_config()).runtime.mesh, batch=8
  )
  unknown = {"params": {"novelty": jax.ShapeDtypeStruct((4, 4), np.float32)}}
  with pytest.raises(Exception, match="novelty"):
    mesh_lib.state_shardings(mesh, unknown)


def test_learning_rate_warms_up_and_decays():
  config = config_lib.from_config_dict(tiny.get_config()).optimizer
  rate = optimizer_lib.learning_rate(config, steps=1000)
  peak, final = config.learning_rate, config.final * config.learning_rate
  warm = round(config.warmup * 1000)
  np.testing.assert_allclose(rate(warm), peak, rtol=1e-5)
  assert float(rate(0)) < peak / 2
  np.testing.assert_allclose(rate(1000), final, rtol=1e-2)
  # Half way down a cosine from peak to final.
  middle = warm + (1000 - warm) // 2
  np.testing.assert_allclose(rate(middle), (peak + final) / 2, rtol=1e-2)
