"""The training step: sums, masks, counters, and the same on any mesh."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from small_model import VOCABULARY, change, make_batch, make_config

from poison_jax.config import Config, MeshConfig
from poison_jax.errors import UserError
from poison_jax.model.decoder import Decoder
from poison_jax.model.loss import next_token_losses
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import step as step_lib
from poison_jax.training.optimizer import learning_rate, make_optimizer

_CONFIG = make_config()


def _start(config: Config):
  """Returns the state before step 0 and the step."""
  mesh = mesh_lib.make_mesh(config.runtime.mesh, batch=config.train.batch)
  decoder = Decoder(config.model, VOCABULARY)
  optimizer = make_optimizer(config.optimizer, steps=config.train.steps)
  state = step_lib.init_state(decoder, optimizer, 5, mesh)
  return state, step_lib.make_train_step(decoder, optimizer, config, mesh)


def _run(config: Config, steps: int, batches=None):
  """Returns the parameters and each step's metrics, as plain numbers."""
  state, train_step = _start(config)
  seen = []
  for step in range(steps):
    batch = batches[step] if batches else make_batch(config, seed=step)
    state, metrics = train_step(state, batch)
    seen.append({k: float(v) for k, v in metrics.items()})
  return jax.tree.map(np.asarray, state), seen


def _close(a, b, tolerance):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, rtol=tolerance, atol=tolerance
    ),
    a,
    b,
  )


def test_metrics_are_those_of_a_step_taken_by_hand():
  state, train_step = _start(_CONFIG)
  params = jax.tree.map(jnp.copy, state.params)
  batch = make_batch(_CONFIG)
  weights_BL = np.random.default_rng(1).uniform(size=(8, 16))
  weights_BL[:, -1] = 0
  batch = batch._replace(weights_BL=weights_BL.astype(np.float32))
  decoder = Decoder(_CONFIG.model, VOCABULARY)

  def loss(params):
    losses_BL = next_token_losses(
      decoder, params, batch.tokens_BL, pieces=1, z_loss=0.0
    )
    return jnp.average(losses_BL, weights=batch.weights_BL)

  expected, gradient = jax.value_and_grad(loss)(params)
  state, first = train_step(state, batch)
  moved = jax.tree.map(jnp.copy, state.params)
  state, second = train_step(state, batch)
  update = jax.tree.map(jnp.subtract, state.params, moved)
  rate = learning_rate(_CONFIG.optimizer, steps=10)
  norm = optax.tree.norm
  np.testing.assert_allclose(first["train/loss"], expected, rtol=1e-6)
  np.testing.assert_allclose(
    first["train/grad_norm"], norm(gradient), rtol=1e-5
  )
  for step, metrics in enumerate((first, second)):
    np.testing.assert_allclose(
      metrics["train/learning_rate"], rate(step), rtol=1e-6
    )
  np.testing.assert_allclose(
    second["train/parameter_norm"], norm(state.params), rtol=1e-6
  )
  np.testing.assert_allclose(
    second["train/update_norm"], norm(update), rtol=1e-3
  )
  assert int(state.step) == 2


def test_gradients_of_matrices_leave_their_products_rounded_where_asked():
  """By the program: XLA's CPU compiler has no such product, and rounds not."""
  tokens_BL = make_batch(_CONFIG).tokens_BL

  def rounded(dtype):
    model = dataclasses.replace(
      _CONFIG.model,
      compute_dtype="bfloat16",
      gradient_dtype=dtype,
      tied_embeddings=False,
    )
    decoder = Decoder(model, VOCABULARY)
    params = decoder.init(jax.random.key(0), tokens_BL)["params"]

    def loss(params):
      return jnp.sum(
        next_token_losses(decoder, params, tokens_BL, pieces=1, z_loss=0.0)
      )

    gradient = jax.grad(loss)(params)
    found, todo = [], [jax.make_jaxpr(jax.grad(loss))(params).jaxpr]
    while todo:
      for equation in todo.pop().eqns:
        todo += jaxprs_in_params(equation.params)
        if equation.primitive.name == "dot_general":
          out = equation.outvars[0].aval
          found += [out.shape] if out.dtype == jnp.bfloat16 else []
    layer = {name: array.shape[1:] for name, array in params["layers"].items()}
    matrices = [shape for shape in layer.values() if len(shape) == 2]
    matrices.append(params["unembedding"].shape)
    return gradient, sorted(found), sorted(matrices)

  exact, none, _ = rounded("float32")
  close, found, matrices = rounded("bfloat16")
  assert none == [] and found == matrices
  _close(close, exact, 2**-7)


def test_masked_targets_have_no_effect():
  batch = make_batch(_CONFIG)
  batch.weights_BL[2, 3:] = 0
  other_BL = batch.tokens_BL.copy()
  # Column 3 is the last whose token is a target in the loss.
  other_BL[2, 4:] = (other_BL[2, 4:] + 7) % VOCABULARY
  other = batch._replace(tokens_BL=other_BL)
  a, a_metrics = _run(_CONFIG, 2, [batch] * 2)
  b, b_metrics = _run(_CONFIG, 2, [other] * 2)
  _close(a.params, b.params, 1e-6)
  assert a_metrics[0]["train/loss"] == pytest.approx(
    b_metrics[0]["train/loss"], rel=1e-6
  )


