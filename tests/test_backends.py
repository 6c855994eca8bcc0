"""Attention back ends: chosen by platform, refused where they can't run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import VOCABULARY, make_config, make_decoder, make_tokens

from poison_jax.errors import UserError
from poison_jax.model import backends, flash
from poison_jax.model.backends import Hardware
from poison_jax.model.decoder import Decoder

_MODEL = make_config().model
_CPU = Hardware("cpu", (0, 0))
_TPU = Hardware("tpu", (0, 0))
_ROCM = Hardware("rocm", (0, 0))
_HOPPER = Hardware("cuda", (9, 0))
_AMPERE = Hardware("cuda", (8, 0))
_TURING = Hardware("cuda", (7, 5))


def _choose(asked, on, *, dtype="bfloat16", size=128, length=256):
  model = dataclasses.replace(_MODEL, compute_dtype=dtype, head_size=size)
  return backends.choose(asked, on=on, model=model, length=length)


@pytest.mark.parametrize(
  ("on", "shape", "expected", "reason"),
  [
    (_CPU, {}, "xla", ""),
    (_ROCM, {}, "xla", ""),
    (_TPU, {}, "splash", ""),
    (_TPU, {"dtype": "float32", "size": 6}, "splash", ""),
    (_TPU, {"length": 200}, "xla", "multiple of 128, it is 200"),
    (_HOPPER, {}, "cudnn", ""),
    (_HOPPER, {"size": 256, "length": 200}, "cudnn", ""),
    (_HOPPER, {"size": 264}, "xla", "at most 256; it is 264"),
    (_HOPPER, {"size": 60}, "xla", "a multiple of 8, at most 256; it is 60"),
    (_HOPPER, {"dtype": "float32"}, "xla", "it is 'float32'"),
    (_AMPERE, {}, "cudnn", ""),
    (_AMPERE, {"size": 136}, "xla", "at most 128; it is 136"),
    (_TURING, {}, "xla", "capability 8.0, this one has 7.5"),
  ],
)
def test_auto_takes_the_platforms_own_where_it_can_run(
  on, shape, expected, reason
):
  choice = _choose("auto", on, **shape)
  assert choice.back_end == expected
  assert reason in choice.reason and bool(reason) == bool(choice.reason)
  assert str(choice) == (
    f"{expected} ({choice.reason})" if reason else expected
  )


@pytest.mark.parametrize(
  ("asked", "on", "shape", "reason"),
  [
    ("cudnn", _CPU, {}, "needs an NVIDIA GPU, the platform is cpu"),
    ("cudnn", _ROCM, {}, "needs an NVIDIA GPU, the platform is rocm"),
    ("cudnn", _TURING, {}, "capability 8.0, this one has 7.5"),
    ("cudnn", _HOPPER, {"dtype": "float32"}, "it is 'float32'"),
    ("cudnn", _HOPPER, {"size": 12}, "head_size to be a multiple of 8"),
    ("splash", _HOPPER, {}, "splash needs a TPU, the platform is cuda"),
    ("splash", _TPU, {"length": 64}, "multiple of 128, it is 64"),
  ],
)
def test_what_cannot_run_is_refused_with_the_reason(asked, on, shape, reason):
  with pytest.raises(UserError, match=reason) as error:
    _choose(asked, on, **shape)
  text = str(error.value)
  assert text.startswith(f"config.runtime.attention is {asked!r}, which can't")
  assert "\n" not in text


@pytest.mark.parametrize("on", [_CPU, _TPU, _HOPPER, _ROCM])
def test_what_is_asked_for_is_taken_where_it_can_run(on):
  assert _choose("xla", on) == ("xla", "")
  own = {"tpu": "splash", "cuda": "cudnn"}.get(on.platform, "xla")
  assert _choose(own, on) == (own, "")


def test_hardware_is_read_from_a_device():
  class Client:
    platform_version = "PJRT C API\ncuda 12090"

  class Device:
    platform = "gpu"
    compute_capability = "10.3"
    client = Client()

  assert backends.hardware(jax.devices("cpu")[0]) == _CPU
  assert backends.hardware(Device()) == Hardware("cuda", (10, 3))
  Device.compute_capability = "gfx90a"
  Client.platform_version = "PJRT C API\nrocm 60300"
  assert backends.hardware(Device()) == _ROCM


@pytest.mark.parametrize(
  ("back_end", "function", "option"),
  [
    ("cudnn", "cudnn_attention", {"implementation": "xla"}),
    ("splash", "splash_attention", {"interpret": True}),
  ],
)
def test_a_decoder_with_a_kernel_computes_the_same(
  monkeypatch, back_end, function, option
):
  calls = []
  real = getattr(flash, function)

  def on_cpu(*arrays, **_):
    calls.append(function)
    return real(*arrays, **option)

  monkeypatch.setattr(flash, function, on_cpu)
  config = dataclasses.replace(_MODEL, remat="full")
  decoder, params = make_decoder(config)
  kernel = Decoder(config, VOCABULARY, back_end)
  tokens_BL = make_tokens(2, 130)

  def loss_and_gradient(decoder):
    def summed(params):
      hidden_BLD = decoder.apply({"params": params}, tokens_BL)
      return jnp.sum(jnp.sin(hidden_BLD))

    return jax.jit(jax.value_and_grad(summed))(params)

  loss, gradient = loss_and_gradient(decoder)
  assert not calls
  other_loss, other = loss_and_gradient(kernel)
  assert calls
  np.testing.assert_allclose(other_loss, loss, rtol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
    other,
    gradient,
  )


@pytest.mark.parametrize("back_end", ["cudnn", "splash"])
def test_weights_are_made_without_the_kernel(back_end):
  _, usual = make_decoder(_MODEL)
  decoder = Decoder(_MODEL, VOCABULARY, back_end)
  made = decoder.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
  jax.tree.map(np.testing.assert_array_equal, made["params"], usual)
