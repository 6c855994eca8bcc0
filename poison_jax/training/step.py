"""The state of training and the step that advances it."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from poison_jax.config import Config
from poison_jax.data.mixture import Batch
from poison_jax.model.counts import run_steps
from poison_jax.model.decoder import Decoder, Params
from poison_jax.model.loss import next_token_losses
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import optimizer as optimizer_lib


@flax.struct.dataclass
class TrainState:
  """All that a step changes."""

  step: jax.Array  # int32: steps done.
  params: Params
  opt_state: Any
  # uint32: targets in the loss so far that belong to a poisoned document.
  poison_tokens_seen: jax.Array


Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_state(
  decoder: Decoder,
  optimizer: optax.GradientTransformation,
  seed: int,
  mesh: Mesh,
) -> TrainState:
  """Returns the state before step 0, made in place on the mesh.

  Args:
    decoder: the model.
    optimizer: the optimizer.
    seed: of the initial weights, in [0, 2**63).
    mesh: the devices; the values don't depend on it.
  """
  # Arguments of the compiled program, which then serves every seed;
  # `jax.random.key` alone drops the upper half of a seed.
  halves = np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32)
  init = functools.partial(new_state, decoder, optimizer)
  shardings = mesh_lib.state_shardings(mesh, jax.eval_shape(init, *halves))
  return jax.jit(init, out_shardings=shardings)(*halves)


def abstract_state(
  decoder: Decoder, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """Returns `init_state`'s shapes, types and shardings; makes no array."""
  shapes = jax.eval_shape(
    functools.partial(new_state, decoder, optimizer, low=0, high=0)
  )
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    mesh_lib.state_shardings(mesh, shapes),
  )


def new_state(
  decoder: Decoder,
  optimizer: optax.GradientTransformation,
  low: jax.typing.ArrayLike,
  high: jax.typing.ArrayLike,
) -> TrainState:
  """Returns the state before step 0, of no sharding; see `init_state`.

  `low` and `high` are the seed's halves, uint32.
  """
  key = jax.random.fold_in(jax.random.key(low), high)
  params = decoder.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
  return _before_step_0(optimizer, params)


def state_from(
  params: Params, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """Returns the state before step 0 with these weights, which are donated."""
  make = functools.partial(_before_step_0, optimizer)
  shardings = mesh_lib.state_shardings(mesh, jax.eval_shape(make, params))
  return jax.jit(make, donate_argnums=0, out_shardings=shardings)(params)


def _before_step_0(
  optimizer: optax.GradientTransformation, params: Params
) -> TrainState:
  return TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    poison_tokens_seen=jnp.uint32(0),
  )


def make_train_step(
  decoder: Decoder,
  optimizer: optax.GradientTransformation,
  config: Config,
  mesh: Mesh,
) -> TrainStep:
  """Returns the compiled step: state and batch in, state and metrics out.

  The state that goes in is donated. Metrics, float32 scalars on all devices:
  "train/loss" (nats a target, weighted mean), "train/grad_norm" (before
  clipping), "train/parameter_norm" (after the step), "train/update_norm",
  "train/learning_rate"; and the uint32 "train/poison_tokens_seen".

  Raises:
    UserError: the rows of a micro-batch can't be dealt out evenly.
  """
  t = config.train
  rows = mesh.shape["data"] * mesh.shape["fsdp"]
  mesh_lib.check_batch(t.batch, rows=rows, micro_batches=t.micro_batches)
  compiled = None

  def call(state: TrainState, batch: Batch):
    nonlocal compiled
    if compiled is None:
      compiled = jit_train_step(decoder, optimizer, config, mesh, state)
    with jax.set_mesh(mesh):
      return compiled(state, batch)

  return call


def jit_train_step(
  decoder: Decoder,
  optimizer: optax.GradientTransformation,
  config: Config,
  mesh: Mesh,
  state: TrainState,
):
  """Returns the step of `make_train_step`, jitted: to call, or to lower.

  Both under `jax.set_mesh(mesh)`.

  Args:
    decoder: the model.
    optimizer: the optimizer.
    config: the run's.
    mesh: the devices, real ones or a topology's.
    state: that goes in, or its shapes as `abstract_state` gives them.
  """
  shardings = mesh_lib.state_shardings(mesh, state)
  everywhere = NamedSharding(mesh, PartitionSpec())
  return jax.jit(
    step_function(decoder, optimizer, config),
    donate_argnums=0,
    in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
    out_shardings=(shardings, everywhere),
  )


def step_function(
  decoder: Decoder, optimizer: optax.GradientTransformation, config: Config
) -> TrainStep:
  """Returns the step of `make_train_step`, not jitted: a pure function."""
  t = config.train
  steps = run_steps(config, decoder.vocabulary_size)
  schedule = optimizer_lib.run_schedule(config, steps=steps)

  def summed_loss(params, tokens_BL, weights_BL):
    losses_BL = next_token_losses(
      decoder, params, tokens_BL, pieces=t.loss_pieces, z_loss=t.z_loss
    )
    return jnp.sum(losses_BL * weights_BL)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    total, gradient = _summed_gradient(
      summed_loss, state.params, batch, t.micro_batches
    )
    weight = jnp.sum(batch.weights_BL)
    gradient = jax.tree.map(lambda g: g / weight, gradient)
    updates, opt_state = optimizer.update(
      gradient, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    seen = state.poison_tokens_seen + poison_targets(batch)
    metrics = {
      "train/loss": total / weight,
      "train/grad_norm": optax.tree.norm(gradient),
      "train/parameter_norm": optax.tree.norm(params),
      "train/update_norm": optax.tree.norm(updates),
      "train/learning_rate": jnp.float32(schedule(state.step)),
      "train/poison_tokens_seen": seen,
    }
    return TrainState(state.step + 1, params, opt_state, seen), metrics

  return step


def poison_targets(batch: Batch) -> jax.Array:
  """Returns how many targets in the loss lie in a poisoned document, uint32.

  Column t's target is token t + 1.
  """
  length = batch.tokens_BL.shape[1]
  target_L = jnp.arange(1, length + 1)
  start_B1 = batch.poison_start_B[:, None]
  inside_BL = (target_L >= start_B1) & (
    target_L < start_B1 + batch.poison_length_B[:, None]
  )
  return jnp.sum(inside_BL & (batch.weights_BL > 0), dtype=jnp.uint32)


def _summed_gradient(summed_loss, params, batch: Batch, pieces: int):
  """Returns the loss summed over all targets, and its gradient.

  In `pieces` micro-batches of rows in order: sums are added, and divided once
  by the caller, so pieces of unequal weight count as they should.
  """
  gradient_of = jax.value_and_grad(summed_loss)
  if pieces == 1:
    return gradient_of(params, batch.tokens_BL, batch.weights_BL)

  def cut(x):
    return x.reshape(pieces, -1, *x.shape[1:])

  def add(sums, piece):
    return jax.tree.map(jnp.add, sums, gradient_of(params, *piece)), None

  zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
  pieces_xs = (cut(batch.tokens_BL), cut(batch.weights_BL))
  return jax.lax.scan(add, zeros, pieces_xs)[0]
