"""Causal attention with grouped-query heads, in a pass and with a cache.

Letters as in `poison_jax.model.decoder`; M is the queries of all heads that
share a key head. Scores lie with the keys in front (SM), so that the softmax
goes along the first axis, queries side by side; its statistics are float32
whatever the inputs' dtype.
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
    part_GBKM = _cut(q_GBKRL, start, end)
    scores_GBSM = contract_first(k_GBKL[..., :end], part_GBKM, batch=2)
    scores_GBSM += _causal_bias(start, end, q_GBKRL.shape[3])
    most = jnp.max(scores_GBSM, axis=2, keepdims=True)
    weights_GBSM = jnp.exp(scores_GBSM - most)
    scale = 1 / jnp.sum(weights_GBSM, axis=2, keepdims=True)
    weights_GBSM = weights_GBSM.astype(q_GBKRL.dtype)
    # Dividing the mixture, not the weights, touches K numbers, not S.
    mixed_GBKM = _mix(v_GBKL[..., :end], weights_GBSM) * scale
    mixed.append(mixed_GBKM.astype(q_GBKRL.dtype))
    kept.append((part_GBKM, mixed[-1], weights_GBSM, scale))
  return _join(mixed, q_GBKRL.shape), (k_GBKL, v_GBKL, kept)


def _backward(residuals, gradient_GRKBL):
  """The softmax's gradient is w (g - sum w g), and sum w g = mixed . g."""
  k_GBKL, v_GBKL, kept = residuals
  dtype, length = k_GBKL.dtype, k_GBKL.shape[-1]
  gradient_GBKRL = gradient_GRKBL.transpose(0, 3, 2, 1, 4)
  queries, keys, values = [], [], []
  for (start, end), (part_GBKM, mixed_GBKM, weights_GBSM, scale) in zip(
    _blocks(length), kept, strict=True
  ):
    scaled_GBKM = _cut(gradient_GBKRL, start, end).astype(jnp.float32) * scale
    mean = jnp.sum(mixed_GBKM * scaled_GBKM, axis=2, keepdims=True)
    scaled_GBKM = scaled_GBKM.astype(dtype)
    slopes_GBSM = contract_first(v_GBKL[..., :end], scaled_GBKM, batch=2)
    slopes_GBSM = (weights_GBSM * (slopes_GBSM - mean)).astype(dtype)
    queries.append(_mix(k_GBKL[..., :end], slopes_GBSM).astype(dtype))
    keys.append(_over_queries(slopes_GBSM, part_GBKM))
    values.append(_over_queries(weights_GBSM, scaled_GBKM))
  return (
    _join(queries, gradient_GBKRL.shape),
    _sum_of_prefixes(keys, length).transpose(0, 3, 1, 2).astype(dtype),
    _sum_of_prefixes(values, length).transpose(0, 3, 1, 2).astype(dtype),
  )


causal_attention.defvjp(_forward, _backward)


def _blocks(length: int) -> list[tuple[int, int]]:
  block = max(_SMALLEST_BLOCK, -(-length // _MOST_BLOCKS))
  return [(i, min(i + block, length)) for i in range(0, length, block)]


def _cut(x_GBKRL, start: int, end: int):
  """Returns a block's queries of all R heads as one axis, M."""
  return x_GBKRL[..., start:end].reshape(*x_GBKRL.shape[:3], -1)


def _join(parts_GBKM: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
  """Undoes `_cut` over all blocks: GRKBL."""
  parts = [part.reshape(*shape[:4], -1) for part in parts_GBKM]
  return jnp.concatenate(parts, axis=-1).transpose(0, 3, 2, 1, 4)


@functools.cache
def _causal_bias(start: int, end: int, shared: int) -> np.ndarray:
  """Returns what to add to these queries' scores, float32 SM.

  A constant: comparing positions inside the program took four times as long
  as the softmax's exponential.
  """
  before = np.arange(end)[:, None] <= np.arange(start, end)
  bias = np.where(before, np.float32(0), np.float32(_MASKED))
  return np.tile(bias, shared)


def _mix(values_GBKS, weights_GBSM):
  """Sums over the slots: GBKM."""
  return product(values_GBKS, weights_GBSM, (((3,), (2,)), ((0, 1), (0, 1))))


def _over_queries(weights_GBSM, parts_GBKM):
  """Sums over all queries of a group: GBSK."""
  return product(weights_GBSM, parts_GBKM, (((3,), (3,)), ((0, 1), (0, 1))))


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
