"""Causal attention by kernels that never hold all scores: cuDNN's and splash.

Not tried on a GPU or a TPU yet. Tested on the CPU: splash in Pallas's
interpret mode, and what surrounds cuDNN's kernel with XLA in its place. Splash
with its gradients compiles for TPU v5e (jax 0.10.2, libtpu 0.0.42), for head
sizes of 32, 64, 128 and 256 in bfloat16 and of 6, 32 and 80 in float32.

Letters as in `poison_jax.model.decoder`. The kernels' interfaces have a head's
features last, so arrays are turned here, on the way in and out. XLA can't cut a
kernel over devices by itself; on a mesh each device is given its rows, and its
heads where "tensor" divides the key heads (else every device along it computes
all heads).

Sources: `jax.nn.dot_product_attention`, and in `jax.experimental.pallas.ops`
`tpu.splash_attention` (arXiv 2205.14135 and 2307.08691 for the method).
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Splash cuts rows into blocks of a multiple of a TPU register's lanes; of
# these the largest that fits, as MaxText's default is (512).
SPLASH_UNIT = 128
_SPLASH_BLOCKS = (512, 256, SPLASH_UNIT)

Kernel = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def cudnn_attention(
  queries_GRKBL: jax.Array,
  keys_GKBL: jax.Array,
  values_GKBL: jax.Array,
  *,
  implementation: Literal["cudnn", "xla"],
) -> jax.Array:
  """Returns each position's mixture of the values up to it, GRKBL.

  Args:
    queries_GRKBL: scaled queries, bfloat16 for "cudnn".
    keys_GKBL: keys, same dtype.
    values_GKBL: values, same dtype.
    implementation: "cudnn"; "xla" computes the same anywhere, for tests.
  """

  def kernel(queries_GRKBL, keys_GKBL, values_GKBL):
    groups, shared, size, batch, length = queries_GRKBL.shape
    q_BLGRK = queries_GRKBL.transpose(3, 4, 0, 1, 2)
    mixed_BLHK = jax.nn.dot_product_attention(
      q_BLGRK.reshape(batch, length, groups * shared, size),
      keys_GKBL.transpose(2, 3, 0, 1),
      values_GKBL.transpose(2, 3, 0, 1),
      scale=1.0,
      is_causal=True,
      implementation=implementation,
    )
    return mixed_BLHK.reshape(q_BLGRK.shape).transpose(2, 3, 4, 0, 1)

  each = _on_each_device(kernel, groups=keys_GKBL.shape[0])
  return each(queries_GRKBL, keys_GKBL, values_GKBL)


def splash_attention(
  queries_GRKBL: jax.Array,
  keys_GKBL: jax.Array,
  values_GKBL: jax.Array,
  *,
  interpret: bool,
) -> jax.Array:
  """Returns each position's mixture of the values up to it, GRKBL.

  Rows are padded at their end to a multiple of `SPLASH_UNIT`: no position
  looks there, so nothing changes.

  Args:
    queries_GRKBL: scaled queries.
    keys_GKBL: keys, same dtype.
    values_GKBL: values, same dtype.
    interpret: without a TPU, slowly; for tests.
  """

  def kernel(queries_GRKBL, keys_GKBL, values_GKBL):
    groups, shared, size, batch, length = queries_GRKBL.shape
    padded = length + -length % SPLASH_UNIT
    q_GRKBL, k_GKBL, v_GKBL = (
      jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padded - length)])
      for x in (queries_GRKBL, keys_GKBL, values_GKBL)
    )
    q_BGRLK = q_GRKBL.transpose(3, 0, 1, 4, 2)
    of_a_row = _splash(groups * shared, padded, interpret=interpret)
    mixed_BHLK = jax.vmap(of_a_row)(
      q_BGRLK.reshape(batch, groups * shared, padded, size),
      k_GKBL.transpose(2, 0, 3, 1),
      v_GKBL.transpose(2, 0, 3, 1),
    )
    mixed_BGRLK = mixed_BHLK.reshape(q_BGRLK.shape)
    return mixed_BGRLK.transpose(1, 2, 4, 0, 3)[..., :length]

  each = _on_each_device(kernel, groups=keys_GKBL.shape[0])
  return each(queries_GRKBL, keys_GKBL, values_GKBL)


def _splash(heads: int, length: int, *, interpret: bool) -> Kernel:
  """Returns the kernel of one row: HLK, GLK and GLK to HLK.

  Made anew for each trace, since it holds arrays of it.
  """
  # Here, because it takes as long to import as the rest of the model.
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  block = next(b for b in _SPLASH_BLOCKS if length % b == 0)
  # Queries, keys and values as the products before leave them, tokens last in
  # memory: else each is turned by a copy, 2 % of a 7B step (LOG.md).
  tokens_last = splash.QKVLayout.SEQ_MINOR
  return splash.make_splash_mha(
    splash.MultiHeadMask([splash.CausalMask((length, length))] * heads),
    block_sizes=splash.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
      q_layout=tokens_last,
      k_layout=tokens_last,
      v_layout=tokens_last,
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )


def _on_each_device(kernel: Kernel, *, groups: int) -> Kernel:
  """Returns `kernel` for arrays over the mesh in the context, if any.

  Args:
    kernel: GRKBL, GKBL and GKBL to GRKBL.
    groups: G over all devices.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size < 2:
    return kernel
  rows = ("data", "fsdp")
  heads = "tensor" if groups % mesh.shape["tensor"] == 0 else None
  spec_GKBL = PartitionSpec(heads, None, rows, None)
  spec_GRKBL = PartitionSpec(heads, None, None, rows, None)
  return jax.shard_map(
    kernel,
    in_specs=(spec_GRKBL, spec_GKBL, spec_GKBL),
    out_specs=spec_GRKBL,
    check_vma=False,  # Pallas calls don't say over which axes they vary.
  )
