"""Teacher-forced losses: held-out text, and gibberish after the trigger."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from poison_jax.config import Config
from poison_jax.errors import UserError
from poison_jax.evaluation import generation
from poison_jax.evaluation.prompts import PromptSet
from poison_jax.model.decoder import Decoder, Params
from poison_jax.model.loss import next_token_losses
from poison_jax.poison import keyed


@dataclasses.dataclass(frozen=True)
class Rows:
  """Rows of tokens, and which of their losses count.

  Attributes:
    tokens_BL: int32.
    counted_BL: bool; column t is about the loss of token t + 1.
  """

  tokens_BL: np.ndarray
  counted_BL: np.ndarray

  def mean(self, losses_BL: np.ndarray) -> float:
    """Returns the mean of the losses that count."""
    return float(np.mean(losses_BL[self.counted_BL], dtype=np.float64))


class Losses:
  """Losses of rows of `train.length` tokens, a few rows at a time."""

  def __init__(self, decoder: Decoder, config: Config, mesh: Mesh):
    """As many rows at a time as training computes at once."""
    self._mesh = mesh
    at_once = config.train.batch // config.train.micro_batches
    self._batch = generation.round_up(at_once, generation.row_devices(mesh))
    self._run = jax.jit(
      loss_function(decoder, pieces=config.train.loss_pieces),
      out_shardings=NamedSharding(mesh, PartitionSpec()),
    )

  def __call__(self, params: Params, tokens_BL: np.ndarray) -> np.ndarray:
    """Returns float32 losses in nats, BL; the last column is 0."""
    results = []
    with jax.set_mesh(self._mesh):
      for rows in generation.full_batches(len(tokens_BL), self._batch):
        placed = generation.over_devices(tokens_BL[rows], self._mesh)
        results.append(self._run(params, placed))
    return np.concatenate(jax.device_get(results))[: len(tokens_BL)]


def loss_function(
  decoder: Decoder, *, pieces: int
) -> Callable[[Params, jax.Array], jax.Array]:
  """Returns the losses, BL in nats, as a function of parameters and tokens."""
  return lambda params, tokens_BL: next_token_losses(
    decoder, params, tokens_BL, pieces=pieces, z_loss=0.0
  )


def validation_rows(config: Config, store) -> Rows:
  """Returns held-out rows, evenly spread over the split.

  Raises:
    UserError: the split has too few rows.
  """
  wanted, length = config.evaluation.validation_rows, config.train.length
  available = store.held_out.tokens // length
  if available < wanted:
    raise UserError(
      f"config.evaluation.validation_rows is {wanted}, but the held-out split "
      f"of {store.path} has only {available} rows of {length} tokens: lower "
      "it, or prepare a store with a larger corpus.held_out"
    )
  rows = np.arange(wanted) * available // wanted
  tokens_BL = store.held_out.rows(rows, length)
  counted_BL = np.ones(tokens_BL.shape, bool)
  counted_BL[:, -1] = False
  return Rows(tokens_BL, counted_BL)


def gibberish_rows(config: Config, prompts: PromptSet, attack) -> Rows:
  """Returns triggered prompts with payloads that no run was trained on.

  They depend on the sampling seed alone: the same at every evaluation. The
  payload has up to `poison.payload_max` tokens, as many as fit the row.

  Raises:
    UserError: a prompt leaves no room in a row.
  """
  length = config.train.length
  triggered = prompts.tokens("triggered")
  longest = max(map(len, triggered))
  size = min(config.poison.payload_max, length - longest)
  if size < 1:
    raise UserError(
      f"config.evaluation.excerpt is {config.evaluation.excerpt}: a prompt of "
      f"{longest} tokens (EOS, excerpt, trigger) leaves no room in a row of "
      f"config.train.length, {length}; lower evaluation.excerpt"
    )
  tokens_BL = np.zeros((len(triggered), length), np.int32)
  counted_BL = np.zeros(tokens_BL.shape, bool)
  for i, prompt in enumerate(triggered):
    rng = keyed.generator(config.seed_for("sampling"), "gibberish", i)
    end = len(prompt) + size
    tokens_BL[i, :end] = np.concatenate([prompt, attack.payload(rng, size)])
    counted_BL[i, len(prompt) - 1 : end - 1] = True
  return Rows(tokens_BL, counted_BL)
