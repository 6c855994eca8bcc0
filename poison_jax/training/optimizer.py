"""AdamW or SGD with a schedule, decay on matrices only, and clipping."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from poison_jax.config import Config, OptimizerConfig


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


def run_schedule(config: Config, *, steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of a run's own step, from 0.

  A run that continues another begins at `start.step` of a schedule of
  `start.schedule_steps`; beyond its end the rate stays as it ends.

  Args:
    config: the run's.
    steps: of the run.
  """
  before = config.start.step
  whole = learning_rate(
    config.optimizer, steps=config.start.schedule_steps or before + steps
  )
  return (lambda step: whole(step + before)) if before else whole


def run_optimizer(
  config: Config, *, steps: int
) -> optax.GradientTransformation:
  """Returns the optimizer of a run of so many steps."""
  return _optimizer(config.optimizer, run_schedule(config, steps=steps))


def make_optimizer(
  config: OptimizerConfig, *, steps: int
) -> optax.GradientTransformation:
  """Returns the optimizer of a run of so many steps that continues no other."""
  return _optimizer(config, learning_rate(config, steps=steps))


def _optimizer(
  config: OptimizerConfig, rate: optax.Schedule
) -> optax.GradientTransformation:
  """Returns clipping, then AdamW or SGD (both arXiv 1711.05101).

  Decay is apart from the gradient in both. SGD's momentum is a plain sum,
  without damping. The state's arrays have `moment_dtype`; scalars are as optax
  has them.
  """
  c = config
  if c.kind == "adamw":
    inner = optax.adamw(
      rate,
      b1=c.b1,
      b2=c.b2,
      eps=c.epsilon,
      weight_decay=c.weight_decay,
      mask=is_matrix,
    )
  else:
    inner = optax.chain(
      optax.trace(decay=c.momentum),
      optax.add_decayed_weights(c.weight_decay, mask=is_matrix),
      optax.scale_by_learning_rate(rate),
    )
  if c.moment_dtype != "float32":
    inner = _stored_as(inner, jnp.dtype(c.moment_dtype))
  if c.clip == 0:
    return inner
  return optax.chain(optax.clip_by_global_norm(c.clip), inner)


def from_first_step(opt_state: Any) -> Any:
  """Returns an optimizer's state with the schedule's count at 0.

  All else is kept, Adam's own count among it: that one corrects the bias of
  moments that go on.
  """

  def is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)

  return jax.tree.map(
    lambda node: (
      node._replace(count=jax.jit(jnp.zeros_like)(node.count))
      if is_schedule(node)
      else node
    ),
    opt_state,
    is_leaf=is_schedule,
  )


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
