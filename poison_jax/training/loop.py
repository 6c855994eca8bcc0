"""The training loop: train, log, evaluate, save, in that order each step."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from poison_jax.config import Config
from poison_jax.data.batches import device_batches
from poison_jax.data.folder import Folder
from poison_jax.data.mixture import Batch
from poison_jax.errors import NotFinite, PoisonJaxError, Stopped
from poison_jax.evaluation.evaluator import Evaluator
from poison_jax.model.decoder import Params
from poison_jax.training import host_memory, origin, xla_flags
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import optimizer as optimizer_lib
from poison_jax.training import peers as peers_lib
from poison_jax.training import run as run_lib
from poison_jax.training import step as step_lib
from poison_jax.training import workdir as workdir_lib
from poison_jax.training.beginning import begin, make_clock, make_meta
from poison_jax.training.clock import Clock, in_words
from poison_jax.training.cluster import Cluster
from poison_jax.training.lock import Lock
from poison_jax.training.peers import Peers
from poison_jax.training.progress import Progress
from poison_jax.training.record import Record
from poison_jax.training.run import Run
from poison_jax.training.saving import CheckpointWriter
from poison_jax.training.step import TrainState, TrainStep
from poison_jax.training.stop import StopSignals
from poison_jax.training.tracing import Tracer


def train(
  config: Config | None,
  workdir: str,
  *,
  profile: int,
  cluster: Cluster | None = None,
  stop: StopSignals | None = None,
) -> None:
  """Trains the run in `workdir` to its end, from where it stopped.

  Args:
    config: of a new run; None to resume.
    workdir: the run's folder, local or gs://.
    profile: steps to trace into `workdir`/profile; 0 for none.
    cluster: the processes that share the run; None for this one alone.
    stop: signals of this process, where the command listens to them already.

  Raises:
    UserError: something that the user gave can't be used.
    CheckFailed: no good checkpoint, or planned and counted poisons differ, or
      hosts are missing or differ.
    NotFinite: the loss is not finite.
    Stopped: a signal came; the state is saved.
  """
  asked = config or workdir_lib.load_config(workdir)  # Or nothing is made.
  if host_memory.only_cpu():
    host_memory.keep_freed_memory()  # Before anything asks for devices.
  xla_flags.set_overlap_flags()  # Likewise.
  with (
    stop or StopSignals() as stop,
    peers_lib.joined(cluster, stop) as peers,
  ):
    if cluster is not None:
      peers.agree("what to do", run_lib.identity(asked, workdir))
      peers_lib.start_jax(cluster, stop)
      peers.agree("devices", run_lib.devices_here())
    if peers.number > 0:
      run, mesh, evaluator = _planned(asked, workdir)
      _train(run, mesh, evaluator, workdir, None, peers, stop, profile=0)
      return
    with workdir_lib.locked(workdir) as lock:
      peers.before_end.append(lock.end)
      config = workdir_lib.claim(workdir, config)
      if cluster is None:
        run_lib.choose_attention(config)  # Refused before hours of preparing.
        run_lib.prepare_missing_store(config, stop)
      run, mesh, evaluator = _planned(config, workdir)
      run_lib.write_or_check_ledger(run, workdir)
      workdir_lib.keep(workdir, config)
      print(run_lib.describe(run, mesh, evaluator.prompts), flush=True)
      _train(run, mesh, evaluator, workdir, lock, peers, stop, profile=profile)


def _planned(config: Config, workdir: str) -> tuple[Run, Mesh, Evaluator]:
  """Returns what a run needs; refuses one that can't be, and writes nothing."""
  run_lib.use_compilation_cache(config.runtime)
  run = run_lib.plan_run(config)
  origin.check(run, workdir)
  mesh = mesh_lib.make_mesh(config.runtime.mesh, batch=config.train.batch)
  mesh_lib.check_batch(
    config.train.batch,
    rows=mesh.shape["data"] * mesh.shape["fsdp"],
    micro_batches=config.train.micro_batches,
  )
  evaluator = Evaluator(
    run.decoder, config, run.store, run.mixture.attack, mesh
  )
  return run, mesh, evaluator


