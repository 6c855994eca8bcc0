"""A decoder that its config makes a Llama, a Qwen 3 or a GPT-NeoX.

Glossary of the shape suffixes, for the whole package:

  B batch (rows)        L length (tokens a row)     D model width
  H query heads         K head size                 F feed-forward width
  V vocabulary          N layers                    P poisons or prompts
  G key and value heads R = H / G                   S slots of a cache

Inside, features are in front and tokens behind (x_DBL); why, and what it
brings: `poison_jax.model.products`. At the rim hidden states are BLD.

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
from poison_jax.model import attention, backends
from poison_jax.model.counts import embedding_rows, rotated_channels
from poison_jax.model.products import linear, product

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
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
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
    # A bias is as long as what its matrix, or its norm's scale, puts out.
    shapes |= {
      f"{name}_bias": (zeros, shape[-1:])
      for name, (init, shape) in shapes.items()
      if (c.biases if init is matrix else c.norm == "layer")
    }
    return {
      name: self.param(name, init, (c.depth, *shape), jnp.float32)
      for name, (init, shape) in shapes.items()
    }


class Decoder(nn.Module):
  """A decoder-only transformer over token ids 0 .. vocabulary_size - 1.

  RMSNorm or LayerNorm before attention and feed-forward, which come one after
  the other or side by side; rotary positions in Llama's half-split convention,
  on all channels of a head or on its first; grouped-query heads; biases or
  none. Parameters are float32; products run in `config.compute_dtype`, norms'
  and softmax's statistics in float32.

  `back_end` computes attention in passes over whole rows. It has a default,
  the one that runs anywhere, because it is no part of what the model is.
  """

  config: ModelConfig
  vocabulary_size: int
  back_end: backends.BackEnd = "xla"

  def setup(self):
    c = self.config
    matrix = nn.initializers.normal(c.init_scale)
    shape_VD = (embedding_rows(c, self.vocabulary_size), c.width)
    self.embedding = self.param("embedding", matrix, shape_VD, jnp.float32)
    self.layers = Layers(c)
    self.final_norm = self.param(
      "final_norm", nn.initializers.ones, (c.width,), jnp.float32
    )
    self.final_norm_bias = (
      self.param(
        "final_norm_bias", nn.initializers.zeros, (c.width,), jnp.float32
      )
      if c.norm == "layer"
      else None
    )
    if not c.tied_embeddings:
      self.output = self.param("unembedding", matrix, shape_VD, jnp.float32)

  def __call__(self, tokens_BL: jax.Array) -> jax.Array:
    """Returns the hidden states after the final norm, compute dtype, BLD."""
    return jnp.moveaxis(self.features(tokens_BL), 0, -1)

  def features(self, tokens_BL: jax.Array) -> jax.Array:
    """Returns what `__call__` does, features in front: DBL."""
    c = self.config
    positions_1L = jnp.arange(tokens_BL.shape[1])[None]
    rotation = rotary(positions_1L, c)
    # The rows that shapes are made from are too short for the kernels.
    back_end = "xla" if self.is_initializing() else self.back_end
    body = functools.partial(_layer_of_a_pass, c, back_end, rotation)
    body = _remat(body, c.remat)
    x_DBL = self._embed(tokens_BL)
    layers = self.layers()
    if c.scan_layers:
      x_DBL, _ = jax.lax.scan(lambda x, w: (body(x, w), None), x_DBL, layers)
    else:
      for weights in _unstack(layers, c.depth):
        x_DBL = body(x_DBL, weights)
    return self._last_norm(x_DBL)

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
    rotation = rotary(positions_BL, c)

    start = (0, 0, cache.used, 0)

    def attend(old, queries_GRKBL, *new_GKBL):
      keys_BGSK, values_BGSK = (
        jax.lax.dynamic_update_slice(slots, new.transpose(2, 0, 3, 1), start)
        for slots, new in zip(old, new_GKBL, strict=True)
      )
      mixed_GRKBL = attention.cached_attention(
        queries_GRKBL, keys_BGSK, values_BGSK, positions_BL, slot_positions_BS
      )
      return mixed_GRKBL, (keys_BGSK, values_BGSK)

    x_DBL = self._embed(tokens_BL)
    kept = []
    for weights, *old in zip(
      _unstack(self.layers(), c.depth),
      cache.keys_BGSK,
      cache.values_BGSK,
      strict=True,
    ):
      x_DBL, pair = _layer(
        c, rotation, x_DBL, weights, functools.partial(attend, old)
      )
      kept.append(pair)
    keys_BGSK, values_BGSK = zip(*kept, strict=True)
    x_DBL = self._last_norm(x_DBL)
    used = cache.used + tokens_BL.shape[1]
    hidden_BLD = jnp.moveaxis(x_DBL, 0, -1)
    return hidden_BLD, Cache(keys_BGSK, values_BGSK, slot_positions_BS, used)

  def _last_norm(self, x_DBL):
    weights = {"scale": self.final_norm, "scale_bias": self.final_norm_bias}
    return _norm(self.config, x_DBL, weights, "scale")

  def _embed(self, tokens_BL):
    # A gather, and a scatter for its gradient: on the CPU, a product with
    # one-hot rows took 7 times as long already at 256 ids.
    x_BLD = _together(self.embedding)[tokens_BL]
    dtype = jnp.dtype(self.config.compute_dtype)
    return _rows_over_devices(jnp.moveaxis(x_BLD, -1, 0).astype(dtype))


def logits(hidden_BLD: jax.Array, unembedding_VD: jax.Array) -> jax.Array:
  """Returns float32 logits; the product runs in the hidden states' dtype."""
  last = hidden_BLD.ndim - 1
  low_VD = unembedding_VD.astype(hidden_BLD.dtype)
  return product(hidden_BLD, low_VD, (((last,), (1,)), ((), ())))


