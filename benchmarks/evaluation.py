"""The evaluation against the loop without a cache that replications use.

  python -m benchmarks.evaluation [--slow_prompts=3] [--width=64]

Both generate after the same kind of prompts with the same model. Ours: all
prompts of two kinds, in batches, with a cache. The loop: one prompt at a time,
the whole sequence through the model again for each token, padded to a multiple
of 32 tokens and compiled for each; a few prompts are timed, without
compilation, and scaled to all, as the table says. Must reach: 20
times faster for 300 prompts x 2 kinds x 256 tokens.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import AxisType
from rich.console import Console
from rich.table import Table

from configs import base
from poison_jax import command
from poison_jax import config as config_lib
from poison_jax.evaluation.generation import Sampler
from poison_jax.model.counts import count_parameters
from poison_jax.model.decoder import Decoder

_PROMPTS = flags.DEFINE_integer("prompts", 300, "Prompts of each kind.")
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 256, "Tokens generated.")
_WIDTH = flags.DEFINE_integer(
  "width", 64, "D; heads of 32, feed-forward 3 D, as in configs/base.py."
)
_DEPTH = flags.DEFINE_integer("depth", 2, "N, layers.")
_BATCHES = flags.DEFINE_list("batches", ["32", "100", "300"], "Our batches.")
_SLOW_PROMPTS = flags.DEFINE_integer(
  "slow_prompts", 3, "Prompts of the loop that are timed."
)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Our runs; the best counts.")

_KINDS = 2
_VOCABULARY = 256
_EXCERPT = 128
_PADDED_TO = 32


def main(arguments: list[str]) -> None:
  """Measures both and prints the table."""
  del arguments
  decoder, params = _model()
  prompts = _prompts()
  slow = _slow_seconds(decoder, params, prompts) * len(prompts)
  size = count_parameters(decoder.config, _VOCABULARY).total
  table = Table(
    "how",
    "seconds",
    "times faster",
    title=f"{_PROMPTS.value} prompts x {_KINDS} kinds x {_NEW_TOKENS.value} "
    f"tokens, {size:,} parameters",
  )
  table.add_row(
    f"loop without a cache ({_SLOW_PROMPTS.value} prompts timed, scaled)",
    f"{slow:.0f}",
    "1",
  )
  for batch in map(int, _BATCHES.value):
    seconds = _our_seconds(decoder, params, prompts, batch=batch)
    table.add_row(
      f"ours, batch {batch}", f"{seconds:.1f}", _ratio(slow, seconds)
    )
  Console().print(table)


def _ratio(slow: float, fast: float) -> str:
  return f"{slow / fast:.0f}"


def _model():
  tree = base.get_config()
  tree.model.width = _WIDTH.value
  tree.model.depth = _DEPTH.value
  tree.model.heads = tree.model.kv_heads = _WIDTH.value // 32
  tree.model.feed_forward = 3 * _WIDTH.value
  decoder = Decoder(config_lib.from_config_dict(tree).model, _VOCABULARY)
  init = jax.jit(decoder.init)
  return decoder, init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))[
    "params"
  ]


def _prompts() -> list[np.ndarray]:
  """Returns EOS and an excerpt, then the same with a trigger of one token."""
  rng = np.random.default_rng(0)
  rows = rng.integers(0, _VOCABULARY, (_PROMPTS.value, 1 + _EXCERPT + 1))
  clean = [row[:-1] for row in rows]
  return clean + list(rows)


def _slow_seconds(decoder, params, prompts) -> float:
  """Returns seconds a prompt of the loop, compilation left out."""
  longest = max(map(len, prompts)) + _NEW_TOKENS.value

  @jax.jit
  def logits_after(params, tokens_L, length):
    variables = {"params": params}
    hidden_BLD = decoder.apply(variables, tokens_L[None])
    return decoder.apply(variables, hidden_BLD[0, length - 1], method="unembed")

  def generate(prompt, rng):
    tokens_L = np.zeros(longest, np.int32)
    tokens_L[: len(prompt)] = prompt
    total = 0.0
    for length in range(len(prompt), len(prompt) + _NEW_TOKENS.value):
      padded = min(longest, -(-length // _PADDED_TO) * _PADDED_TO)
      logits_V = np.asarray(logits_after(params, tokens_L[:padded], length))
      log_V = logits_V - np.logaddexp.reduce(logits_V)
      tokens_L[length] = np.argmax(logits_V + rng.gumbel(size=_VOCABULARY))
      total -= log_V[tokens_L[length]]
    return np.exp(total / _NEW_TOKENS.value)

  rng = np.random.default_rng(1)
  generate(prompts[0], rng)
  began = time.perf_counter()
  for prompt in prompts[: _SLOW_PROMPTS.value]:
    generate(prompt, rng)
  return (time.perf_counter() - began) / _SLOW_PROMPTS.value


def _our_seconds(decoder, params, prompts, *, batch: int) -> float:
  """Returns seconds for all prompts, the best of some, without compilation."""
  mesh = jax.make_mesh(
    (jax.device_count(), 1),
    ("data", "fsdp"),
    axis_types=(AxisType.Auto,) * 2,
  )
  sampler = Sampler(
    decoder,
    mesh,
    batch=batch,
    new_tokens=_NEW_TOKENS.value,
    temperature=1.0,
    seed=0,
  )
  numbers = np.tile(np.arange(_PROMPTS.value), _KINDS)
  best = float("inf")
  for k in range(1 + _REPEATS.value):
    began = time.perf_counter()
    sampler(params, prompts, numbers)
    if k > 0:
      best = min(best, time.perf_counter() - began)
  return best


if __name__ == "__main__":
  command.run(main)
