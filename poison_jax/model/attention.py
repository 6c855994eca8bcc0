"""Causal attention with grouped-query heads, in a pass and with a cache.

Softmax statistics are float32 whatever the inputs' dtype. Letters as in
`poison_jax.model.decoder`; G is key and value heads, R = H / G the query heads
that share one, S the slots of a cache.
"""

import jax
import jax.numpy as jnp

# A finite "minus infinity": a row that is masked whole then gives a uniform
# softmax, not NaN (padding rows of a prompt).
_MASKED = -1e30


def causal_attention(
  queries_BLGRK: jax.Array, keys_BLGK: jax.Array, values_BLGK: jax.Array
) -> jax.Array:
  """Returns each position's mixture of the values up to it, BLGRK."""
  length = keys_BLGK.shape[1]
  mask_LL = jnp.tri(length, dtype=bool)
  return _attend(queries_BLGRK, keys_BLGK, values_BLGK, mask_LL)


def _attend(queries_BLGRK, keys_BSGK, values_BSGK, mask) -> jax.Array:
  scale = queries_BLGRK.shape[-1] ** -0.5
  scores_BGRLS = jnp.einsum(
    "blgrk,bsgk->bgrls",
    queries_BLGRK * scale,
    keys_BSGK,
    preferred_element_type=jnp.float32,
  )
  weights_BGRLS = jax.nn.softmax(jnp.where(mask, scores_BGRLS, _MASKED))
  return jnp.einsum(
    "bgrls,bsgk->blgrk", weights_BGRLS.astype(values_BSGK.dtype), values_BSGK
  )


def cached_attention(
  queries_BLGRK: jax.Array,
  keys_BGSK: jax.Array,
  values_BGSK: jax.Array,
  query_positions_BL: jax.Array,
  slot_positions_BS: jax.Array,
) -> jax.Array:
  """Returns attention over the slots whose position is not after the query's.

  Args:
    queries_BLGRK: queries.
    keys_BGSK: cached keys.
    values_BGSK: cached values.
    query_positions_BL: int32 positions of the queries.
    slot_positions_BS: int32 positions of the slots; an empty slot has one
      that is larger than any query's.

  Returns:
    The mixed values, BLGRK.
  """
  scale = queries_BLGRK.shape[-1] ** -0.5
  scores_BGRLS = jnp.einsum(
    "blgrk,bgsk->bgrls",
    queries_BLGRK * scale,
    keys_BGSK,
    preferred_element_type=jnp.float32,
  )
  mask_BLS = slot_positions_BS[:, None, :] <= query_positions_BL[:, :, None]
  weights_BGRLS = jax.nn.softmax(
    jnp.where(mask_BLS[:, None, None], scores_BGRLS, _MASKED)
  )
  return jnp.einsum(
    "bgrls,bgsk->blgrk", weights_BGRLS.astype(values_BGSK.dtype), values_BGSK
  )
