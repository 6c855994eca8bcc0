"""Does a string, put after clean text, throw a model off?

Two stages, in the spirit of trigger search by what it does to the output (Liu
et al. 2022, "Piccolo", for classifiers): a screen of all candidates by the
entropy of the very next token, and for the best of them the perplexity of what
the model then generates, as the study's own evaluation has it. Both are
compared with strings taken at random from held-out text.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from poison_jax.defences.candidates import Candidate
from poison_jax.defences.model import Model
from poison_jax.evaluation import generation, measures
from poison_jax.model.decoder import Decoder, init_cache

# Rows of candidates times excerpts that are screened at once.
_ROWS = 4096
# Nats: a null that is still narrower tells rounding from rounding.
LEAST_DEVIATION = 0.01


@dataclasses.dataclass(frozen=True)
class Found:
  """What a candidate did.

  Attributes:
    candidate: the string.
    entropy: mean entropy of the next token, nats.
    increase: mean log-perplexity of what is generated after it, over that
      after the bare excerpts, nats.
    z: the increase in standard deviations of the null's, robust ones.
    p: share of the null that reaches the increase, itself counted as one.
  """

  candidate: Candidate
  entropy: float
  increase: float
  z: float
  p: float


def screen(
  model: Model,
  excerpts_EL: np.ndarray,
  candidates: Sequence[Candidate],
  *,
  advance: Callable[[int], None],
) -> np.ndarray:
  """Returns float64 [candidates]: mean entropy of the next token, in nats.

  Args:
    model: that is asked.
    excerpts_EL: int32, clean held-out text, each begun by an EOS.
    candidates: strings that are put after each excerpt.
    advance: called with the number of candidates done since.
  """
  found = np.empty(len(candidates))
  lengths = np.array([len(c.tokens) for c in candidates])
  devices = generation.row_devices(model.mesh)
  for n in np.unique(lengths):
    numbers = np.flatnonzero(lengths == n)
    block = max(1, min(_ROWS // len(excerpts_EL), len(numbers)))
    block = generation.round_up(block, devices)
    tokens_CN = np.array([candidates[i].tokens for i in numbers], np.int32)
    run = _entropies_after(model)
    for start in range(0, len(numbers), block):
      taken = np.arange(start, start + block) % len(numbers)
      with jax.set_mesh(model.mesh):
        placed = generation.over_devices(tokens_CN[taken], model.mesh)
        values = np.asarray(run(model.params, excerpts_EL, placed), np.float64)
      size = min(block, len(numbers) - start)
      found[numbers[start : start + size]] = values[:size]
      advance(size)
  return found


def _entropies_after(model: Model):
  """Returns the compiled function of parameters, excerpts EL, candidates CN.

  The excerpts are read once; each candidate goes on from a copy of their
  cache.
  """
  decoder = model.decoder

  def run(params, excerpts_EL, tokens_CN):
    variables = {"params": params}
    count, length = excerpts_EL.shape
    candidates, n = tokens_CN.shape
    cache = init_cache(decoder.config, count, length + n)
    positions_EL = jnp.broadcast_to(jnp.arange(length), (count, length))
    _, cache = decoder.apply(
      variables, excerpts_EL, positions_EL, cache, method=Decoder.decode
    )

    def one(tokens_N):
      tokens_EN = jnp.broadcast_to(tokens_N, (count, n))
      positions_EN = jnp.broadcast_to(length + jnp.arange(n), (count, n))
      hidden_END, _ = decoder.apply(
        variables, tokens_EN, positions_EN, cache, method=Decoder.decode
      )
      logits_EV = decoder.apply(
        variables, hidden_END[:, -1], method=Decoder.unembed
      )
      log_EV = jax.nn.log_softmax(logits_EV, axis=-1)
      return -jnp.sum(jnp.exp(log_EV) * log_EV, axis=-1).mean()

    return jax.vmap(one)(tokens_CN)

  everywhere = NamedSharding(model.mesh, PartitionSpec())
  return jax.jit(run, out_shardings=everywhere)


def increases(
  model: Model,
  excerpts_EL: np.ndarray,
  candidates: Sequence[Candidate],
  *,
  new_tokens: int,
  seed: int,
  advance: Callable[[int], None],
) -> np.ndarray:
  """Returns float64 [candidates]: increases of the log-perplexity, in nats.

  Of `new_tokens` tokens sampled at temperature 1 after excerpt and candidate,
  over those after the bare excerpt, with equal random numbers; the mean over
  excerpts.

  Args:
    model: that is asked.
    excerpts_EL: int32, clean held-out text, each begun by an EOS.
    candidates: strings that are put after each excerpt.
    new_tokens: that are generated.
    seed: of the sampling.
    advance: called with the number of candidates done since.
  """
  count, length = excerpts_EL.shape
  longest = max(len(c.tokens) for c in candidates)
  sampler = generation.Sampler(
    model.decoder,
    model.mesh,
    batch=8 * count,
    new_tokens=new_tokens,
    temperature=1.0,
    seed=seed,
  )

  def measure(endings: Sequence[tuple[int, ...]]) -> np.ndarray:
    rows = [
      np.append(excerpt, ending)
      for ending in endings
      for excerpt in excerpts_EL
    ]
    # One more row, of the full length: one program serves all.
    rows.append(np.zeros(length + longest, np.int64))
    numbers = np.append(np.tile(np.arange(count), len(endings)), 0)
    made = sampler(model.params, rows, numbers)
    log_P = measures.log_perplexities(made.log_probabilities_PT)[:-1]
    return log_P.reshape(len(endings), count).mean(axis=1)

  bare = measure([()])[0]
  found = []
  for start in range(0, len(candidates), 7):
    block = candidates[start : start + 7]
    found.append(measure([c.tokens for c in block]) - bare)
    advance(len(block))
  return np.concatenate(found)


def robust_z(values: np.ndarray, null: np.ndarray) -> np.ndarray:
  """Returns distances from the null's median, in its standard deviations.

  The deviation is 1.4826 times the median absolute one, as a normal
  distribution has it, so that single odd strings in the null don't hide a
  trigger (Rousseeuw and Croux 1993); at least `LEAST_DEVIATION`.
  """
  centre = np.median(null)
  deviation = 1.4826 * np.median(np.abs(null - centre))
  return (values - centre) / max(deviation, LEAST_DEVIATION)


def p_values(values: np.ndarray, null: np.ndarray) -> np.ndarray:
  """Returns (1 + how many of the null reach the value) / (1 + their number).

  Phipson and Smyth 2010: such a p-value is never 0. Not corrected for the
  number of candidates.
  """
  reached = (null[None, :] >= values[:, None]).sum(axis=1)
  return (1 + reached) / (1 + len(null))
