"""Cells an hour: trained together, one at a time, and in two pinned processes.

  python -m benchmarks.together [--sizes=35k,123k] [--cells=1,2,4,8]

A cell is a run of configs/tiny.py or configs/stories.py, whichever has the
size, from the first step to the last with all its evaluations: each side does
the same number of training steps of cells, batches from the store included, and
evaluations; cells an hour follow from both. Compilation, checkpoints and lines
are left out: they take as long on each side.

The sides are processes that take turns, and the best of the rounds counts, so
that a busy machine distorts the ratios less; where others use the cores all the
time, only the CPU seconds (of all threads) mean something. "pinned" are two
processes with a core each, a cell each at a time: on a CPU it must be beaten
for batching to be worth anything there; --nopinned leaves it out, for an
accelerator.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from configs import stories, tiny
from poison_jax import command
from poison_jax import config as config_lib
from poison_jax.config import Config
from poison_jax.data.batches import device_batches, made_ahead
from poison_jax.errors import UserError
from poison_jax.evaluation.cells import CellsEvaluator
from poison_jax.evaluation.evaluator import Evaluator
from poison_jax.model.counts import run_steps
from poison_jax.training import cells as cells_lib
from poison_jax.training import host_memory
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import run as run_lib
from poison_jax.training import step as step_lib
from poison_jax.training.optimizer import make_optimizer
from poison_jax.training.stop import StopSignals

_SIZES = flags.DEFINE_list("sizes", ["35k", "123k"], "Models.")
_CELLS = flags.DEFINE_list("cells", ["1", "2", "4", "8"], "Cells together.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each side.")
_STEPS = flags.DEFINE_integer("steps", 64, "Training steps of cells, a turn.")
_PINNED = flags.DEFINE_bool("pinned", True, "Two pinned processes, too.")
_WORKER = flags.DEFINE_string("worker", "", "Used by the script itself.")

_CONFIGS = {size: module for module in (tiny, stories) for size in module.SIZES}
_STORIES = 5_000
# No run is as long: the batches don't end while it is measured.
_ENDLESS = 1_000_000


@dataclasses.dataclass(frozen=True)
class _Side:
  """A way to train cells, with a process or two.

  Attributes:
    name: of the table's row.
    cells: that it trains at once.
    processes: which do so.
  """

  name: str
  cells: int
  processes: list[subprocess.Popen]

  def seconds(self, what: str, times: int) -> np.ndarray:
    """Returns the seconds a cell of doing it once: wall, CPU."""
    for process in self.processes:
      process.stdin.write(f"{what} {times}\n")
      process.stdin.flush()
    took = [json.loads(p.stdout.readline()) for p in self.processes]
    wall, cpu = zip(*took, strict=True)
    return np.array([max(wall), sum(cpu)]) / (times * self.cells)


def main(arguments: list[str]) -> None:
  """Measures all sides and prints a table for each size."""
  del arguments
  unknown = [size for size in _SIZES.value if size not in _CONFIGS]
  if unknown:
    raise UserError(
      f"--sizes={unknown[0]}: the sizes are {', '.join(_CONFIGS)}"
    )
  if _WORKER.value:
    _work(**json.loads(_WORKER.value))
    return
  with tempfile.TemporaryDirectory() as folder:
    for size in _SIZES.value:
      _measure(size, folder)


def _measure(size: str, folder: str) -> None:
  config = _config(size, folder, seed=0)
  with StopSignals() as stop:
    run_lib.prepare_missing_store(config, stop)
  whole = dataclasses.replace(
    config, train=dataclasses.replace(config.train, steps=0)
  )
  steps = run_steps(whole, config.vocabulary.size)
  evaluations = config.evaluation.times + 1
  with contextlib.ExitStack() as stack:
    sides = list(_sides(size, folder, stack))
    best = {side.name: np.full((2, 2), np.inf) for side in sides}
    for _ in range(_ROUNDS.value):
      for side in sides:
        times = max(1, _STEPS.value // side.cells)
        found = side.seconds("step", times), side.seconds("evaluate", 1)
        best[side.name] = np.minimum(best[side.name], found)
  table = Table(
    "side",
    "ms a step of a cell: wall",
    "CPU",
    "s an evaluation: wall",
    "CPU",
    "cells an hour",
    "of one at a time",
    "a CPU hour",
    "of one at a time",
    title=f"{size}: {steps} steps, {evaluations} evaluations a cell",
  )
  times = np.array([steps, evaluations]) / 3600
  alone = times @ best["one at a time"]
  for name, ((step, step_cpu), (evaluation, evaluation_cpu)) in best.items():
    hours = times @ best[name]
    table.add_row(
      name,
      f"{1e3 * step:.2f}",
      f"{1e3 * step_cpu:.2f}",
      f"{evaluation:.2f}",
      f"{evaluation_cpu:.2f}",
      f"{1 / hours[0]:.1f}",
      f"{alone[0] / hours[0]:.2f}",
      f"{1 / hours[1]:.1f}",
      f"{alone[1] / hours[1]:.2f}",
    )
  Console(width=110).print(table)


def _sides(size: str, folder: str, stack: contextlib.ExitStack):
  yield _Side("one at a time", 1, [_start(stack, size, folder, 0, None)])
  if _PINNED.value:
    processes = [_start(stack, size, folder, 0, core) for core in (0, 1)]
    yield _Side("pinned", 2, processes)
  for cells in map(int, _CELLS.value):
    process = _start(stack, size, folder, cells, None)
    yield _Side(f"{cells} together", cells, [process])


def _start(
  stack: contextlib.ExitStack,
  size: str,
  folder: str,
  cells: int,
  core: int | None,
) -> subprocess.Popen:
  """Starts a worker and waits until it has compiled."""
  worker = json.dumps({"size": size, "folder": folder, "cells": cells})
  pinned = [] if core is None else ["taskset", "-c", str(core)]
  process = stack.enter_context(
    subprocess.Popen(
      [
        *pinned,
        sys.executable,
        "-m",
        "benchmarks.together",
        "--worker",
        worker,
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    )
  )
  stack.callback(process.stdin.close)
  process.stdout.readline()
  return process


def _config(size: str, folder: str, *, seed: int) -> Config:
  module = _CONFIGS[size]
  c = module.get_config(f"size={size},seed={seed}")
  c.corpus.stories = _STORIES
  c.corpus.held_out = 0.1
  c.corpus.store = os.path.join(folder, module.__name__)
  c.seeds.order = 0
  c.train.steps = _ENDLESS
  return config_lib.from_config_dict(c)


def _work(*, size: str, folder: str, cells: int) -> None:
  """Answers "step N" and "evaluate N" with the seconds of N: wall, CPU."""
  if host_memory.only_cpu():
    host_memory.keep_freed_memory()  # As `train` does.
  configs = [_config(size, folder, seed=i) for i in range(max(1, cells))]
  run_lib.use_compilation_cache(configs[0].runtime)
  with _together(configs) if cells else _alone(configs[0]) as doing:
    for do in doing.values():
      do(1)
    print("ready", flush=True)
    for line in sys.stdin:
      what, times = line.split()
      wall, cpu = time.perf_counter(), time.process_time()
      doing[what](int(times))
      took = time.perf_counter() - wall, time.process_time() - cpu
      print(json.dumps(took), flush=True)


@contextlib.contextmanager
def _alone(config: Config):
  """Gives what a run does: {"step": f, "evaluate": f}, each of "how often"."""
  run = run_lib.plan_run(config)
  mesh = mesh_lib.make_mesh(config.runtime.mesh, batch=config.train.batch)
  optimizer = make_optimizer(config.optimizer, steps=run.steps)
  evaluator = Evaluator(
    run.decoder, config, run.store, run.mixture.attack, mesh
  )
  with device_batches(
    run.mixture,
    start=0,
    sharding=mesh_lib.batch_sharding(mesh),
    prefetch=config.runtime.prefetch,
  ) as batches:
    yield _doing(
      step_lib.make_train_step(run.decoder, optimizer, config, mesh),
      step_lib.init_state(run.decoder, optimizer, config.seed, mesh),
      batches,
      evaluator,
    )


@contextlib.contextmanager
def _together(configs: list[Config]):
  """Like `_alone`, of several runs at once."""
  runs = [run_lib.plan_run(config) for config in configs]
  run, mixtures = runs[0], [run.mixture for run in runs]
  alone = mesh_lib.make_mesh(
    config_lib.MeshConfig(data=1, fsdp=1, tensor=1),
    batch=configs[0].train.batch,
    devices=jax.devices()[:1],
  )
  mesh = cells_lib.make_mesh(len(runs))
  optimizer = make_optimizer(configs[0].optimizer, steps=run.steps)
  states = [
    step_lib.init_state(run.decoder, optimizer, config.seed, alone)
    for config in configs
  ]
  evaluators = [
    Evaluator(r.decoder, r.config, r.store, r.mixture.attack, alone)
    for r in runs
  ]
  evaluator = CellsEvaluator(run.decoder, configs, evaluators, mesh)
  with made_ahead(
    lambda step: cells_lib.make_batch(mixtures, step, mesh),
    steps=range(run.steps),
    prefetch=configs[0].runtime.prefetch,
  ) as batches:
    yield _doing(
      cells_lib.make_train_step(run.decoder, configs, mesh),
      cells_lib.stack(states, mesh),
      batches,
      lambda params: evaluator(params, range(len(runs))),
    )


def _doing(train_step, state, batches, evaluate):
  def step(times: int) -> None:
    nonlocal state
    for _ in range(times):
      _, batch = next(batches)
      state, metrics = train_step(state, batch)
    jax.block_until_ready(metrics)

  def evaluations(times: int) -> None:
    for _ in range(times):
      evaluate(state.params)

  return {"step": step, "evaluate": evaluations}


if __name__ == "__main__":
  command.run(main)