def test_poison_tokens_are_counted_by_their_targets():
  batch = make_batch(_CONFIG)
  start_B, length_B = np.zeros((2, 8), np.int32)
  # Row 0: none. Row 1: 5 in the middle. Row 2: 5 from offset 0, whose first
  # token is no target. Row 3: up to the row's end. Row 4: partly masked.
  start_B[1:5], length_B[1:5] = (3, 0, 11, 3), (5, 5, 5, 5)
  batch.weights_BL[4, 4:6] = 0  # Targets 5 and 6.
  batch = batch._replace(poison_start_B=start_B, poison_length_B=length_B)
  state, metrics = _run(_CONFIG, 2, [batch] * 2)
  assert [m["train/poison_tokens_seen"] for m in metrics] == [17, 34]
  assert state.poison_tokens_seen.dtype == np.uint32


@pytest.mark.parametrize("pieces", [2, 8])
def test_micro_batches_of_unequal_weight_give_the_same_step(pieces):
  batches = [make_batch(_CONFIG, seed=s) for s in range(3)]
  for batch in batches:
    batch.weights_BL[:3, 2:] = 0
  whole, whole_metrics = _run(_CONFIG, 3, batches)
  config = change(_CONFIG, "train", micro_batches=pieces)
  split, split_metrics = _run(config, 3, batches)
  _close(split.params, whole.params, 1e-6)
  for a, b in zip(split_metrics, whole_metrics, strict=True):
    assert a == pytest.approx(b, rel=1e-5)


def test_the_state_that_goes_in_is_donated():
  state, train_step = _start(_CONFIG)
  train_step(state, make_batch(_CONFIG))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_the_loss_falls_on_a_batch_seen_again():
  config = change(_CONFIG, "optimizer", learning_rate=0.02)
  _, metrics = _run(config, 10, [make_batch(config)] * 10)
  assert metrics[-1]["train/loss"] < 0.8 * metrics[0]["train/loss"]


def test_both_halves_of_a_seed_count():
  mesh = mesh_lib.make_mesh(_CONFIG.runtime.mesh, batch=8)
  decoder = Decoder(_CONFIG.model, VOCABULARY)
  optimizer = make_optimizer(_CONFIG.optimizer, steps=10)
  first = [
    step_lib.init_state(decoder, optimizer, seed, mesh).params["embedding"]
    for seed in (1, 1 + (1 << 40), 1, 2)
  ]
  assert (first[0] == first[2]).all()
  assert (first[0] != first[1]).any() and (first[0] != first[3]).any()


def test_micro_batches_that_devices_cannot_share_are_refused():
  class Mesh:
    shape = {"data": 2, "fsdp": 2, "tensor": 1}

  config = change(_CONFIG, "train", micro_batches=4)
  with pytest.raises(UserError, match="nearest legal: 16"):
    step_lib.make_train_step(
      Decoder(config.model, VOCABULARY), optax.sgd(0.1), config, Mesh()
    )


_MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2)]


def _on_a_mesh(sizes, dtype: str, micro_batches: int, pieces: int = 1):
  config = change(_CONFIG, "runtime", mesh=MeshConfig(*sizes))
  config = change(config, "model", compute_dtype=dtype)
  config = change(
    config, "train", micro_batches=micro_batches, loss_pieces=pieces
  )
  config = change(config, "optimizer", learning_rate=0.01)
  state, metrics = _run(config, 3)
  leaves = [leaf.ravel().tolist() for leaf in jax.tree.leaves(state.params)]
  return {"metrics": metrics, "params": leaves}


@pytest.fixture(scope="module")
def on_eight_devices():
  """What `_on_a_mesh` gives in a process with 8 devices, by mesh."""
  environment = dict(
    os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=8"
  )
  result = subprocess.run(
    [sys.executable, __file__],
    env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  # XLA warns where it makes an array whole on every device to move it.
  assert "full rematerialization" not in result.stderr
  return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("sizes", _MESHES, ids=str)
def test_eight_devices_train_as_one(on_eight_devices, sizes):
  one = _on_a_mesh((1, 1, 1), "float32", 1)
  many = on_eight_devices[str(sizes)]
  for a, b in zip(many["metrics"], one["metrics"], strict=True):
    assert a == pytest.approx(b, rel=1e-4)
  _close(many["params"], one["params"], 1e-4)


def test_eight_devices_train_as_one_with_the_loss_in_pieces(on_eight_devices):
  one = _on_a_mesh((1, 1, 1), "float32", 1)
  many = on_eight_devices["in pieces"]
  for a, b in zip(many["metrics"], one["metrics"], strict=True):
    assert a == pytest.approx(b, rel=1e-4)
  _close(many["params"], one["params"], 1e-4)


def test_eight_devices_train_as_one_in_bfloat16(on_eight_devices):
  one = _on_a_mesh((1, 1, 1), "bfloat16", 1)
  many = on_eight_devices["bfloat16"]
  for a, b in zip(many["metrics"], one["metrics"], strict=True):
    assert a["train/loss"] == pytest.approx(b["train/loss"], rel=5e-3)


if __name__ == "__main__":
  results = {str(sizes): _on_a_mesh(sizes, "float32", 1) for sizes in _MESHES}
  results["bfloat16"] = _on_a_mesh((2, 2, 2), "bfloat16", 2)
  # Of 16 columns, 5 at a time, on devices that have a row each.
  results["in pieces"] = _on_a_mesh((2, 4, 1), "float32", 1, pieces=4)
  print(json.dumps(results))