def rms_norm(x_CBL: jax.Array, scale_C, *, epsilon: float) -> jax.Array:
  """Returns x over the root of its mean square, times scale; x's dtype.

  Args:
    x_CBL: any leading axes, then the features C that the mean goes over.
    scale_C: float32.
    epsilon: added to the mean square.
  """
  wide = x_CBL.astype(jnp.float32)
  square = jnp.mean(jnp.square(wide), axis=-3, keepdims=True)
  wide = wide * jax.lax.rsqrt(square + epsilon) * scale_C[:, None, None]
  return wide.astype(x_CBL.dtype)


def layer_norm(x_CBL: jax.Array, scale_C, bias_C, *, epsilon: float):
  """Returns x less its mean, over its deviation, times scale, plus bias.

  As `rms_norm`; `epsilon` is added to the variance.
  """
  wide = x_CBL.astype(jnp.float32)
  wide -= jnp.mean(wide, axis=-3, keepdims=True)
  variance = jnp.mean(jnp.square(wide), axis=-3, keepdims=True)
  wide *= jax.lax.rsqrt(variance + epsilon)
  wide = wide * scale_C[:, None, None] + bias_C[:, None, None]
  return wide.astype(x_CBL.dtype)


def rotary(
  positions_BL: jax.Array, config: ModelConfig
) -> tuple[jax.Array, jax.Array]:
  """Returns float32 factors of the rotated channels and of their partners.

  Each is [B, 2, half of the rotated channels, L]: cosines, and sines with the
  first half's negated, so that a rotation is x * cosine + partner * sine.
  """
  size = rotated_channels(config)
  exponents = -jnp.arange(0, size, 2, dtype=jnp.float32) / size
  frequencies = _scaled(config.rope_theta**exponents, config)
  angles = frequencies[:, None] * positions_BL.astype(jnp.float32)[:, None]
  cosine, sine = jnp.cos(angles), jnp.sin(angles)
  return jnp.stack([cosine, cosine], axis=1), jnp.stack([-sine, sine], axis=1)


def _scaled(frequencies: jax.Array, c: ModelConfig) -> jax.Array:
  """Returns the frequencies for rows longer than the model was made for.

  Llama 3.1's rule (arXiv 2407.21783; the formula is that of the code Meta
  published with it): a wave that turns more than `rope_high_frequency` times
  in `rope_original_length` tokens stays, one that turns less than
  `rope_low_frequency` times becomes `rope_factor` times as long, and those
  between are mixed by their number of turns.
  """
  if c.rope_scaling == "none":
    return frequencies
  turns = c.rope_original_length * frequencies / (2 * jnp.pi)
  low, high = c.rope_low_frequency, c.rope_high_frequency
  kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  return kept * frequencies + (1 - kept) * frequencies / c.rope_factor


