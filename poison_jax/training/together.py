"""Trains several runs of one shape together, each as if it were alone.

The runs ("cells" of a study) advance in one program (`training.cells`) and
through the one loop (`loop.advance`). Each has its own folder with the files of
a run alone, so it goes on alone or with others: the same ledger, counters and
random numbers, and in float32 the same numbers but for the order of sums inside
a product (losses within 2e-7 of themselves over 500 steps on a CPU; the tests
hold 1e-5). Their times are a cell's share of the program's.

It is for accelerators that one small model leaves idle. On a CPU it loses to
processes with a core each (LOG.md, "Cells together").
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
from jax.sharding import Mesh

from poison_jax.config import Config, MeshConfig
from poison_jax.data.batches import made_ahead
from poison_jax.data.folder import Folder
from poison_jax.errors import NotFinite, PoisonJaxError, UserError
from poison_jax.evaluation.cells import CellsEvaluator
from poison_jax.evaluation.evaluator import Evaluator
from poison_jax.training import alike, host_memory, loop, origin, xla_flags
from poison_jax.training import cells as cells_lib
from poison_jax.training import lock as lock_lib
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import run as run_lib
from poison_jax.training import workdir as workdir_lib
from poison_jax.training.beginning import (
  Beginning,
  begin,
  make_clock,
  make_meta,
)
from poison_jax.training.cells_record import CellsRecord, Joined
from poison_jax.training.lock import Lock
from poison_jax.training.optimizer import run_optimizer
from poison_jax.training.progress import Progress
from poison_jax.training.record import Record
from poison_jax.training.run import Run
from poison_jax.training.saving import CheckpointWriter
from poison_jax.training.step import TrainState
from poison_jax.training.stop import StopSignals


@dataclasses.dataclass(frozen=True)
class CellResult:
  """What became of a cell.

  Attributes:
    workdir: its folder.
    outcome: "done"; "stopped" by a signal, what it did is saved; or "not
      finite": its loss is not.
    step: steps done; of a loss that is not finite, those of its last good
      checkpoint, 0 without one.
    message: in one line.
  """

  workdir: str
  outcome: Literal["done", "stopped", "not finite"]
  step: int
  message: str


@dataclasses.dataclass(frozen=True)
class _Cell:
  """A run that is planned, in a folder that is held."""

  workdir: str
  lock: Lock
  run: Run
  evaluator: Evaluator


def train_together(
  workdirs: Sequence[str], *, stop: StopSignals
) -> list[CellResult]:
  """Trains the runs in these folders to their ends, from where they stopped.

  Those that are at the same step train together; of several such groups one
  trains after another, the least advanced first. A run is on one device,
  whatever its `runtime.mesh` says; several devices share the runs. A signal
  stops all of a group after the same step, saved.

  Args:
    workdirs: each with its `config.json`, new or half done.
    stop: the signals, listened to.

  Returns:
    What became of each, in the order of `workdirs`.

  Raises:
    UserError: they can't train together, or one of them can't train.
    CheckFailed: no checkpoint of one is good, or its planned and counted
      poisons differ. All are as their last checkpoints have them.
    Stopped: a signal came while the token store was prepared.
  """
  if len(set(workdirs)) < len(workdirs):
    raise UserError("a cell is named twice: each folder trains once")
  configs = [workdir_lib.load_config(workdir) for workdir in workdirs]
  reason = alike.can_train_together(configs)
  if reason is not None:
    raise UserError(reason)
  if host_memory.only_cpu():
    host_memory.keep_freed_memory()  # Before anything asks for devices.
  xla_flags.set_overlap_flags()  # Likewise.
  with contextlib.ExitStack() as stack:
    locks = [
      stack.enter_context(lock_lib.locked(Folder(workdir)))
      for workdir in workdirs
    ]
    run_lib.prepare_missing_store(configs[0], stop)
    run_lib.use_compilation_cache(configs[0].runtime)
    one_device = mesh_lib.make_mesh(
      MeshConfig(data=1, fsdp=1, tensor=1),
      batch=configs[0].train.batch,
      devices=jax.devices()[:1],
    )
    cells = [
      _plan(*cell, one_device)
      for cell in zip(workdirs, locks, configs, strict=True)
    ]
    for cell in cells:  # Once none is refused.
      with _naming(cell.workdir):
        run_lib.write_or_check_ledger(cell.run, cell.workdir)
    waiting = {i: _begin(cell, one_device) for i, cell in enumerate(cells)}
    results = {}
    while waiting:
      step = min(b.step for b in waiting.values())
      group = [i for i, b in waiting.items() if b.step == step]
      found = _train_group(
        [cells[i] for i in group], [waiting.pop(i) for i in group], stop
      )
      results |= zip(group, found, strict=True)
  return [results[i] for i in range(len(cells))]


def _plan(workdir: str, lock: Lock, config: Config, mesh: Mesh) -> _Cell:
  with _naming(workdir):
    run = run_lib.plan_run(config)
    origin.check(run, workdir)
    evaluator = Evaluator(
      run.decoder, config, run.store, run.mixture.attack, mesh
    )
  return _Cell(workdir, lock, run, evaluator)


def _begin(cell: _Cell, mesh: Mesh) -> Beginning:
  run = cell.run
  optimizer = run_optimizer(run.config, steps=run.steps)
  with _naming(cell.workdir):
    return begin(run, mesh, optimizer, cell.workdir, lambda _, fact: [fact])


@contextlib.contextmanager
def _naming(workdir: str) -> Iterator[None]:
  """Puts a cell's folder before an error's message."""
  try:
    yield
  except PoisonJaxError as error:
    if workdir in str(error):
      raise
    raise type(error)(f"{workdir}: {error}") from error


def _train_group(
  cells: Sequence[_Cell], beginnings: Sequence[Beginning], stop: StopSignals
) -> list[CellResult]:
  """Trains cells that are at the same step; returns what became of each."""
  run, start = cells[0].run, beginnings[0].step
  if start == run.steps:
    return [_done(cell) for cell in cells]
  if stop.received is not None:
    return [_stopped(cell, stop, start, "before a step") for cell in cells]
  configs = [cell.run.config for cell in cells]
  mixtures = [cell.run.mixture for cell in cells]
  mesh = cells_lib.make_mesh(len(cells))
  clock = make_clock(run)
  evaluator = CellsEvaluator(
    run.decoder, configs, [cell.evaluator for cell in cells], mesh
  )
  failures: dict[int, CellResult] = {}

  with contextlib.ExitStack() as stack:
    progress = stack.enter_context(
      Progress(
        steps=run.steps, poisons=sum(len(m.placements) for m in mixtures)
      )
    )
    progress.say(
      f"{len(cells)} cells of {run.parameters.total:,} parameters together on "
      f"{mesh.size} device(s), from step {start} of {run.steps}"
    )
    joined = Joined(clock, progress)
    records = [
      stack.enter_context(_open_record(cell, own, joined))
      for cell, own in zip(cells, beginnings, strict=True)
    ]
    savers = [
      stack.enter_context(
        CheckpointWriter(cell.workdir, cell.run.config.checkpoint)
      )
      for cell in cells
    ]
    batches = stack.enter_context(
      made_ahead(
        lambda step: cells_lib.make_batch(mixtures, step, mesh),
        steps=range(start, run.steps),
        prefetch=run.config.runtime.prefetch,
      )
    )

    def fail(i: int, error: NotFinite) -> None:
      savers[i].wait()
      failures[i] = _not_finite(cells[i], error, savers[i])
      progress.say(f"{cells[i].workdir}: {failures[i].message}")

    record = CellsRecord(records, joined, failed=fail)

    def save(done: int, state_C: TrainState, unwritten: list | None) -> None:
      states, metas = {}, {}
      for i in record.alive:
        own = None if unwritten is None else unwritten[i]
        states[i] = cells_lib.cut(state_C, i)
        with _naming(cells[i].workdir):
          cells[i].lock.check()
          metas[i] = make_meta(cells[i].run, done, states[i], unwritten=own)
      record.sync()
      for i, state in states.items():
        savers[i].save(state, metas[i])

    unwritten, done = [own.unwritten for own in beginnings], start
    with contextlib.suppress(NotFinite):  # All have failed.
      done = loop.advance(
        run,
        cells_lib.stack([own.state for own in beginnings], mesh),
        batches,
        start=start,
        unwritten=unwritten if any(unwritten) else None,
        train_step=cells_lib.make_train_step(run.decoder, configs, mesh),
        evaluator=lambda params_C: evaluator(params_C, record.alive),
        record=record,
        clock=clock,
        progress=progress,
        before_step=lambda *_: None,
        asked_to_stop=lambda _: stop.received is not None,
        due=savers[0].due,
        save=save,
      )
    for saver in savers:
      saver.wait()
  ended = [
    _done(cell) if done == run.steps else _stopped(cell, stop, done, "saved")
    for cell in cells
  ]
  return [failures.get(i, result) for i, result in enumerate(ended)]


def _open_record(cell: _Cell, own: Beginning, joined: Joined) -> Record:
  return Record(
    cell.workdir,
    cell.run.mixture,
    resume_at=own.step if own.resumed else None,
    clock=joined,
    progress=joined,
  )


def _done(cell: _Cell) -> CellResult:
  steps = cell.run.steps
  return CellResult(cell.workdir, "done", steps, f"finished: {steps} steps")


def _stopped(cell: _Cell, stop: StopSignals, step: int, how: str) -> CellResult:
  message = f"stopped by {stop.name} at step {step} of {cell.run.steps}, {how}"
  return CellResult(cell.workdir, "stopped", step, message)


def _not_finite(
  cell: _Cell, error: NotFinite, saver: CheckpointWriter
) -> CellResult:
  message = f"{error}; {saver.last_good_in_words()}"
  return CellResult(cell.workdir, "not finite", saver.last_good or 0, message)
