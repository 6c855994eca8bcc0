"""The evaluations of several runs that train in one program.

Each cell keeps its own prompts, gibberish and random numbers, and its own
`Evaluator` makes the measures of what was computed for all at once.
"""

from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from poison_jax.config import Config
from poison_jax.errors import UserError
from poison_jax.evaluation import generation, losses
from poison_jax.evaluation.evaluator import Evaluation, Evaluator
from poison_jax.model.decoder import Decoder, Params
from poison_jax.model.sampling import Generations

# The mesh axis that cells are dealt out over.
AXIS = "cell"


class CellsEvaluator:
  """Evaluates the parameters of C runs, each array of them with C in front."""

  def __init__(
    self,
    decoder: Decoder,
    configs: Sequence[Config],
    evaluators: Sequence[Evaluator],
    mesh: Mesh,
  ):
    """Args:
    decoder: of every cell.
    configs: the cells', which train together.
    evaluators: the cells' own.
    mesh: with an axis "cell", where the parameters will be.

    Raises:
      UserError: their prompts are not of the same kinds.
    """
    self._mesh = mesh
    self._evaluators = evaluators
    e, train = configs[0].evaluation, configs[0].train
    self._prompts_at_once = e.batch
    self._rows_at_once = train.batch // train.micro_batches
    self._seeds_C2 = np.stack(
      [generation.seed_words(c.seed_for("sampling")) for c in configs]
    )
    rows, numbers = zip(
      *(generation.all_kinds(own.prompts) for own in evaluators), strict=True
    )
    if len({tuple(own.prompts.endings) for own in evaluators}) > 1:
      raise UserError(
        "cells that train together must have the same kinds of prompts: theirs "
        "differ by config.poison.trigger or config.poison.attack"
      )
    longest = max(len(prompt) for cell in rows for prompt in cell)
    tokens, lengths = zip(
      *(generation.padded(cell, length=longest) for cell in rows), strict=True
    )
    self._tokens_CPL, self._lengths_CP = np.stack(tokens), np.stack(lengths)
    self._numbers_P = numbers[0].astype(np.int32)  # Of each cell the same.
    self._validation_CBL = np.stack(
      [own.validation.tokens_BL for own in evaluators]
    )
    self._gibberish_CBL = np.stack(
      [own.gibberish.tokens_BL for own in evaluators]
    )
    cells = NamedSharding(mesh, PartitionSpec(AXIS))
    everywhere = NamedSharding(mesh, PartitionSpec())
    sample = generation.sampling_function(decoder, e.new_tokens, e.temperature)
    self._generate = jax.jit(
      jax.vmap(sample, (0, 0, 0, 0, None), spmd_axis_name=AXIS),
      in_shardings=(cells, cells, cells, cells, everywhere),
      out_shardings=everywhere,
    )
    loss = losses.loss_function(decoder, pieces=train.loss_pieces)
    self._losses = jax.jit(
      jax.vmap(loss, spmd_axis_name=AXIS),
      in_shardings=(cells, cells),
      out_shardings=everywhere,
    )

  def __call__(
    self, params_C: Params, cells: Iterable[int]
  ) -> dict[int, Evaluation]:
    """Returns the evaluations of these cells; all are computed."""
    with jax.set_mesh(self._mesh):
      generations = self._all_generations(params_C)
      validation_CBL = self._all_losses(params_C, self._validation_CBL)
      gibberish_CBL = self._all_losses(params_C, self._gibberish_CBL)
    return {
      i: self._evaluators[i].measure(
        generation.scores_by_kind(
          self._evaluators[i].prompts,
          Generations(*(array[i] for array in generations)),
        ),
        validation_BL=validation_CBL[i],
        gibberish_BL=gibberish_CBL[i],
      )
      for i in cells
    }

  def _all_generations(self, params_C: Params) -> Generations:
    """Returns numpy arrays, CP in front."""
    count = self._tokens_CPL.shape[1]
    results = [
      self._generate(
        params_C,
        self._seeds_C2,
        self._tokens_CPL[:, rows],
        self._lengths_CP[:, rows],
        self._numbers_P[rows],
      )
      for rows in generation.full_batches(count, self._prompts_at_once)
    ]
    return Generations(*_joined(results, count))

  def _all_losses(self, params_C: Params, tokens_CBL: np.ndarray) -> np.ndarray:
    """Returns float32 losses in nats, CBL."""
    count = tokens_CBL.shape[1]
    results = [
      (self._losses(params_C, tokens_CBL[:, rows]),)
      for rows in generation.full_batches(count, self._rows_at_once)
    ]
    return _joined(results, count)[0]


def _joined(results: list[tuple], count: int) -> list[np.ndarray]:
  """Returns the arrays of all batches, joined along the second axis."""
  fetched = zip(*jax.device_get(results), strict=True)
  return [np.concatenate(arrays, axis=1)[:, :count] for arrays in fetched]
