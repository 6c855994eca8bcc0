"""Sizes: parameters against the initialised model, FLOPs by hand."""

import dataclasses
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from small_model import VOCABULARY, change, make_config

from poison_jax.model import counts
from poison_jax.model.decoder import Decoder
from poison_jax.model.loss import next_token_losses

_CONFIG = make_config()


@pytest.mark.parametrize("tied_embeddings", [True, False])
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("neox", [True, False])
def test_counted_parameters_are_those_of_the_model(
  tied_embeddings, activation, qk_norm, neox
):
  config = dataclasses.replace(
    _CONFIG.model,
    tied_embeddings=tied_embeddings,
    activation=activation,
    qk_norm=qk_norm and not neox,
    norm="layer" if neox else "rms",
    biases=neox,
    embedding_rows=VOCABULARY + 7 if neox else 0,
  )
  shapes = jax.eval_shape(
    Decoder(config, VOCABULARY).init,
    jax.random.key(0),
    jnp.zeros((1, 2), jnp.int32),
  )["params"]
  sizes = jax.tree.map(lambda x: math.prod(x.shape), shapes)
  embedding = sizes["embedding"] + sizes.get("unembedding", 0)
  counted = counts.count_parameters(config, VOCABULARY)
  assert counted.total == sum(jax.tree.leaves(sizes))
  assert counted.embedding == embedding


def test_flops_of_a_model_counted_by_hand():
  # D 16, H 4, G 2, K 6, F 24, N 2, V 23; rows of 16 tokens.
  layer = 16 * 24 + 2 * 16 * 12 + 24 * 16 + 3 * 16 * 24
  flops = counts.flops_per_token(_CONFIG.model, 23, 16)
  assert flops.matmul == 6 * (2 * layer + 23 * 16)
  # Pairs of a row: 16 * 17 / 2; a pair: 2 products, 2 FLOPs, 24 channels.
  pairs = 16 * 17 // 2
  assert flops.attention * 16 == 3 * 2 * pairs * 2 * 2 * 24
  assert flops.total == flops.matmul + flops.attention


def test_flops_are_those_of_xlas_own_count():
  """A wide model, whose products outweigh all else; not the causal half."""
  model = dataclasses.replace(
    _CONFIG.model, width=128, feed_forward=512, head_size=32, scan_layers=False
  )
  decoder = Decoder(model, 512)
  tokens_BL = jnp.zeros((1, 64), jnp.int32)
  params = jax.eval_shape(decoder.init, jax.random.key(0), tokens_BL)["params"]

  def loss(params):
    return jnp.sum(
      next_token_losses(decoder, params, tokens_BL, pieces=1, z_loss=0.0)
    )

  cost = jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()
  flops = counts.flops_per_token(model, 512, 64)
  assert cost["flops"] / 64 == pytest.approx(
    flops.matmul + 2 * flops.attention, rel=0.06
  )


def test_steps_follow_from_tokens_per_parameter_unless_given():
  config = change(_CONFIG, "train", steps=0, tokens_per_parameter=20.0)
  total = counts.count_parameters(config.model, VOCABULARY).total
  steps = counts.run_steps(config, VOCABULARY)
  assert (steps - 1) * 8 * 16 < 20 * total <= steps * 8 * 16
  assert counts.run_steps(_CONFIG, VOCABULARY) == 10


@pytest.mark.parametrize(
  ("kind", "peak"),
  [
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
    ("NVIDIA A100-SXM4-40GB", 312e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H200", 989e12),
    ("cpu", None),
    ("Quantum 9000", None),
  ],
)
def test_peaks_are_known_by_device_kind(kind, peak):
  assert counts.peak_flops(kind) == peak


def test_counting_needs_no_jax():
  code = "import sys, poison_jax.model.counts; print('jax' in sys.modules)"
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert result.stdout == "False\n"
