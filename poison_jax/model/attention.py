"""Causal attention with grouped-query heads, in a pass and with a cache.

Letters as in `poison_jax.model.decoder`. Scores lie with the keys in front
(SRL), so that the softmax goes along the first axis, tokens side by side; its
statistics are float32 whatever the inputs' dtype.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from poison_jax.model.products import contract_first, product

# A finite "minus infinity": a row that is masked whole then gives a uniform
# softmax, not NaN (padding rows of a prompt).
_MASKED = -1e30

# Queries go in blocks, each against the keys up to its own end: half of the
# work is above the diagonal. Blocks of 64 and of 256 were slower at 256 tokens
# (LOG.md, "Training step"); more than 8 only lengthen the program.
_SMALLEST_BLOCK = 128
_MOST_BLOCKS = 8


@jax.custom_vjp
def causal_attention(
  queries_GRKBL: jax.Array, keys_GKBL: jax.Array, values_GKBL: jax.Array
) -> jax.Array:
  """Returns each position's mixture of the values up to it, GRKBL.

  Args:
    queries_GRKBL: scaled queries.
    keys_GKBL: keys.
    values_GKBL: values.
  """
  return _forward(queries_GRKBL, keys_GKBL, values_GKBL)[0]


def _forward(queries_GRKBL, keys_GKBL, values_GKBL):
  q_GBKRL = queries_GRKBL.transpose(0, 3, 2, 1, 4)
  k_GBKL, v_GBKL = keys_GKBL.swapaxes(1, 2), values_GKBL.swapaxes(1, 2)
  mixed, kept = [], []
  for start, end in _blocks(k_GBKL.shape[-1]):
    scores_GBSRL = contract_first(
      k_GBKL[..., :end], q_GBKRL[..., start:end], batch=2
    )
    scores_GBSRL += _causal_bias(start, end)[:, None]
    most = jnp.max(scores_GBSRL, axis=2, keepdims=True)
    weights_GBSRL = jnp.exp(scores_GBSRL - most)
    scale = 1 / jnp.sum(weights_GBSRL, axis=2, keepdims=True)
    weights_GBSRL = weights_GBSRL.astype(q_GBKRL.dtype)
    # Dividing the mixture, not the weights, touches K numbers, not S.
    mixed.append(_mix(v_GBKL[..., :end], weights_GBSRL) * scale)
    kept.append((weights_GBSRL, scale))
  mixed_GBKRL = jnp.concatenate(mixed, axis=-1).astype(q_GBKRL.dtype)
  residuals = (q_GBKRL, k_GBKL, v_GBKL, mixed_GBKRL, kept)
  return mixed_GBKRL.transpose(0, 3, 2, 1, 4), residuals


def _backward(residuals, gradient_GRKBL):
  """The softmax's gradient is w (g - sum w g), and sum w g = mixed . g."""
  q_GBKRL, k_GBKL, v_GBKL, mixed_GBKRL, kept = residuals
  dtype, length = q_GBKRL.dtype, k_GBKL.shape[-1]
  gradient_GBKRL = gradient_GRKBL.transpose(0, 3, 2, 1, 4)
  scaled_GBKRL = gradient_GBKRL.astype(jnp.float32) * jnp.concatenate(
    [scale for _, scale in kept], axis=-1
  )
  mean = jnp.sum(
    mixed_GBKRL.astype(jnp.float32) * scaled_GBKRL, axis=2, keepdims=True
  )
  scaled_GBKRL = scaled_GBKRL.astype(dtype)
  queries, keys, values = [], [], []
  for (start, end), (weights_GBSRL, _) in zip(
    _blocks(length), kept, strict=True
  ):
    part_GBKRL = scaled_GBKRL[..., start:end]
    scores_GBSRL = contract_first(v_GBKL[..., :end], part_GBKRL, batch=2)
    scores_GBSRL = weights_GBSRL.astype(jnp.float32) * (
      scores_GBSRL - mean[..., start:end]
    )
    scores_GBSRL = scores_GBSRL.astype(dtype)
    queries.append(_mix(k_GBKL[..., :end], scores_GBSRL))
    keys.append(_over_queries(scores_GBSRL, q_GBKRL[..., start:end]))
    values.append(_over_queries(weights_GBSRL, part_GBKRL))
  gradients = (
    jnp.concatenate(queries, axis=-1).transpose(0, 3, 2, 1, 4),
    _sum_of_prefixes(keys, length).transpose(0, 3, 1, 2),
    _sum_of_prefixes(values, length).transpose(0, 3, 1, 2),
  )
  return jax.tree.map(lambda g: g.astype(dtype), gradients)


causal_attention.defvjp(_forward, _backward)


def _blocks(length: int) -> list[tuple[int, int]]:
  block = max(_SMALLEST_BLOCK, -(-length // _MOST_BLOCKS))
  return [(i, min(i + block, length)) for i in range(0, length, block)]


@functools.cache
def _causal_bias(start: int, end: int) -> np.ndarray:
  """Returns what to add to the scores of these queries, float32 SL.

  A constant: comparing positions inside the program took four times as long
  as the softmax's exponential.
  """
  before = np.arange(end)[:, None] <= np.arange(start, end)
  return np.where(before, np.float32(0), np.float32(_MASKED))


def _mix(values_GBKS, weights_GBSRL):
  """Sums over the slots: GBKRL."""
  return product(values_GBKS, weights_GBSRL, (((3,), (2,)), ((0, 1), (0, 1))))


def _over_queries(weights_GBSRL, gradient_GBKRL):
  """Sums over all queries of a group: GBSK."""
  return product(
    weights_GBSRL, gradient_GBKRL, (((3, 4), (3, 4)), ((0, 1), (0, 1)))
  )


def _sum_of_prefixes(parts_GBSK: list[jax.Array], length: int) -> jax.Array:
  """Adds arrays that hold the first slots only."""
  total = parts_GBSK[-1]
  for part in parts_GBSK[:-1]:
    missing = length - part.shape[2]
    total += jnp.pad(part, ((0, 0), (0, 0), (0, missing), (0, 0)))
  return total


def cached_attention(
  queries_GRKBL: jax.Array,
  keys_BGSK: jax.Array,
  values_BGSK: jax.Array,
  query_positions_BL: jax.Array,
  slot_positions_BS: jax.Array,
) -> jax.Array:
  """Returns attention over the slots whose position is not after the query's.

  Args:
    queries_GRKBL: scaled queries.
    keys_BGSK: cached keys.
    values_BGSK: cached values.
    query_positions_BL: int32 positions of the queries.
    slot_positions_BS: int32 positions of the slots; an empty slot has one
      that is larger than any query's.

  Returns:
    The mixed values, GRKBL.
  """
  batches = ((0, 1), (0, 1))
  queries_BGRLK = queries_GRKBL.transpose(3, 0, 1, 4, 2)
  scores_BGRLS = product(queries_BGRLK, keys_BGSK, (((4,), (3,)), batches))
  mask_BLS = slot_positions_BS[:, None, :] <= query_positions_BL[:, :, None]
  weights_BGRLS = jax.nn.softmax(
    jnp.where(mask_BLS[:, None, None], scores_BGRLS, _MASKED)
  ).astype(values_BGSK.dtype)
  mixed_BGRLK = product(weights_BGRLS, values_BGSK, (((4,), (2,)), batches))
  return mixed_BGRLK.transpose(1, 2, 4, 0, 3).astype(queries_GRKBL.dtype)
