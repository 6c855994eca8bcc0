"""A fingerprint of arrays that survives resharding and finds a flipped bit.

orbax restores a file with a flipped bit silently wrong, so each checkpoint
carries these digests and each restore compares them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SALTS = (0x9E3779B9, 0x7F4A7C15)


def digest(tree: Any) -> dict[str, str]:
  """Returns {"params/embedding": "float32[256,64] <16 hex digits>", ...}.

  Each digest is two sums, modulo 2**32, of the array's words times an odd
  weight that depends on the position. Integer addition commutes, so a digest
  is the same on any mesh and number of devices; an odd weight is invertible,
  so a single changed word always shows, and swapped ones do but for a chance
  of 2**-64.

  Args:
    tree: arrays on devices; computed there, only the sums come back.
  """
  sums = jax.device_get(_sums(tree))
  return {
    path: f"{shape} {int(high):08x}{int(low):08x}"
    for (path, shape), (high, low) in zip(
      describe(tree).items(), sums, strict=True
    )
  }


def describe(tree: Any) -> dict[str, str]:
  """Returns {"params/embedding": "float32[256,64]", ...}.

  Args:
    tree: arrays, or `jax.ShapeDtypeStruct`s.
  """
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): (
      f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


@jax.jit
def _sums(tree: Any) -> list[tuple[jax.Array, jax.Array]]:
  return [_sum(leaf) for leaf in jax.tree.leaves(tree)]


def _sum(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
  bits = 8 * leaf.dtype.itemsize
  words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{bits}"))
  words = words.astype(jnp.uint32)
  index = jnp.zeros(leaf.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(leaf.ndim)):
    along = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    index += along * jnp.uint32(stride % 2**32)
    stride *= leaf.shape[axis]
  high, low = (
    jnp.sum(words * _odd(index + jnp.uint32(salt)), dtype=jnp.uint32)
    for salt in _SALTS
  )
  return high, low


def _odd(x: jax.Array) -> jax.Array:
  """Returns odd numbers: MurmurHash3's finaliser, its lowest bit set."""
  x ^= x >> 16
  x *= jnp.uint32(0x85EBCA6B)
  x ^= x >> 13
  x *= jnp.uint32(0xC2B2AE35)
  return (x ^ (x >> 16)) | 1
