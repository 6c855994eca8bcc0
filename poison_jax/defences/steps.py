"""Signals of training at poisoned steps, with the ledger as labels.

Whoever trains a model sees the loss and the gradient's norm of every step. Do
the poisoned steps stand out?
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from poison_jax.data.mixture import Mixture
from poison_jax.defences import surprise
from poison_jax.defences.model import Model
from poison_jax.errors import UserError
from poison_jax.evaluation import generation
from poison_jax.model.loss import next_token_losses
from poison_jax.studies.runs import Run

# What a line of metrics.jsonl has of its step's batch.
LOGGED = ("train/loss", "train/grad_norm")
# Logged steps before and after, whose median a value is compared with.
_NEIGHBOURS = 10


@dataclasses.dataclass(frozen=True)
class Signals:
  """Scores with labels, a value for each step or row.

  Attributes:
    names: what each is, for the file.
    scores: by signal, float64.
    poisoned: bool.
  """

  names: tuple[str, ...]
  scores: dict[str, np.ndarray]
  poisoned: np.ndarray


def logged(run: Run, poisoned_steps: Sequence[int]) -> Signals:
  """Returns the logged losses and gradient norms, over their neighbours'.

  Each is divided by the median of up to ten logged before and ten after it,
  since both fall as the training goes on. The line of step s tells of the
  batch s - 1.

  Args:
    run: with its metrics.
    poisoned_steps: batches that hold a poison, numbered from 0.

  Raises:
    UserError: the run has logged no step, or none of one kind.
  """
  missing = [key for key in LOGGED if key not in run.metrics]
  if missing:
    raise UserError(f"{run.path} has no metrics yet ({missing[0]} is missing)")
  batches = run.metrics[LOGGED[0]].steps - 1
  poisoned = np.isin(batches, np.asarray(poisoned_steps))
  if poisoned.all() or not poisoned.any():
    raise UserError(
      f"{'all' if poisoned.all() else 'none'} of the {len(batches)} logged "
      f"steps of {run.path} are poisoned: rates need some of each (--step=last "
      "reads the batches again)"
    )
  return Signals(
    names=tuple(f"step {batch}" for batch in batches),
    scores={
      key: over_neighbours(run.metrics[key].values, _NEIGHBOURS)
      for key in LOGGED
    },
    poisoned=poisoned,
  )


def over_neighbours(values: np.ndarray, reach: int) -> np.ndarray:
  """Returns each value over the median of those around it, itself left out.

  Args:
    values: positive, at least two.
    reach: values before and after that count, fewer at the ends.
  """
  found = np.empty(len(values))
  for i, value in enumerate(values):
    around = np.append(
      values[max(0, i - reach) : i], values[i + 1 : i + 1 + reach]
    )
    found[i] = value / np.median(around)
  return found


def choose_rows(
  mixture: Mixture, *, clean: int, seed: int
) -> list[tuple[int, int]]:
  """Returns (step, batch row) of every poison and of rows without any.

  Args:
    mixture: of a run with poisons.
    clean: rows without a poison, from steps drawn at random, as many as there
      are at most.
    seed: draws them.
  """
  poisoned = {(p.step, p.batch_row) for p in mixture.placements}
  slots = mixture.steps * mixture.batch
  wanted = min(clean, slots - len(poisoned))
  order = np.random.default_rng(seed).permutation(slots)
  others = []
  for slot in order:
    if len(others) == wanted:
      break
    place = divmod(int(slot), mixture.batch)
    if place not in poisoned:
      others.append(place)
  return sorted(poisoned) + sorted(others)


def reread(
  model: Model,
  mixture: Mixture,
  rows: Sequence[tuple[int, int]],
  *,
  advance: Callable[[int], None],
) -> Signals:
  """Returns losses and gradient norms of rows under a model's parameters.

  Args:
    model: the run's, after some step; not what each step's own was.
    mixture: the run's batches.
    rows: (step, batch row), some with poisons and some without.
    advance: called with the rows done since.
  """
  run = _row_function(model)
  poisoned = {(p.step, p.batch_row) for p in mixture.placements}
  found = []
  for step, row in rows:
    tokens_BL = mixture.batch_rows(step, np.array([row])).tokens_BL
    losses_L, norm = jax.device_get(run(tokens_BL))
    # The last column has no target.
    losses = losses_L[:-1]
    worst = surprise.worst_window(losses)
    found.append((surprise.mean(losses), worst, float(norm)))
    advance(1)
  names = ("loss", "loss_window", "gradient_norm")
  return Signals(
    names=tuple(f"step {step} row {row}" for step, row in rows),
    scores=dict(zip(names, np.array(found, np.float64).T, strict=True)),
    poisoned=np.array([place in poisoned for place in rows]),
  )


def _row_function(model: Model):
  """Returns a function of a row, int32 1L: its losses, L, and gradient's norm.

  The row is repeated for each device that shares the rows of a batch: the mean
  of equal losses has the gradient of one.
  """
  copies = generation.row_devices(model.mesh)

  def mean_loss(params, tokens_BL):
    losses_BL = next_token_losses(
      model.decoder, params, tokens_BL, pieces=1, z_loss=0.0
    )
    return jnp.mean(losses_BL[:, :-1]), losses_BL[0]

  def run(params, tokens_BL):
    gradient, losses_L = jax.grad(mean_loss, has_aux=True)(params, tokens_BL)
    return losses_L, optax.tree.norm(gradient)

  compiled = jax.jit(
    run, out_shardings=NamedSharding(model.mesh, PartitionSpec())
  )

  def call(row_1L: np.ndarray):
    tokens_BL = np.repeat(row_1L, copies, axis=0)
    with jax.set_mesh(model.mesh):
      return compiled(
        model.params, generation.over_devices(tokens_BL, model.mesh)
      )

  return call
