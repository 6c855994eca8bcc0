"""AdamW with a schedule, decay on matrices only, and clipping."""

import jax
import jax.numpy as jnp
import optax

from poison_jax.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, *, steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the step, 0 to steps - 1.

  It rises from 0 over the first `warmup` share of the steps, and ends at
  `final` times the peak on the last one; "wsd" stays at the peak until its
  decay begins.
  """
  c = config
  peak, floor = c.learning_rate, c.learning_rate * c.final
  warmup = round(c.warmup * steps)
  rest = max(1, steps - 1 - warmup)
  if c.schedule == "cosine":
    after = optax.cosine_decay_schedule(peak, rest, alpha=c.final)
  elif c.schedule == "linear":
    after = optax.linear_schedule(peak, floor, rest)
  elif c.schedule == "constant":
    after = optax.constant_schedule(peak)
  else:
    decay = min(rest, max(1, round(c.decay * steps)))
    after = optax.linear_schedule(peak, floor, decay, rest - decay)
  if warmup == 0:
    return after
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
  config: OptimizerConfig, *, steps: int
) -> optax.GradientTransformation:
  """Returns clipping, then AdamW (arXiv 1711.05101) under the schedule.

  Its state's arrays have `moment_dtype`; scalars are as optax has them.
  """
  c = config
  adamw = optax.adamw(
    learning_rate(c, steps=steps),
    b1=c.b1,
    b2=c.b2,
    eps=c.epsilon,
    weight_decay=c.weight_decay,
    mask=is_matrix,
  )
  if c.moment_dtype != "float32":
    adamw = _stored_as(adamw, jnp.dtype(c.moment_dtype))
  if c.clip == 0:
    return adamw
  return optax.chain(optax.clip_by_global_norm(c.clip), adamw)


def _stored_as(
  inner: optax.GradientTransformation, dtype: jnp.dtype
) -> optax.GradientTransformation:
  """Keeps the arrays of a float32 transformation's state in another dtype."""

  def cast(state, to):
    return jax.tree.map(lambda x: x.astype(to) if x.ndim else x, state)

  def update(gradients, state, params=None):
    wide = cast(state, jnp.float32)
    updates, wide = inner.update(gradients, wide, params)
    return updates, cast(wide, dtype)

  return optax.GradientTransformation(
    lambda params: cast(inner.init(params), dtype), update
  )


def is_matrix(params):
  """Returns True for each matrix of a parameter tree.

  False for norms' scales and for biases.
  """

  def by_name(path, _):
    return not path[-1].key.endswith(("norm", "bias"))

  return jax.tree_util.tree_map_with_path(by_name, params)
