"""The training loop: train, log, evaluate, save, in that order each step."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from poison_jax.config import Config
from poison_jax.data.batches import device_batches
from poison_jax.data.folder import Folder
from poison_jax.errors import CheckFailed, NotFinite, PoisonJaxError, Stopped
from poison_jax.evaluation.evaluator import Evaluator
from poison_jax.model import counts
from poison_jax.training import host_memory, xla_flags
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import optimizer as optimizer_lib
from poison_jax.training import peers as peers_lib
from poison_jax.training import run as run_lib
from poison_jax.training import step as step_lib
from poison_jax.training import workdir as workdir_lib
from poison_jax.training.checkpoints import Checkpoints, Meta, Restored
from poison_jax.training.clock import Clock, in_words
from poison_jax.training.cluster import Cluster
from poison_jax.training.lock import Lock
from poison_jax.training.metrics import METRICS, part_names
from poison_jax.training.peers import Peers
from poison_jax.training.progress import Progress
from poison_jax.training.record import Record
from poison_jax.training.run import Run
from poison_jax.training.saving import CheckpointWriter
from poison_jax.training.step import TrainState
from poison_jax.training.stop import StopSignals
from poison_jax.training.tracing import Tracer
from poison_jax.version import code_version


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
      run, mesh, evaluator = _planned(asked)
      _train(run, mesh, evaluator, workdir, None, peers, stop, profile=0)
      return
    with workdir_lib.locked(workdir) as lock:
      peers.before_end.append(lock.end)
      config = workdir_lib.claim(workdir, config)
      if cluster is None:
        run_lib.choose_attention(config)  # Refused before hours of preparing.
        run_lib.prepare_missing_store(config, stop)
      run, mesh, evaluator = _planned(config)
      run_lib.write_or_check_ledger(run, workdir)
      workdir_lib.keep(workdir, config)
      print(run_lib.describe(run, mesh, evaluator.prompts), flush=True)
      _train(run, mesh, evaluator, workdir, lock, peers, stop, profile=profile)


def _planned(config: Config) -> tuple[Run, Mesh, Evaluator]:
  """Returns what a run needs; refuses one that can't be, and writes nothing."""
  run_lib.use_compilation_cache(config.runtime)
  run = run_lib.plan_run(config)
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
  optimizer = optimizer_lib.make_optimizer(config.optimizer, steps=run.steps)
  clock = _clock(run)
  beginning = _begin(run, mesh, optimizer, workdir, peers)
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
    if beginning.unwritten is not None:
      progress.doing("evaluating")
      clock.enter("evaluate")
      record.hold(start, beginning.unwritten)
      record.write(evaluator(state.params))
      clock.enter("start")

    for step, batch in clock.waiting(batches):
      tracer.before(step, state)
      state, metrics = train_step(state, batch)
      clock.dispatched(metrics["train/loss"])
      record.write()  # An earlier step's line, while this one computes.
      done = step + 1
      if step == start:
        jax.block_until_ready(metrics)
        clock.start_training(done)
        progress.say(f"first step after {in_words(clock.seconds['start'])}")

      last, stopping = done == run.steps, peers.asked_to_stop(done)
      evaluating = done in run.evaluation_steps
      saving = last or stopping or saver.due(done)
      record.watch(done, metrics)
      if evaluating or last or done % config.train.log_every == 0:
        record.hold(done, metrics)
      if not (evaluating or saving):
        continue

      record.check_finite()  # Before anything is saved.
      later = None
      if evaluating and stopping and not last:
        later = record.take_held()  # An evaluation may outlast our notice.
      elif evaluating:
        progress.doing("evaluating")
        clock.enter("evaluate")
        record.write(evaluator(state.params))
      else:
        record.write()
      if saving:
        progress.doing("saving")
        clock.enter("save")
        if lock is not None:
          lock.check()
        record.sync()
        saver.save(state, _meta(run, done, state, unwritten=later))
      progress.doing(None)
      clock.enter("train")
      if stopping and not last:
        saver.wait()
        # SIGINT is known where it came, and is SIGTERM to the others.
        name = min(peers.each("saved", stop.name))
        raise Stopped(
          f"stopped by {name} at step {done} of {run.steps}, saved; "
          f"{_go_on(workdir, peers)}"
        )
  print(_ending(run, workdir, clock))


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


@dataclasses.dataclass(frozen=True)
class _Beginning:
  """What training starts with; fields as in `Meta`."""

  state: TrainState
  step: int
  unwritten: dict[str, float] | None
  resumed: bool


def _begin(
  run: Run, mesh: Mesh, optimizer, workdir: str, peers: Peers
) -> _Beginning:
  """Returns the newest good checkpoint's state, or that before step 0."""
  restored = _restore(run, mesh, optimizer, workdir, peers)
  if restored is not None:
    meta = restored.meta
    if meta.step < run.steps:
      print(f"resuming at step {meta.step} of {run.steps}", flush=True)
    return _Beginning(restored.state, meta.step, meta.unwritten, resumed=True)
  if part_names(Folder(workdir), METRICS):
    print(f"{workdir} has no checkpoint: starting over at step 0", flush=True)
  state = step_lib.init_state(
    run.decoder, optimizer, run.config.seed_for("init"), mesh
  )
  return _Beginning(state, 0, {"train/poison_tokens_seen": 0}, resumed=False)


def _restore(
  run: Run, mesh: Mesh, optimizer, workdir: str, peers: Peers
) -> Restored[TrainState] | None:
  """Returns the newest good checkpoint of this very run, or None.

  Raises:
    CheckFailed: none is good, or it is of another plan.
  """
  reader = Checkpoints(workdir)
  if not reader.steps():
    return None
  restored = reader.restore_latest(
    step_lib.abstract_state(run.decoder, optimizer, mesh),
    say=lambda line: print(line, flush=True),
    each=peers.each,
  )
  meta = restored.meta
  expected = _meta(run, meta.step, restored.state, unwritten=meta.unwritten)
  for field in ("plan_hash", "store_hash", "config_hash", "poisons_seen"):
    if getattr(meta, field) != getattr(expected, field):
      raise CheckFailed(
        f"the checkpoint of step {meta.step} in {workdir} has {field} "
        f"{getattr(meta, field)}, the run {getattr(expected, field)}"
      )
  return restored


def _meta(
  run: Run, step: int, state: TrainState, *, unwritten: dict | None
) -> Meta:
  """Returns what a checkpoint says of itself.

  Raises:
    CheckFailed: the device has not counted the poison tokens that are planned.
  """
  counted = int(state.poison_tokens_seen)
  planned = run.mixture.planned_poison_tokens(step) % 2**32
  if counted != planned:
    raise CheckFailed(
      f"after step {step} the device has counted {counted} poison tokens in "
      f"the loss, and {planned} are planned"
    )
  return Meta(
    step=step,
    poisons_seen=run.mixture.poisons_before(step),
    poison_tokens_seen=counted,
    config_hash=run.config_hash,
    plan_hash=run.mixture.plan_hash,
    store_hash=run.store.hash,
    code_version=code_version(),
    unwritten=unwritten,
  )


def _clock(run: Run) -> Clock:
  devices = jax.devices()
  peak = counts.peak_flops(devices[0].device_kind)
  return Clock(
    steps=run.steps,
    evaluation_steps=run.evaluation_steps,
    tokens_per_step=run.tokens_per_step,
    flops_per_token=run.flops.total,
    peak_flops=None if peak is None else peak * len(devices),
  )


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
