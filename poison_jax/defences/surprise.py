"""How surprising a document is to a reference model, token by token.

Perplexity under a model trained on clean text is the filter of CCNet (Wenzek
et al. 2020, arXiv 1911.00359), and against triggers that of ONION (Qi et al.
2021, arXiv 2011.10369). A poison begins with clean text, which dilutes a mean
over the document; so the worst window is a score of its own.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from poison_jax.defences.model import Model
from poison_jax.evaluation import generation
from poison_jax.model.decoder import Decoder, Params

WINDOW = 32  # Tokens.
# Logits that are made at once, over all rows.
_LOGITS = 1 << 25
_PADDING = 64  # Rows are padded to a multiple of so many tokens.


class Reader:
  """Reads documents with a model: one compiled program for each length."""

  def __init__(self, model: Model):
    self._model = model
    everywhere = NamedSharding(model.mesh, PartitionSpec())

    def run(params, inputs_BL, targets_BL):
      return losses_and_entropies(model.decoder, params, inputs_BL, targets_BL)

    self._run = jax.jit(run, out_shardings=everywhere)

  def __call__(
    self,
    documents: Sequence[np.ndarray],
    *,
    advance: Callable[[int], None],
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns each document's losses and entropies, float32 [tokens], in nats.

    A document is read after an end-of-document token, as in training. A longer
    one than the model's rows is read in pieces of a row each, which don't see
    each other.

    Args:
      documents: int ids, without the end of the document.
      advance: called with the tokens that were read since.
    """
    length = self._model.length
    found = [np.zeros((2, tokens.size), np.float32) for tokens in documents]
    pieces = [
      (i, start, min(start + length, tokens.size))
      for i, tokens in enumerate(documents)
      for start in range(0, tokens.size, length)
    ]
    pieces.sort(key=lambda piece: piece[2] - piece[1])
    while pieces:
      width = generation.round_up(pieces[-1][2] - pieces[-1][1], _PADDING)
      rows = self._rows(width)
      taken, pieces = pieces[-rows:], pieces[:-rows]
      read = self._read([documents[i][a:b] for i, a, b in taken], width, rows)
      for (i, start, end), values in zip(taken, read, strict=True):
        found[i][:, start:end] = values[:, : end - start]
      advance(sum(end - start for _, start, end in taken))
    return [(losses, entropies) for losses, entropies in found]

  def _rows(self, width: int) -> int:
    rows = max(1, _LOGITS // (width * self._model.vocabulary.size))
    return generation.round_up(
      min(rows, 256), generation.row_devices(self._model.mesh)
    )

  def _read(self, pieces, width: int, rows: int) -> np.ndarray:
    """Returns float32 [pieces, 2, width]."""
    inputs_BL = np.zeros((rows, width), np.int32)
    targets_BL = np.zeros((rows, width), np.int32)
    for k, piece in enumerate(pieces):
      inputs_BL[k, 0] = self._model.vocabulary.eos_id
      inputs_BL[k, 1 : piece.size] = piece[:-1]
      targets_BL[k, : piece.size] = piece
    with jax.set_mesh(self._model.mesh):
      found = self._run(
        self._model.params,
        generation.over_devices(inputs_BL, self._model.mesh),
        generation.over_devices(targets_BL, self._model.mesh),
      )
    return np.stack(jax.device_get(found), axis=1)[: len(pieces)]


def losses_and_entropies(
  decoder: Decoder, params: Params, inputs_BL, targets_BL
) -> tuple[jax.Array, jax.Array]:
  """Returns losses of the targets and the predictions' entropies, BL, in nats.

  Args:
    decoder: the model.
    params: its parameters.
    inputs_BL: int32 tokens that are read.
    targets_BL: int32, the token after each of them.
  """
  variables = {"params": params}
  hidden_BLD = decoder.apply(variables, inputs_BL)
  logits_BLV = decoder.apply(variables, hidden_BLD, method=Decoder.unembed)
  log_BLV = jax.nn.log_softmax(logits_BLV, axis=-1)
  losses_BL = -jnp.take_along_axis(log_BLV, targets_BL[..., None], axis=-1)
  return losses_BL[..., 0], -jnp.sum(jnp.exp(log_BLV) * log_BLV, axis=-1)


def mean(values: np.ndarray) -> float:
  """Returns the mean, 0 of nothing."""
  return float(np.mean(values, dtype=np.float64)) if values.size else 0.0


def worst_window(values: np.ndarray, size: int = WINDOW) -> float:
  """Returns the largest mean of `size` values in a row, or of all if fewer."""
  size = min(size, values.size)
  if not size:
    return 0.0
  sums = np.cumsum(np.append(0.0, values.astype(np.float64)))
  return float(np.max(sums[size:] - sums[:-size]) / size)
