"""Runs prompts through the sampler in batches over the devices."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from poison_jax.evaluation import measures
from poison_jax.evaluation.prompts import PromptSet
from poison_jax.model.decoder import Decoder, Params
from poison_jax.model.sampling import Generations, generate

# Mesh axes that rows are dealt out over.
_ROW_AXES = ("data", "fsdp")


class Sampler:
  """Generates after prompts of any length; one compiled program a length.

  Prompt number i has the random numbers of key i whatever its kind and
  whatever batch or device it falls into.
  """

  def __init__(
    self,
    decoder: Decoder,
    mesh: Mesh,
    *,
    batch: int,
    new_tokens: int,
    temperature: float,
    seed: int,
  ):
    """Args:
    decoder: the model.
    mesh: rows go over its axes "data" and "fsdp".
    batch: rows at once; rounded up to a multiple of the devices that share
      them.
    new_tokens: tokens generated for each prompt.
    temperature: of sampling.
    seed: with a prompt's number, fixes its random numbers.
    """
    self._mesh = mesh
    self._batch = round_up(batch, row_devices(mesh))
    everywhere = NamedSharding(mesh, PartitionSpec())

    # An argument of the compiled program, which then serves every seed.
    self._seed = seed_words(seed)
    run = sampling_function(decoder, new_tokens, temperature)
    # Every host gets all generations: they are small, and each host then
    # computes the same measures.
    self._run = jax.jit(run, out_shardings=everywhere)

  def __call__(
    self, params: Params, prompts: Sequence[np.ndarray], numbers: Sequence[int]
  ) -> Generations:
    """Returns numpy arrays, a row for each prompt.

    Args:
      params: the decoder's, on this mesh.
      prompts: int arrays of ids, each at least one.
      numbers: each prompt's number, which chooses its random numbers.
    """
    tokens_PL, lengths_P = padded(prompts, length=max(map(len, prompts)))
    numbers_P = np.asarray(numbers, np.int32)
    results = []
    with jax.set_mesh(self._mesh):
      for rows in full_batches(len(prompts), self._batch):
        results.append(
          self._run(
            params,
            self._seed,
            over_devices(tokens_PL[rows], self._mesh),
            over_devices(lengths_P[rows], self._mesh),
            over_devices(numbers_P[rows], self._mesh),
          )
        )
    joined = jax.tree.map(
      lambda *x: np.concatenate(x), *jax.device_get(results)
    )
    return Generations(*(x[: len(prompts)] for x in joined))


@dataclasses.dataclass(frozen=True)
class Scores:
  """One kind's generations and what each prompt scored.

  Attributes:
    tokens_PT: int32, the generated ids.
    log_perplexity_P: float64, nats.
    first_entropy_P: float64, nats.
  """

  tokens_PT: np.ndarray
  log_perplexity_P: np.ndarray
  first_entropy_P: np.ndarray


def score(
  sampler: Sampler, params: Params, prompts: PromptSet
) -> dict[str, Scores]:
  """Returns the scores of each kind, all kinds generated as one long list."""
  return scores_by_kind(prompts, sampler(params, *all_kinds(prompts)))


def all_kinds(prompts: PromptSet) -> tuple[list[np.ndarray], np.ndarray]:
  """Returns the prompts of all kinds as one long list, and their numbers."""
  kinds = list(prompts.endings)
  rows = [row for kind in kinds for row in prompts.tokens(kind)]
  return rows, np.tile(np.arange(len(prompts)), len(kinds))


def scores_by_kind(
  prompts: PromptSet, generations: Generations
) -> dict[str, Scores]:
  """Returns the scores of each kind; generations after `all_kinds`."""
  kinds = list(prompts.endings)
  log_P = measures.log_perplexities(generations.log_probabilities_PT)
  entropy_P = generations.first_entropy_P.astype(np.float64)
  return {
    kind: Scores(generations.tokens_PT[rows], log_P[rows], entropy_P[rows])
    for kind, rows in zip(
      kinds,
      np.split(np.arange(len(log_P)), len(kinds)),
      strict=True,
    )
  }


def sampling_function(
  decoder: Decoder, new_tokens: int, temperature: float
) -> Callable[..., Generations]:
  """Returns the function that a sampler compiles.

  Of parameters, `seed_words`, prompts PL, their lengths P and numbers P.
  """

  def run(params, seed, prompts_PL, lengths_P, numbers_P):
    root = jax.random.wrap_key_data(seed, impl="threefry2x32")
    return generate(
      decoder,
      params,
      prompts_PL,
      lengths_P,
      keys_P=jax.vmap(functools.partial(jax.random.fold_in, root))(numbers_P),
      new_tokens=new_tokens,
      temperature=temperature,
    )

  return run


def seed_words(seed: int) -> np.ndarray:
  """Returns uint32 [2]: the upper and the lower half of a seed."""
  return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)


def padded(
  prompts: Sequence[np.ndarray], *, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the prompts as int32 PL, zeros behind them, and lengths P."""
  tokens_PL = np.zeros((len(prompts), length), np.int32)
  for row, prompt in zip(tokens_PL, prompts, strict=True):
    row[: len(prompt)] = prompt
  return tokens_PL, np.array([len(p) for p in prompts], np.int32)


def full_batches(rows: int, batch: int) -> Iterator[np.ndarray]:
  """Yields row numbers, `batch` at a time; the last is filled up in turn."""
  for start in range(0, rows, batch):
    yield np.arange(start, start + batch) % rows


def row_devices(mesh: Mesh) -> int:
  """Returns how many devices share the rows of a batch."""
  return int(np.prod([mesh.shape[axis] for axis in _ROW_AXES]))


def round_up(number: int, multiple: int) -> int:
  return -(-number // multiple) * multiple


def over_devices(rows: np.ndarray, mesh: Mesh) -> jax.Array:
  """Returns the rows as one array over the mesh; each host makes its own."""
  sharding = NamedSharding(mesh, PartitionSpec(_ROW_AXES))
  return jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__)
