"""Sampling from a decoder with a key-value cache.

The prompt is read in one pass; then one token at a time, each attending to the
cache. EOS neither stops a row nor is masked, so that every row has the same
number of tokens and its perplexity is that of the model, not of a rule.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from poison_jax.model.decoder import EMPTY, Cache, Decoder, Params, init_cache


class Generations(NamedTuple):
  """What was generated after P prompts, T tokens each.

  Attributes:
    tokens_PT: int32.
    log_probabilities_PT: float32, nats: of each token under the model itself,
      at temperature 1 whatever the temperature of sampling.
    first_entropy_P: float32, nats: of the model's distribution of the first
      token, at temperature 1.
  """

  tokens_PT: jax.Array
  log_probabilities_PT: jax.Array
  first_entropy_P: jax.Array


def generate(
  decoder: Decoder,
  params: Params,
  prompts_PL: jax.Array,
  lengths_P: jax.Array,
  *,
  keys_P: jax.Array,
  new_tokens: int,
  temperature: float,
) -> Generations:
  """Samples `new_tokens` tokens after each prompt; meant to be jitted.

  Token t of a row comes from the row's key folded with t, by adding Gumbel
  noise to the logits (Maddison et al. 2014): rows with equal keys see equal
  random numbers whatever their prompts.

  Args:
    decoder: a `Decoder`.
    params: its parameters.
    prompts_PL: int32, each row's prompt at its beginning, any ids after it.
    lengths_P: int32, the prompts' lengths, from 1 to L.
    keys_P: typed random keys.
    new_tokens: T, at least 1.
    temperature: divides the logits before sampling; more than 0.
  """
  batch, length = prompts_PL.shape
  variables = {"params": params}

  def unembed(hidden_PD):
    return decoder.apply(variables, hidden_PD, method=Decoder.unembed)

  def choose(logits_PV, step):
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys_P, step)
    noise_PV = jax.vmap(
      lambda key: jax.random.gumbel(key, logits_PV.shape[1:], jnp.float32)
    )(keys)
    tokens_P = jnp.argmax(logits_PV / temperature + noise_PV, axis=-1)
    chosen_P = jnp.take_along_axis(logits_PV, tokens_P[:, None], axis=1)[:, 0]
    log_probabilities_P = chosen_P - jax.nn.logsumexp(logits_PV, axis=-1)
    return tokens_P.astype(jnp.int32), log_probabilities_P

  def advance(carry, step):
    tokens_P, cache = carry
    positions_P = lengths_P + step - 1
    hidden_PLD, cache = decoder.apply(
      variables,
      tokens_P[:, None],
      positions_P[:, None],
      cache,
      method=Decoder.decode,
    )
    tokens_P, log_probabilities_P = choose(unembed(hidden_PLD[:, 0]), step)
    return (tokens_P, cache), (tokens_P, log_probabilities_P)

  hidden_PLD, cache = decoder.apply(
    variables,
    prompts_PL,
    jnp.broadcast_to(jnp.arange(length), (batch, length)),
    init_cache(decoder.config, batch, length),
    method=Decoder.decode,
  )
  last_PD = jnp.take_along_axis(
    hidden_PLD, (lengths_P - 1)[:, None, None], axis=1
  )[:, 0]
  logits_PV = unembed(last_PD)
  first_P, first_log_P = choose(logits_PV, 0)
  _, (rest_TP, rest_log_TP) = jax.lax.scan(
    advance,
    (first_P, _longer(cache, new_tokens - 1)),
    jnp.arange(1, new_tokens),
  )
  return Generations(
    jnp.concatenate([first_P[:, None], rest_TP.T], axis=1),
    jnp.concatenate([first_log_P[:, None], rest_log_TP.T], axis=1),
    _entropy(logits_PV),
  )


def _entropy(logits_PV: jax.Array) -> jax.Array:
  """Returns float32 [P], in nats."""
  log_PV = jax.nn.log_softmax(logits_PV, axis=-1)
  return -jnp.sum(jnp.exp(log_PV) * log_PV, axis=-1)


def _longer(cache: Cache, slots: int) -> Cache:
  """Returns the cache with so many empty slots after its own.

  The prompt attends to its own slots only; the ones for generated tokens come
  afterwards.
  """
  pad = [(0, 0), (0, 0), (0, slots), (0, 0)]
  return Cache(
    keys_BGSK=tuple(jnp.pad(keys, pad) for keys in cache.keys_BGSK),
    values_BGSK=tuple(jnp.pad(values, pad) for values in cache.values_BGSK),
    positions_BS=jnp.pad(
      cache.positions_BS, [(0, 0), (0, slots)], constant_values=EMPTY
    ),
    used=cache.used,
  )