def _rotate(x_KBL, rotation, *, scale: float):
  """Rotates channel pairs (i, i + K/2), Llama's half-split convention.

  Where `rotation` has fewer channels than x, the first ones turn in pairs
  among themselves and the others stay. All are multiplied by `scale`.

  Leading axes are heads. The partners come from turning an axis of two
  round: joining two halves instead took 20 times as long on the CPU. Rows go
  in front: a TPU lays the last two axes out in tiles of 8 by 128, and a few
  rows there cost 8 % of a 7B step (LOG.md).
  """
  turning = 2 * rotation[0].shape[2]
  if turning < x_KBL.shape[-3]:
    first, rest = jnp.split(x_KBL, [turning], axis=-3)
    turned = _rotate(first, rotation, scale=scale)
    rest = (scale * rest.astype(jnp.float32)).astype(rest.dtype)
    return jnp.concatenate([turned, rest], axis=-3)
  *heads, size, batch, length = x_KBL.shape
  x_BKL = jnp.moveaxis(x_KBL, -2, 0)
  pairs = x_BKL.reshape(batch, *heads, 2, size // 2, length)
  wide = pairs.astype(jnp.float32)
  ones = (1,) * len(heads)
  cosine, sine = (
    scale * factor.reshape(len(factor), *ones, *factor.shape[1:])
    for factor in rotation
  )
  turned = wide * cosine + jnp.flip(wide, axis=-3) * sine
  turned_BKL = turned.astype(x_KBL.dtype).reshape(x_BKL.shape)
  return jnp.moveaxis(turned_BKL, 0, -2)


def _layer_of_a_pass(config: ModelConfig, back_end, rotation, x_DBL, weights):
  def attend(queries_GRKBL, keys_GKBL, values_GKBL):
    arrays = queries_GRKBL, keys_GKBL, values_GKBL
    return backends.attend(back_end, *arrays), None

  return _layer(config, rotation, x_DBL, weights, attend)[0]


def _layer(c: ModelConfig, rotation, x_DBL, weights, attend):
  """Returns the next x, and what `attend` keeps."""
  attended_DBL, kept = _attention(c, rotation, x_DBL, weights, attend)
  if c.parallel_residual:
    attended_DBL += _feed_forward(c, x_DBL, weights)
    return _rows_over_devices(x_DBL + attended_DBL), kept
  x_DBL = _rows_over_devices(x_DBL + attended_DBL)
  return _rows_over_devices(x_DBL + _feed_forward(c, x_DBL, weights)), kept


def _attention(c: ModelConfig, rotation, x_DBL, weights, attend):
  """Returns what attention adds to x, and what `attend` keeps."""
  tokens = x_DBL.shape[1:]
  group = (c.kv_heads, c.heads // c.kv_heads, c.head_size)
  project = functools.partial(_project, c, weights)
  y_DBL = _norm(c, x_DBL, weights, "attention_norm")
  queries_GRKBL = project("query", y_DBL).reshape(*group, *tokens)
  keys_GKBL, values_GKBL = (
    project(name, y_DBL).reshape(c.kv_heads, c.head_size, *tokens)
    for name in ("key", "value")
  )
  if c.qk_norm:
    queries_GRKBL = _norm(c, queries_GRKBL, weights, "query_norm")
    keys_GKBL = _norm(c, keys_GKBL, weights, "key_norm")
  mixed_GRKBL, kept = attend(
    _rotate(queries_GRKBL, rotation, scale=c.head_size**-0.5),
    _rotate(keys_GKBL, rotation, scale=1.0),
    values_GKBL,
  )
  flat = mixed_GRKBL.reshape(c.heads * c.head_size, *tokens)
  return project("attention_out", flat), kept


def _feed_forward(c: ModelConfig, x_DBL, weights):
  """Returns what the feed-forward adds to x."""
  project = functools.partial(_project, c, weights)
  y_DBL = _norm(c, x_DBL, weights, "feed_forward_norm")
  up_FBL = project("up", y_DBL)
  if c.activation == "swiglu":
    hidden_FBL = swiglu(project("gate", y_DBL), up_FBL)
  else:
    hidden_FBL = jax.nn.gelu(up_FBL, approximate=c.activation == "gelu")
  return project("down", hidden_FBL)


def _norm(c: ModelConfig, x_CBL, weights, name: str):
  scale_C, epsilon = weights[name], c.norm_epsilon
  if c.norm == "rms":
    return rms_norm(x_CBL, scale_C, epsilon=epsilon)
  return layer_norm(x_CBL, scale_C, weights[f"{name}_bias"], epsilon=epsilon)


def _project(c: ModelConfig, weights, name: str, x_DBL):
  y_EBL = linear(c.gradient_dtype, weights[name], x_DBL)
  if not c.biases:
    return y_EBL
  # In float32, as then the bias' gradient is summed in it over all tokens.
  wide = y_EBL.astype(jnp.float32) + weights[f"{name}_bias"][:, None, None]
  return wide.astype(y_EBL.dtype)


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
  """Returns silu(gate) * up; keeps its inputs only for the gradient."""
  return _swiglu_forward(gate, up)[0]


def _swiglu_forward(gate, up):
  wide = gate.astype(jnp.float32)
  hidden = wide * jax.nn.sigmoid(wide) * up.astype(jnp.float32)
  return hidden.astype(gate.dtype), (gate, up)


def _swiglu_backward(kept, gradient):
  gate, up, gradient_wide = (x.astype(jnp.float32) for x in (*kept, gradient))
  sigmoid = jax.nn.sigmoid(gate)
  silu = gate * sigmoid
  gate_gradient = gradient_wide * up * (sigmoid + silu * (1 - sigmoid))
  dtype = gradient.dtype
  return gate_gradient.astype(dtype), (gradient_wide * silu).astype(dtype)


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


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


def _together(table_VD: jax.Array) -> jax.Array:
  """Brings a table's features together before rows are looked up.

  Looked up in parts, each row would be whole on every device before it goes to
  the device that it belongs to ("involuntary full rematerialization").
  """
  if jax.sharding.get_abstract_mesh().size < 2:
    return table_VD
  spec = PartitionSpec("tensor", None)
  return jax.lax.with_sharding_constraint(table_VD, spec)


def _rows_over_devices(x_DBL: jax.Array) -> jax.Array:
  """Keeps rows over the mesh's row axes, so that weights move, not tokens.

  Without a mesh in the context (one device, tests) this does nothing.
  """
  axes = jax.sharding.get_abstract_mesh().axis_names
  rows = tuple(a for a in ("data", "fsdp") if a in axes)
  if not rows:
    return x_DBL
  spec = PartitionSpec(None, rows, None)
  return jax.lax.with_sharding_constraint(x_DBL, spec)
