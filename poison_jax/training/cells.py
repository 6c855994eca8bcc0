"""Several runs in one program: arrays with an axis of cells C in front.

A cell's arithmetic is that of its own train step under `jax.vmap`, so nothing
of one cell reaches another. On several devices each computes its share of the
cells, whole; nothing is exchanged.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from poison_jax.config import Config
from poison_jax.data.batches import rows_of_cells
from poison_jax.data.mixture import Batch, Mixture
from poison_jax.evaluation.cells import AXIS
from poison_jax.model.counts import run_steps
from poison_jax.model.decoder import Decoder
from poison_jax.training import mesh as mesh_lib
from poison_jax.training.optimizer import run_optimizer
from poison_jax.training.step import TrainState, TrainStep, step_function


def make_mesh(cells: int) -> Mesh:
  """Returns a mesh of as many devices as share `cells` evenly.

  It has the axes of a run's mesh, too, of one device each.
  """
  devices = jax.devices()
  used = math.gcd(cells, len(devices))
  axes = (AXIS, *mesh_lib.AXES)
  return jax.make_mesh(
    (used, *(1,) * len(mesh_lib.AXES)),
    axes,
    axis_types=(AxisType.Auto,) * len(axes),
    devices=devices[:used],
  )


def stack(states: Sequence[TrainState], mesh: Mesh) -> TrainState:
  """Returns the states of C cells as one, each array with C in front."""
  stacked = jax.tree.map(lambda *cells: jnp.stack(cells), *states)
  return jax.device_put(stacked, _over_cells(mesh))


@jax.jit
def cut(state_C: TrainState, cell: int) -> TrainState:
  """Returns one cell's state, as it would be alone."""
  return jax.tree.map(lambda x: x[cell], state_C)


def make_batch(mixtures: Sequence[Mixture], step: int, mesh: Mesh) -> Batch:
  """Returns `rows_of_cells` on the devices."""
  cells, everywhere = _over_cells(mesh), NamedSharding(mesh, PartitionSpec())
  shardings = Batch(cells, everywhere, cells, cells)
  return jax.device_put(rows_of_cells(mixtures, step), shardings)


def make_train_step(
  decoder: Decoder, configs: Sequence[Config], mesh: Mesh
) -> TrainStep:
  """Returns the compiled step of C cells: states and batches in and out.

  The state that goes in is donated. Metrics are those of a run's own step,
  each an array C.

  Args:
    decoder: of every cell.
    configs: the cells', which `alike` lets train together.
    mesh: of `make_mesh`.
  """
  config = configs[0]
  steps = run_steps(config, decoder.vocabulary_size)
  peaks_C = np.array([c.optimizer.learning_rate for c in configs], np.float32)

  def step(state: TrainState, batch: Batch, peak: jax.Array):
    optimizer = dataclasses.replace(config.optimizer, learning_rate=peak)
    own = dataclasses.replace(config, optimizer=optimizer)
    own_step = step_function(decoder, run_optimizer(own, steps=steps), own)
    return own_step(state, batch)

  axes = (0, Batch(0, None, 0, 0), 0)
  compiled = jax.jit(
    jax.vmap(step, axes, spmd_axis_name=AXIS),
    donate_argnums=0,
    out_shardings=_over_cells(mesh),
  )

  def call(state_C: TrainState, batch: Batch):
    with jax.set_mesh(mesh):
      return compiled(state_C, batch, peaks_C)

  return call


def _over_cells(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec(AXIS))
