"""Attention back ends: which of them computes a pass over whole rows.

  xla     `poison_jax.model.attention`, anywhere
  cudnn   cuDNN's flash attention, on NVIDIA GPUs
  splash  JAX's Pallas kernel, on TPU

All compute the same function, to rounding. The two kernels have not been tried
on a GPU or a TPU yet: `poison_jax.model.flash`. Decoding with a cache has its
own attention and no choice.
"""

from typing import Literal, NamedTuple

import jax

from poison_jax.config import ModelConfig
from poison_jax.errors import UserError
from poison_jax.model import flash
from poison_jax.model.attention import causal_attention

BackEnd = Literal["xla", "cudnn", "splash"]

# What "auto" takes where it can run; XLA elsewhere.
_PREFERRED: dict[str, BackEnd] = {"cuda": "cudnn", "tpu": "splash"}


class Hardware(NamedTuple):
  """The devices, as far as a choice depends on them.

  Attributes:
    platform: "cpu", "cuda", "rocm" or "tpu".
    capability: a CUDA device's compute capability, (9, 0) for Hopper; (0, 0)
      elsewhere.
  """

  platform: str
  capability: tuple[int, int]


class Choice(NamedTuple):
  """A back end, and why it isn't what the platform would have ("" if it is)."""

  back_end: BackEnd
  reason: str

  def __str__(self) -> str:
    return self.back_end + (f" ({self.reason})" if self.reason else "")


def hardware(device: jax.Device) -> Hardware:
  """Returns what `choose` needs to know of the devices, all alike."""
  if device.platform != "gpu":
    return Hardware(device.platform, (0, 0))
  if "rocm" in device.client.platform_version.lower():
    return Hardware("rocm", (0, 0))
  major, minor = device.compute_capability.split(".")
  return Hardware("cuda", (int(major), int(minor)))


def choose(
  asked: Literal["auto", "xla", "cudnn", "splash"],
  *,
  on: Hardware,
  model: ModelConfig,
  length: int,
) -> Choice:
  """Returns the back end for rows of `length` tokens.

  Args:
    asked: `runtime.attention`.
    on: the devices.
    model: the model's shape and dtype.
    length: L, tokens a row.

  Raises:
    UserError: the one that is asked for can't run.
  """
  if asked != "auto":
    reason = obstacle(asked, on=on, model=model, length=length)
    if reason:
      raise UserError(
        f"config.runtime.attention is {asked!r}, which can't run: {reason}"
      )
    return Choice(asked, "")
  preferred = _PREFERRED.get(on.platform, "xla")
  reason = obstacle(preferred, on=on, model=model, length=length)
  return Choice("xla" if reason else preferred, reason)


def obstacle(
  back_end: BackEnd, *, on: Hardware, model: ModelConfig, length: int
) -> str:
  """Returns why a back end can't run, or "" if it can; as for `choose`."""
  if back_end == "cudnn":
    return _cudnn_obstacle(on, model)
  if back_end == "splash":
    return _splash_obstacle(on, length)
  return ""


def _cudnn_obstacle(on: Hardware, model: ModelConfig) -> str:
  """Conditions of JAX 0.10.2, `jax/_src/cudnn/fused_attention_stablehlo.py`.

  Except for compute capability 8.0, which is NVIDIA's for flash attention.
  """
  if on.platform != "cuda":
    return f"cudnn needs an NVIDIA GPU, the platform is {on.platform}"
  if on.capability < (8, 0):
    found = ".".join(map(str, on.capability))
    return f"cudnn needs a GPU of compute capability 8.0, this one has {found}"
  if model.compute_dtype != "bfloat16":
    return (
      "cudnn needs config.model.compute_dtype 'bfloat16', it is "
      f"{model.compute_dtype!r}"
    )
  most = 256 if on.capability >= (9, 0) else 128
  if model.head_size % 8 or model.head_size > most:
    return (
      "cudnn on this GPU needs config.model.head_size to be a multiple of 8, "
      f"at most {most}; it is {model.head_size}"
    )
  return ""


def _splash_obstacle(on: Hardware, length: int) -> str:
  if on.platform != "tpu":
    return f"splash needs a TPU, the platform is {on.platform}"
  if length % flash.SPLASH_UNIT:
    return (
      "splash needs config.train.length to be a multiple of "
      f"{flash.SPLASH_UNIT}, it is {length}"
    )
  return ""


def attend(
  back_end: BackEnd,
  queries_GRKBL: jax.Array,
  keys_GKBL: jax.Array,
  values_GKBL: jax.Array,
) -> jax.Array:
  """Returns each position's mixture of the values up to it, GRKBL.

  Args:
    back_end: which one computes it.
    queries_GRKBL: scaled queries.
    keys_GKBL: keys.
    values_GKBL: values.
  """
  arrays = queries_GRKBL, keys_GKBL, values_GKBL
  if back_end == "cudnn":
    return flash.cudnn_attention(*arrays, implementation="cudnn")
  if back_end == "splash":
    return flash.splash_attention(*arrays, interpret=False)
  return causal_attention(*arrays)
