"""The optimizer: schedules at their corners, decay, clipping, AdamW."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_model import make_config, make_decoder

from poison_jax.training.optimizer import (
  is_matrix,
  learning_rate,
  make_optimizer,
)

_CONFIG = dataclasses.replace(
  make_config().optimizer,
  learning_rate=2.0,
  warmup=0.1,
  final=0.1,
  decay=0.2,
  weight_decay=0.0,
  clip=0.0,
)


def _rates(schedule: str, **fields) -> np.ndarray:
  config = dataclasses.replace(_CONFIG, schedule=schedule, **fields)
  rate = learning_rate(config, steps=100)
  return np.array([rate(step) for step in range(100)])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_schedules_rise_to_the_peak_and_end_at_the_final_rate(schedule):
  rates = _rates(schedule)
  np.testing.assert_allclose(rates[:11], np.linspace(0, 2, 11), rtol=1e-5)
  last = 2.0 if schedule == "constant" else 0.2
  np.testing.assert_allclose(rates[-1], last, rtol=1e-5)
  assert (np.diff(rates[10:]) <= 1e-6).all()


def test_schedules_have_their_shapes_between():
  share = np.arange(90) / 89
  cosine = 0.2 + 1.8 * (1 + np.cos(np.pi * share)) / 2
  np.testing.assert_allclose(_rates("cosine")[10:], cosine, rtol=1e-4)
  linear = 2 - 1.8 * share
  np.testing.assert_allclose(_rates("linear")[10:], linear, rtol=1e-4)
  wsd = _rates("wsd")
  np.testing.assert_allclose(wsd[10:80], 2.0)
  assert wsd[80] < 2.0 and wsd[79] == 2.0


def test_no_warm_up_begins_at_the_peak():
  assert _rates("cosine", warmup=0.0)[0] == 2.0


def test_a_run_may_have_one_step_only():
  for schedule in ("cosine", "linear", "constant", "wsd"):
    config = dataclasses.replace(_CONFIG, schedule=schedule)
    assert np.isfinite(learning_rate(config, steps=1)(0))


def _update(config, params, gradients):
  optimizer = make_optimizer(config, steps=10)
  return optimizer.update(gradients, optimizer.init(params), params)[0]


def test_the_first_step_is_adamws():
  config = dataclasses.replace(
    _CONFIG, warmup=0.0, weight_decay=0.1, epsilon=1e-3
  )
  params = {"up": jnp.array([[3.0, -4.0]]), "final_norm": jnp.array([2.0])}
  gradients = {"up": jnp.array([[0.5, 2.0]]), "final_norm": jnp.array([0.5])}
  updates = _update(config, params, gradients)
  # Corrected moments of the first step are g and g squared.
  direction = np.array([[0.5 / 0.501, 2.0 / 2.001]])
  expected = -2.0 * (direction + 0.1 * np.array([[3.0, -4.0]]))
  np.testing.assert_allclose(updates["up"], expected, rtol=1e-5)
  np.testing.assert_allclose(updates["final_norm"], -2 * direction[0, :1])


def test_moments_in_bfloat16_take_half_the_bytes_and_nearly_the_same_way():
  config = dataclasses.replace(_CONFIG, warmup=0.0, learning_rate=0.1)
  low = dataclasses.replace(config, moment_dtype="bfloat16")
  found = []
  for each in (config, low):
    optimizer = make_optimizer(each, steps=200)
    params = {"up": jnp.array([[3.0, -4.0, 1.0]])}
    state = optimizer.init(params)
    for step in range(50):
      gradients = {"up": params["up"] * (1 + 0.3 * jnp.sin(step))}
      updates, state = optimizer.update(gradients, state, params)
      params = optax.apply_updates(params, updates)
    found.append((params["up"], state))
  dtypes = [
    {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim}
    for _, state in found
  ]
  assert dtypes == [{"float32"}, {"bfloat16"}]
  assert found[1][0].dtype == jnp.float32
  np.testing.assert_allclose(found[1][0], found[0][0], atol=0.05)
  assert (found[1][0] != found[0][0]).any()


def test_the_gradient_is_clipped_to_its_global_norm():
  # So large an epsilon makes the update proportional to the gradient.
  config = dataclasses.replace(_CONFIG, warmup=0.0, clip=1.0, epsilon=1e6)
  params = {"up": jnp.zeros((1, 1)), "down": jnp.zeros((1, 1))}

  def size(scale):
    gradients = {
      "up": jnp.full((1, 1), 0.3 * scale),
      "down": jnp.full((1, 1), 0.4 * scale),
    }
    updates = _update(config, params, gradients)
    return np.array([updates["up"].item(), updates["down"].item()])

  np.testing.assert_allclose(size(10.0), 2 * size(1.0), rtol=1e-5)
  np.testing.assert_allclose(size(0.1), 0.1 * size(1.0), rtol=1e-5)


def test_decay_falls_on_every_matrix_and_on_no_scale():
  model = dataclasses.replace(
    make_config().model, qk_norm=True, tied_embeddings=False
  )
  _, params = make_decoder(model)
  chosen = is_matrix(params)
  assert {k for k, v in chosen["layers"].items() if not v} == {
    "attention_norm",
    "feed_forward_norm",
    "query_norm",
    "key_norm",
  }
  assert chosen["embedding"] and chosen["unembedding"]
  assert not chosen["final_norm"]
  biased = dataclasses.replace(model, qk_norm=False, norm="layer", biases=True)
  _, params = make_decoder(biased)
  chosen = is_matrix(params)
  matrices = {k for k, v in chosen["layers"].items() if v}
  assert {f"{k}_bias" for k in matrices} < params["layers"].keys()
  assert not any(v for k, v in chosen["layers"].items() if "bias" in k)
  assert not chosen["final_norm_bias"]


def test_sgd_is_a_sum_of_gradients_and_decay_apart():
  config = dataclasses.replace(
    _CONFIG, kind="sgd", momentum=0.5, warmup=0.0, weight_decay=0.1, final=1.0
  )
  optimizer = make_optimizer(config, steps=10)
  params = {"up": jnp.array([[3.0, -4.0]]), "final_norm": jnp.array([2.0])}
  state = optimizer.init(params)
  trace = {name: np.zeros(p.shape) for name, p in params.items()}
  for gradient in (1.0, -2.0, 0.25):
    gradients = jax.tree.map(lambda p, g=gradient: p * 0 + g, params)
    updates, state = optimizer.update(gradients, state, params)
    for name in params:
      trace[name] = gradient + 0.5 * trace[name]
      decay = 0.1 * np.asarray(params[name]) if name == "up" else 0.0
      expected = -2.0 * (trace[name] + decay)
      np.testing.assert_allclose(updates[name], expected, rtol=1e-6)
    params = optax.apply_updates(params, updates)


def test_sgd_keeps_one_array_a_parameter():
  config = dataclasses.replace(_CONFIG, kind="sgd", moment_dtype="bfloat16")
  params = {"up": jnp.ones((2, 3))}
  state = make_optimizer(config, steps=10).init(params)
  arrays = [x for x in jax.tree.leaves(state) if x.ndim]
  assert [(a.shape, a.dtype) for a in arrays] == [((2, 3), jnp.bfloat16)]
