"""A Llama-shaped decoder.

Glossary of the shape suffixes, for the whole package:

  B batch (rows)        L length (tokens a row)     D model width
  H query heads         K head size                 F feed-forward width
  V vocabulary          N layers                    P poisons or prompts
  G key and value heads R = H / G                   S slots of a cache

The module declares parameters; the arithmetic is in pure functions. Each
layer's parameter is one array with a leading axis N, scanned over or unrolled:
the tree, and so a checkpoint, is the same for both.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from poison_jax.config import ModelConfig
from poison_jax.model import attention

Params = Any  # A tree of arrays.

# Position of a cache slot that holds no token.
EMPTY = jnp.iinfo(jnp.int32).max


class Cache(NamedTuple):
  """Keys and values of the tokens seen so far.

  Tokens take the slots in the order of the calls, whatever their positions,
  so that a step writes one slice for all rows. Each layer has arrays of its
  own, which a loop over steps updates in place: one array with an axis N is
  copied whole each step (4 to 8 times slower on the CPU).
  """

  keys_BGSK: tuple[jax.Array, ...]  # N of them.
  values_BGSK: tuple[jax.Array, ...]
  positions_BS: jax.Array  # int32; EMPTY where a slot holds no token.
  used: jax.Array  # int32 scalar: slots written.


def init_cache(config: ModelConfig, batch: int, length: int) -> Cache:
  """Returns an empty cache for `length` tokens in each of `batch` rows.

  `length` counts every token passed to `Decoder.decode`, padding included.
  """
  shape = (batch, config.kv_heads, length, config.head_size)
  empty = jnp.zeros(shape, jnp.dtype(config.compute_dtype))
  return Cache(
    keys_BGSK=(empty,) * config.depth,
    values_BGSK=(empty,) * config.depth,
    positions_BS=jnp.full((batch, length), EMPTY, jnp.int32),
    used=jnp.int32(0),
  )


class Layers(nn.Module):
  """The parameters of all layers, each with a leading axis N."""

  config: ModelConfig

  @nn.compact
  def __call__(self) -> dict[str, jax.Array]:
    c = self.config
    matrix = nn.initializers.normal(c.init_scale)
    ones = nn.initializers.ones
    shapes = {
      "attention_norm": (ones, (c.width,)),
      "query": (matrix, (c.width, c.heads * c.head_size)),
      "key": (matrix, (c.width, c.kv_heads * c.head_size)),
      "value": (matrix, (c.width, c.kv_heads * c.head_size)),
      "attention_out": (matrix, (c.heads * c.head_size, c.width)),
      "feed_forward_norm": (ones, (c.width,)),
      "up": (matrix, (c.width, c.feed_forward)),
      "down": (matrix, (c.feed_forward, c.width)),
    }
    if c.activation == "swiglu":
      shapes["gate"] = (matrix, (c.width, c.feed_forward))
    if c.qk_norm:
      shapes["query_norm"] = (ones, (c.head_size,))
      shapes["key_norm"] = (ones, (c.head_size,))
    return {
      name: self.param(name, init, (c.depth, *shape), jnp.float32)
      for name, (init, shape) in shapes.items()
    }


class Decoder(nn.Module):
  """A decoder-only transformer over token ids 0 .. vocabulary_size - 1.

  RMSNorm before attention and feed-forward, rotary positions in Llama's
  half-split convention, grouped-query heads, no biases. Parameters are
  float32; products run in `config.compute_dtype`, norms' and softmax's
  statistics in float32.
  """

  config: ModelConfig
  vocabulary_size: int

  def setup(self):
    c = self.config
    matrix = nn.initializers.normal(c.init_scale)
    shape_VD = (self.vocabulary_size, c.width)
    self.embedding = self.param("embedding", matrix, shape_VD, jnp.float32)
    self.layers = Layers(c)
    self.final_norm = self.param(
      "final_norm", nn.initializers.ones, (c.width,), jnp.float32
    )
    if not c.tied_embeddings:
      self.output = self.param("unembedding", matrix, shape_VD, jnp.float32)

  def __call__(self, tokens_BL: jax.Array) -> jax.Array:
    """Returns the hidden states after the final norm, compute dtype, BLD."""
    c = self.config
    positions_L = jnp.arange(tokens_BL.shape[1])
    rotation = rotary(positions_L, size=c.head_size, theta=c.rope_theta)
    body = _remat(functools.partial(_layer, c, rotation), c.remat)
    x_BLD = self._embed(tokens_BL)
    layers = self.layers()
    if c.scan_layers:
      x_BLD, _ = jax.lax.scan(lambda x, w: (body(x, w), None), x_BLD, layers)
    else:
      for weights in _unstack(layers, c.depth):
        x_BLD = body(x_BLD, weights)
    return rms_norm(x_BLD, self.final_norm, epsilon=c.norm_epsilon)

  def unembedding(self) -> jax.Array:
    """Returns the output matrix, float32, VD."""
    return self.embedding if self.config.tied_embeddings else self.output

  def unembed(self, hidden_BLD: jax.Array) -> jax.Array:
    """Returns float32 logits, BLV, of hidden states of any leading shape."""
    return logits(hidden_BLD, self.unembedding())

  def decode(
    self, tokens_BL: jax.Array, positions_BL: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    """Returns hidden states after the final norm, BLD, and the longer cache.

    Args:
      tokens_BL: the next tokens: a whole prompt, or one a row.
      positions_BL: int32, each token's position in its row, ascending. A row
        forgets the tokens that it held at its first position and after: a
        prompt padded at its right is continued by passing the next token with
        the position of the first padding.
      cache: made by `init_cache`; must have L unused slots.
    """
    c = self.config
    slot_positions_BS = jnp.where(
      cache.positions_BS >= positions_BL[:, :1], EMPTY, cache.positions_BS
    )
    slot_positions_BS = jax.lax.dynamic_update_slice(
      slot_positions_BS, positions_BL.astype(jnp.int32), (0, cache.used)
    )
    rotation = rotary(positions_BL, size=c.head_size, theta=c.rope_theta)

    start = (0, 0, cache.used, 0)

    def attend(old, queries_BLGRK, *new_BLGK):
      keys_BGSK, values_BGSK = (
        jax.lax.dynamic_update_slice(slots, fresh.swapaxes(1, 2), start)
        for slots, fresh in zip(old, new_BLGK, strict=True)
      )
      mixed_BLGRK = attention.cached_attention(
        queries_BLGRK, keys_BGSK, values_BGSK, positions_BL, slot_positions_BS
      )
      return mixed_BLGRK, (keys_BGSK, values_BGSK)

    x_BLD = self._embed(tokens_BL)
    kept = []
    for weights, *old in zip(
      _unstack(self.layers(), c.depth),
      cache.keys_BGSK,
      cache.values_BGSK,
      strict=True,
    ):
      x_BLD, pair = _attention_part(
        c, rotation, x_BLD, weights, functools.partial(attend, old)
      )
      x_BLD = _feed_forward_part(c, x_BLD, weights)
      kept.append(pair)
    keys_BGSK, values_BGSK = zip(*kept, strict=True)
    hidden_BLD = rms_norm(x_BLD, self.final_norm, epsilon=c.norm_epsilon)
    used = cache.used + tokens_BL.shape[1]
    return hidden_BLD, Cache(keys_BGSK, values_BGSK, slot_positions_BS, used)

  def _embed(self, tokens_BL):
    dtype = jnp.dtype(self.config.compute_dtype)
    return _rows_over_devices(self.embedding.astype(dtype)[tokens_BL])


def logits(hidden_BLD: jax.Array, unembedding_VD: jax.Array) -> jax.Array:
  """Returns float32 logits; the product runs in the hidden states' dtype."""
  return jnp.einsum(
    "...d,vd->...v",
    hidden_BLD,
    unembedding_VD.astype(hidden_BLD.dtype),
    preferred_element_type=jnp.float32,
  )