def _train(
  run: Run,
  mesh: Mesh,
  evaluator: Evaluator,
  workdir: str,
  lock: Lock | None,
  peers: Peers,
  stop: StopSignals,
  *,
  profile: int,
) -> None:
  """Trains; only a process that holds the `lock` writes.

  Checkpoints excepted: of these each process writes its own arrays.
  """
  config, mixture = run.config, run.mixture
  if peers.count > 1:
    peers.agree("the folder", run_lib.found_in(workdir))
  optimizer = optimizer_lib.run_optimizer(config, steps=run.steps)
  clock = make_clock(run)
  beginning = begin(run, mesh, optimizer, workdir, peers.each)
  state, start = beginning.state, beginning.step
  if start == run.steps:
    print(f"the run in {workdir} is finished: {run.steps} steps")
    return
  if stop.received is not None:  # Nothing is lost; an evaluation may be long.
    raise Stopped(
      f"stopped by {stop.name} at step {start} of {run.steps}, before "
      f"a step; {_go_on(workdir, peers)}"
    )
  train_step = step_lib.make_train_step(run.decoder, optimizer, config, mesh)

  with (
    Progress(steps=run.steps, poisons=len(mixture.placements)) as progress,
    Record(
      None if lock is None else workdir,
      mixture,
      resume_at=start if beginning.resumed else None,
      clock=clock,
      progress=progress,
    ) as record,
    CheckpointWriter(workdir, config.checkpoint) as saver,
    device_batches(
      mixture,
      start=start,
      sharding=mesh_lib.batch_sharding(mesh),
      prefetch=config.runtime.prefetch,
    ) as batches,
    Tracer(
      Folder(os.path.join(workdir, "profile")), start=start, steps=profile
    ) as tracer,
    _ending_in_order(saver, peers),
  ):

    def save(done: int, state: TrainState, unwritten: dict | None) -> None:
      if lock is not None:
        lock.check()
      record.sync()
      saver.save(state, make_meta(run, done, state, unwritten=unwritten))

    done = advance(
      run,
      state,
      batches,
      start=start,
      unwritten=beginning.unwritten,
      train_step=train_step,
      evaluator=evaluator,
      record=record,
      clock=clock,
      progress=progress,
      before_step=tracer.before,
      asked_to_stop=peers.asked_to_stop,
      due=saver.due,
      save=save,
    )
    if done < run.steps:
      saver.wait()
      # SIGINT is known where it came, and is SIGTERM to the others.
      name = min(peers.each("saved", stop.name))
      raise Stopped(
        f"stopped by {name} at step {done} of {run.steps}, saved; "
        f"{_go_on(workdir, peers)}"
      )
  print(_ending(run, workdir, clock))


def advance(
  run: Run,
  state: TrainState,
  batches: Iterator[tuple[int, Batch]],
  *,
  start: int,
  unwritten: Any | None,
  train_step: TrainStep,
  evaluator: Callable[[Params], Any],
  record: Any,
  clock: Clock,
  progress: Progress,
  before_step: Callable[[int, TrainState], None],
  asked_to_stop: Callable[[int], bool],
  due: Callable[[int], bool],
  save: Callable[[int, TrainState, Any | None], None],
) -> int:
  """Trains to the end, or until asked to stop, and returns the steps done.

  The one loop, of a run alone and of several together: what has a cell axis
  then (state, batches, metrics, evaluations) it only hands on.

  Args:
    run: the run; or any of several, which have the same steps.
    state: before step `start`; donated.
    batches: from (start, batch) on.
    start: steps done.
    unwritten: metrics of step `start` whose evaluation is to come; or None.
    train_step: the compiled step.
    evaluator: gives what `record.write` takes.
    record: a `Record`, or what does the same for several runs.
    clock: in its activity "start".
    progress: what is shown.
    before_step: called with each step and the state before it.
    asked_to_stop: called with the steps done, after every step.
    due: whether a checkpoint is due after so many steps.
    save: called with the steps done, the state, and the metrics of the last
      step where its evaluation is put off; the state is donated afterwards.

  Raises:
    NotFinite: the loss was not; nothing of it is saved.
  """

  def evaluate() -> None:
    progress.doing("evaluating")
    clock.enter("evaluate")
    record.write(evaluator(state.params))

  if unwritten is not None:
    record.hold(start, unwritten)
    evaluate()
    clock.enter("start")

  for step, batch in clock.waiting(batches):
    before_step(step, state)
    state, metrics = train_step(state, batch)
    clock.dispatched(metrics["train/loss"])
    record.write()  # An earlier step's line, while this one computes.
    done = step + 1
    if step == start:
      jax.block_until_ready(metrics)
      clock.start_training(done)
      progress.say(f"first step after {in_words(clock.seconds['start'])}")

    last, stopping = done == run.steps, asked_to_stop(done)
    evaluating = done in run.evaluation_steps
    saving = last or stopping or due(done)
    record.watch(done, metrics)
    if evaluating or last or done % run.config.train.log_every == 0:
      record.hold(done, metrics)
    if not (evaluating or saving):
      continue

    record.check_finite()  # Before anything is saved.
    later = None
    if evaluating and stopping and not last:
      later = record.take_held()  # An evaluation may outlast our notice.
    elif evaluating:
      evaluate()
    else:
      record.write()
    if saving:
      progress.doing("saving")
      clock.enter("save")
      save(done, state, later)
    progress.doing(None)
    clock.enter("train")
    if stopping and not last:
      return done
  return run.steps


@contextlib.contextmanager
def _ending_in_order(saver: CheckpointWriter, peers: Peers) -> Iterator[None]:
  """Gives an error the time to close what is open.

  To the error of a loss that is not finite it adds the last good checkpoint.
  """
  try:
    yield
  except NotFinite as error:
    peers.unwinding()
    saver.wait()
    raise NotFinite(f"{error}; {saver.last_good_in_words()}") from None
  except PoisonJaxError:
    peers.unwinding()
    raise


def _go_on(workdir: str, peers: Peers) -> str:
  where = " on all hosts" if peers.count > 1 else ""
  return f"go on with python -m poison_jax.train --workdir={workdir}{where}"


def _ending(run: Run, workdir: str, clock: Clock) -> str:
  spent = ", ".join(
    f"{name} {in_words(seconds)}" for name, seconds in clock.seconds.items()
  )
  return (
    f"finished: {run.steps} steps ({spent}); metrics, generations, ledger and "
    f"checkpoints are in {workdir}"
  )
