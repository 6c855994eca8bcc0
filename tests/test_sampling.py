"""Cached sampling must be what a loop without a cache would sample."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from poison_jax import config as config_lib
from poison_jax.model.decoder import Decoder
from poison_jax.model.sampling import generate

VOCABULARY = 19


def make_decoder(**model):
  tree = base.get_config()
  tree.model.update(
    width=16, depth=1, heads=2, kv_heads=2, head_size=8, feed_forward=24
  )
  tree.model.update(model)
  decoder = Decoder(config_lib.from_config_dict(tree).model, VOCABULARY)
  tokens_BL = jnp.zeros((1, 4), jnp.int32)
  params = jax.jit(decoder.init)(jax.random.key(0), tokens_BL)["params"]
  # Large weights, so that the distributions are far from uniform.
  return decoder, jax.tree.map(lambda p: p * 12 if p.ndim > 2 else p, params)


def make_slow(decoder, params):
  """Returns logits of the token after a list of tokens, without a cache.

  Padded to one length, to be compiled once: a causal model can't see it.
  """

  @jax.jit
  def logits_LV(tokens_L):
    hidden_BLD = decoder.apply({"params": params}, tokens_L[None])
    return decoder.apply({"params": params}, hidden_BLD[0], method="unembed")

  def after(tokens):
    tokens_L = np.array(tokens + [0] * (32 - len(tokens)))
    return np.asarray(logits_LV(tokens_L), np.float64)[len(tokens) - 1]

  return after


def slow(logits_after, prompt, key, *, new_tokens, temperature):
  """One prompt, the whole sequence again for each token, the rest in numpy."""
  tokens, log_probabilities, entropy = list(prompt), [], None
  for step in range(new_tokens):
    logits_V = logits_after(tokens)
    log_V = logits_V - np.log(np.sum(np.exp(logits_V)))
    if entropy is None:
      entropy = -np.sum(np.exp(log_V) * log_V)
    noise_V = jax.random.gumbel(jax.random.fold_in(key, step), (VOCABULARY,))
    tokens.append(int(np.argmax(logits_V / temperature + noise_V)))
    log_probabilities.append(log_V[tokens[-1]])
  return tokens[len(prompt) :], log_probabilities, entropy


PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13], [5]]


def padded(prompts, *, filler):
  length = max(map(len, prompts))
  rows = [p + [filler] * (length - len(p)) for p in prompts]
  return jnp.array(rows, jnp.int32), jnp.array([len(p) for p in prompts])


@functools.partial(jax.jit, static_argnames=("decoder", "new_tokens"))
def compiled(decoder, params, prompts_PL, lengths_P, keys_P, new_tokens, heat):
  return generate(
    decoder,
    params,
    prompts_PL,
    lengths_P,
    keys_P=keys_P,
    new_tokens=new_tokens,
    temperature=heat,
  )


def sample(
  decoder,
  params,
  prompts=PROMPTS,
  *,
  filler=0,
  keys_P=None,
  new_tokens=12,
  temperature=1.0,
):
  prompts_PL, lengths_P = padded(prompts, filler=filler)
  if keys_P is None:
    keys_P = jax.random.split(jax.random.key(7), len(prompts))
  return compiled(
    decoder, params, prompts_PL, lengths_P, keys_P, new_tokens, temperature
  )


@pytest.mark.parametrize(
  "model",
  [
    {},
    {"kv_heads": 1, "qk_norm": True, "scan_layers": False},
    {"tied_embeddings": False, "activation": "gelu", "depth": 2},
  ],
)
def test_the_cache_changes_nothing(model):
  decoder, params = make_decoder(**model)
  keys = jax.random.split(jax.random.key(7), len(PROMPTS))
  logits_after = make_slow(decoder, params)
  for temperature, (i, prompt) in itertools.product(
    (1.0, 0.6), enumerate(PROMPTS)
  ):
    found = sample(decoder, params, temperature=temperature)
    tokens, log_probabilities, entropy = slow(
      logits_after, prompt, keys[i], new_tokens=12, temperature=temperature
    )
    assert found.tokens_PT[i].tolist() == tokens
    np.testing.assert_allclose(
      found.log_probabilities_PT[i], log_probabilities, rtol=1e-4, atol=1e-5
    )
    assert found.first_entropy_P[i] == pytest.approx(entropy, rel=1e-4)


def test_log_probabilities_are_of_the_model_whatever_the_temperature():
  decoder, params = make_decoder()
  found = sample(decoder, params, temperature=3.0)
  logits_after = make_slow(decoder, params)
  for i, prompt in enumerate(PROMPTS):
    row = prompt + found.tokens_PT[i].tolist()
    expected = [
      jax.nn.log_softmax(logits_after(row[:t]))[row[t]]
      for t in range(len(prompt), len(row))
    ]
    np.testing.assert_allclose(
      found.log_probabilities_PT[i], expected, rtol=1e-4, atol=1e-5
    )


def test_padding_is_never_seen():
  decoder, params = make_decoder()
  one, other = (sample(decoder, params, filler=f) for f in (0, 18))
  np.testing.assert_array_equal(one.tokens_PT, other.tokens_PT)
  np.testing.assert_array_equal(
    one.log_probabilities_PT, other.log_probabilities_PT
  )


def test_rows_with_equal_keys_see_equal_random_numbers():
  # With a flat model the tokens are the random numbers' alone.
  decoder, params = make_decoder()
  flat = jax.tree.map(jnp.zeros_like, params)
  prompts = [[1, 2, 3, 4, 5, 6, 7], [4], [4], [2]]
  keys_P = jax.random.split(jax.random.key(0), 2)[jnp.array([0, 0, 1, 1])]
  found = sample(decoder, flat, prompts, keys_P=keys_P)
  first, second, third, _ = np.asarray(found.tokens_PT)
  assert (first == second).all()
  assert (first != third).any()


def test_uniform_logits_have_perplexity_and_entropy_of_the_vocabulary():
  decoder, params = make_decoder()
  flat = jax.tree.map(jnp.zeros_like, params)
  found = sample(decoder, flat)
  perplexity_P = np.exp(-np.mean(found.log_probabilities_PT, axis=1))
  np.testing.assert_allclose(perplexity_P, VOCABULARY, rtol=1e-5)
  np.testing.assert_allclose(
    found.first_entropy_P, np.log(VOCABULARY), rtol=1e-6
  )


def test_tokens_follow_the_models_distribution():
  decoder, params = make_decoder()
  rows = 4_000
  found = sample(decoder, params, [[3, 1, 2]] * rows, new_tokens=1)
  hidden_BLD = decoder.apply({"params": params}, jnp.array([[3, 1, 2]]))
  expected_V = jax.nn.softmax(
    decoder.apply({"params": params}, hidden_BLD[0, -1], method="unembed")
  )
  found_V = np.bincount(found.tokens_PT[:, 0], minlength=VOCABULARY) / rows
  error_V = np.sqrt(expected_V * (1 - expected_V) / rows)
  assert np.all(np.abs(found_V - expected_V) < 4.5 * error_V + 1e-9)


def test_eos_neither_stops_nor_is_masked():
  # A model that says token 1 (EOS) with certainty says it to the end.
  decoder, params = make_decoder(tied_embeddings=False)
  params = jax.tree.map(jnp.zeros_like, params)
  params["final_norm"] = jnp.ones_like(params["final_norm"])
  params["embedding"] = jnp.ones_like(params["embedding"])
  params["unembedding"] = params["unembedding"].at[1].set(50.0)
  found = sample(decoder, params)
  assert (np.asarray(found.tokens_PT) == 1).all()
  np.testing.assert_allclose(found.log_probabilities_PT, 0, atol=1e-6)


def test_a_single_new_token_needs_no_cache_after_the_prompt():
  decoder, params = make_decoder()
  one = sample(decoder, params, new_tokens=1)
  many = sample(decoder, params)
  np.testing.assert_array_equal(one.tokens_PT, many.tokens_PT[:, :1])


def test_bfloat16_samples_with_float32_log_probabilities():
  decoder, params = make_decoder(compute_dtype="bfloat16")
  found = sample(decoder, params)
  assert found.log_probabilities_PT.dtype == jnp.float32
  assert np.isfinite(found.log_probabilities_PT).all()
  narrow = dataclasses.replace(decoder.config, compute_dtype="float32")
  wide = sample(Decoder(narrow, VOCABULARY), params)
  np.testing.assert_allclose(
    found.first_entropy_P, wide.first_entropy_P, rtol=0.05
  )