def rms_norm(x: jax.Array, scale: jax.Array, *, epsilon: float) -> jax.Array:
  """Returns x over the root of its mean square, times scale; x's dtype."""
  wide = x.astype(jnp.float32)
  square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
  return (wide * jax.lax.rsqrt(square + epsilon) * scale).astype(x.dtype)


def rotary(
  positions: jax.Array, *, size: int, theta: float
) -> tuple[jax.Array, jax.Array]:
  """Returns float32 cosines and sines, [..., size / 2], of the positions."""
  frequencies = theta ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
  angles = positions[..., None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def _rotate(x_BLHK, rotation):
  """Rotates channel pairs (i, i + K/2): Llama's half-split convention."""
  cosine, sine = (r[..., None, :].astype(x_BLHK.dtype) for r in rotation)
  first, second = jnp.split(x_BLHK, 2, axis=-1)
  return jnp.concatenate(
    [first * cosine - second * sine, second * cosine + first * sine], axis=-1
  )


def _layer(config: ModelConfig, rotation, x_BLD, weights):
  def attend(queries_BLGRK, keys_BLGK, values_BLGK):
    mixed = attention.causal_attention(queries_BLGRK, keys_BLGK, values_BLGK)
    return mixed, None

  x_BLD, _ = _attention_part(config, rotation, x_BLD, weights, attend)
  return _feed_forward_part(config, x_BLD, weights)


def _attention_part(config: ModelConfig, rotation, x_BLD, weights, attend):
  """Returns x plus attention's output, and what `attend` keeps."""
  c = config
  batch, length, _ = x_BLD.shape
  y_BLD = rms_norm(x_BLD, weights["attention_norm"], epsilon=c.norm_epsilon)

  def heads(name, count):
    flat = y_BLD @ weights[name].astype(y_BLD.dtype)
    return flat.reshape(batch, length, count, c.head_size)

  queries_BLHK = heads("query", c.heads)
  keys_BLGK = heads("key", c.kv_heads)
  values_BLGK = heads("value", c.kv_heads)
  if c.qk_norm:
    e = c.norm_epsilon
    queries_BLHK = rms_norm(queries_BLHK, weights["query_norm"], epsilon=e)
    keys_BLGK = rms_norm(keys_BLGK, weights["key_norm"], epsilon=e)
  queries_BLGRK = _rotate(queries_BLHK, rotation).reshape(
    batch, length, c.kv_heads, c.heads // c.kv_heads, c.head_size
  )
  mixed, kept = attend(queries_BLGRK, _rotate(keys_BLGK, rotation), values_BLGK)
  flat = mixed.reshape(batch, length, c.heads * c.head_size)
  out_BLD = flat @ weights["attention_out"].astype(flat.dtype)
  return _rows_over_devices(x_BLD + out_BLD), kept


def _feed_forward_part(config: ModelConfig, x_BLD, weights):
  y_BLD = rms_norm(
    x_BLD, weights["feed_forward_norm"], epsilon=config.norm_epsilon
  )
  hidden_BLF = y_BLD @ weights["up"].astype(y_BLD.dtype)
  if config.activation == "swiglu":
    gate_BLF = y_BLD @ weights["gate"].astype(y_BLD.dtype)
    hidden_BLF = jax.nn.silu(gate_BLF) * hidden_BLF
  else:
    hidden_BLF = jax.nn.gelu(hidden_BLF)
  out_BLD = hidden_BLF @ weights["down"].astype(hidden_BLF.dtype)
  return _rows_over_devices(x_BLD + out_BLD)


def _remat(body, policy: str):
  if policy == "none":
    return body
  if policy == "dots":
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(body, policy=keep)
  return jax.checkpoint(body)


def _unstack(layers: dict[str, jax.Array], depth: int) -> list[dict]:
  """Returns a tree a layer.

  `split` and not indexing: its transpose is one concatenation, where that of
  N indexings is a sum of N arrays of full size.
  """
  parts = {
    name: [p.squeeze(0) for p in jnp.split(array, depth)]
    for name, array in layers.items()
  }
  return [{name: p[i] for name, p in parts.items()} for i in range(depth)]


def _rows_over_devices(x_BLD: jax.Array) -> jax.Array:
  """Keeps rows over the mesh's row axes, so that weights move, not tokens.

  Without a mesh in the context (one device, tests) this does nothing.
  """
  axes = jax.sharding.get_abstract_mesh().axis_names
  rows = tuple(a for a in ("data", "fsdp") if a in axes)
  if not rows:
    return x_BLD
  spec = PartitionSpec(rows, *[None] * (x_BLD.ndim - 1))
  return jax.lax.with_sharding_constraint(x_BLD, spec)
