"""Sizes of a model and of a run, in plain arithmetic: no JAX."""

import dataclasses
import math

from poison_jax.config import Config, ModelConfig
from poison_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ParameterCount:
  """Parameters: `embedding` has the output matrix too where it is its own."""

  embedding: int
  other: int

  @property
  def total(self) -> int:
    return self.embedding + self.other


@dataclasses.dataclass(frozen=True)
class FlopsPerToken:
  """Floating-point operations a token of forward and backward together.

  A multiplication and an addition count as two. Norms, softmax and the
  optimizer are left out, as usual.
  """

  matmul: int  # 6 a weight of every matrix, the output matrix included.
  attention: int  # Scores and mixing, the causal half only.

  @property
  def total(self) -> int:
    return self.matmul + self.attention


def count_parameters(
  config: ModelConfig, vocabulary_size: int
) -> ParameterCount:
  """Returns the number of parameters of `poison_jax.model.decoder.Decoder`."""
  c = config
  matrices = 1 if c.tied_embeddings else 2
  norm = c.width * (2 if c.norm == "layer" else 1)
  layer = _layer_matrices(c) + 2 * norm
  layer += 2 * c.head_size if c.qk_norm else 0
  layer += _layer_biases(c) if c.biases else 0
  return ParameterCount(
    embedding=matrices * embedding_rows(c, vocabulary_size) * c.width,
    other=c.depth * layer + norm,
  )


def embedding_rows(config: ModelConfig, vocabulary_size: int) -> int:
  """Returns how many ids the model has weights and logits for.

  Raises:
    UserError: fewer than the vocabulary has.
  """
  rows = config.embedding_rows or vocabulary_size
  if rows < vocabulary_size:
    raise UserError(
      f"config.model.embedding_rows is {rows}; it must be 0 or at least the "
      f"vocabulary's size, {vocabulary_size}"
    )
  return rows


def rotated_channels(config: ModelConfig) -> int:
  """Returns how many of a head's channels its position turns."""
  return int(config.head_size * config.rotary_share)


def flops_per_token(
  config: ModelConfig, vocabulary_size: int, length: int
) -> FlopsPerToken:
  """Returns FLOPs of a training step a token, for rows of `length` tokens.

  The 6N rule of arXiv 2001.08361, appendix B, over the weights that are
  multiplied: the embedding's lookup and a bias are no product, the output
  matrix is one even where it is tied. Attention: a token at place t meets t + 1
  keys, on average (length + 1) / 2; scores and mixing take 2 H K each forward,
  and twice that backward.
  """
  c = config
  rows = embedding_rows(c, vocabulary_size)
  weights = c.depth * _layer_matrices(c) + rows * c.width
  pair = 2 * 2 * c.heads * c.head_size
  return FlopsPerToken(
    matmul=6 * weights,
    attention=3 * c.depth * pair * (length + 1) // 2,
  )


def run_steps(config: Config, vocabulary_size: int) -> int:
  """Returns the run's steps: `train.steps`, or by tokens per parameter."""
  t = config.train
  if t.steps:
    return t.steps
  total = count_parameters(config.model, vocabulary_size).total
  return math.ceil(t.tokens_per_parameter * total / (t.batch * t.length))


# Dense peak FLOP/s of one chip in bfloat16 (float32 for none), by a prefix of
# JAX's `device_kind`. TPU: cloud.google.com/tpu/docs/system-architecture-tpu-vm
# and the pages of each version (v2 and v3 count a core, as JAX does). GPU: the
# vendor's data sheets, without sparsity.
_PEAK_FLOPS = {
  "TPU v2": 22.5e12,
  "TPU v3": 61.5e12,
  "TPU v4 lite": 138e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5p": 459e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "TPU7x": 2307e12,
  "NVIDIA V100": 125e12,
  "Tesla V100": 125e12,
  "Tesla T4": 65e12,
  "NVIDIA L4": 121e12,
  "NVIDIA A10G": 70e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H100 NVL": 835e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
  "NVIDIA GH200": 989e12,
  "NVIDIA B200": 2250e12,
}


def peak_flops(device_kind: str) -> float | None:
  """Returns a device's peak bfloat16 FLOP/s; None where it is not known.

  Args:
    device_kind: `jax.devices()[0].device_kind`, like "TPU v4".
  """
  found = [k for k in _PEAK_FLOPS if device_kind.startswith(k)]
  return _PEAK_FLOPS[max(found, key=len)] if found else None


def _layer_matrices(c: ModelConfig) -> int:
  attention = c.width * c.head_size * (2 * c.heads + 2 * c.kv_heads)
  feeds = 3 if c.activation == "swiglu" else 2
  return attention + feeds * c.width * c.feed_forward


def _layer_biases(c: ModelConfig) -> int:
  attention = c.head_size * (c.heads + 2 * c.kv_heads) + c.width
  feeds = 2 if c.activation == "swiglu" else 1
  return attention + feeds * c.feed_forward + c.width
