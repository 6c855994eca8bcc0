"""What training begins with: a state, new or restored, and a clock."""

import dataclasses

import jax
from jax.sharding import Mesh

from poison_jax.data.folder import Folder
from poison_jax.errors import CheckFailed
from poison_jax.model import counts
from poison_jax.training import origin
from poison_jax.training import step as step_lib
from poison_jax.training.checkpoints import Checkpoints, Each, Meta, Restored
from poison_jax.training.clock import Clock
from poison_jax.training.metrics import METRICS, last_step
from poison_jax.training.run import Run
from poison_jax.training.step import TrainState
from poison_jax.version import code_version


@dataclasses.dataclass(frozen=True)
class Beginning:
  """What training starts with; fields as in `Meta`."""

  state: TrainState
  step: int
  unwritten: dict[str, float] | None
  resumed: bool


def begin(
  run: Run, mesh: Mesh, optimizer, workdir: str, each: Each
) -> Beginning:
  """Returns the newest good checkpoint's state, or that before step 0.

  That is of new weights, or of those of the run that this one continues. A run
  without checkpoints whose metrics reach its last step is finished: its state
  is never used.

  Args:
    run: planned.
    mesh: where the state goes.
    optimizer: the run's.
    workdir: the run's folder.
    each: asks all processes, as for `restore_latest`.

  Raises:
    CheckFailed: there are checkpoints, and none is good and of this run; or
      the checkpoint that it continues is not good.
  """
  restored = _restore(run, mesh, optimizer, workdir, each)
  if restored is not None:
    meta = restored.meta
    if meta.step < run.steps:
      print(f"resuming at step {meta.step} of {run.steps}", flush=True)
    return Beginning(restored.state, meta.step, meta.unwritten, resumed=True)
  last = last_step(Folder(workdir), METRICS)
  if last >= 0 and last < run.steps:
    print(f"{workdir} has no checkpoint: starting over at step 0", flush=True)
  if run.config.start.weights and last < run.steps:
    state = origin.load(run, mesh, optimizer, workdir, each)
  else:
    state = step_lib.init_state(
      run.decoder, optimizer, run.config.seed_for("init"), mesh
    )
  if last == run.steps:  # A study drops the checkpoints of done cells.
    return Beginning(state, last, None, resumed=True)
  return Beginning(state, 0, {"train/poison_tokens_seen": 0}, resumed=False)


def _restore(
  run: Run, mesh: Mesh, optimizer, workdir: str, each: Each
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
    each=each,
  )
  meta = restored.meta
  expected = make_meta(run, meta.step, restored.state, unwritten=meta.unwritten)
  for field in ("plan_hash", "store_hash", "config_hash", "poisons_seen"):
    if getattr(meta, field) != getattr(expected, field):
      raise CheckFailed(
        f"the checkpoint of step {meta.step} in {workdir} has {field} "
        f"{getattr(meta, field)}, the run {getattr(expected, field)}"
      )
  return restored


def make_meta(
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


def make_clock(run: Run) -> Clock:
  """Returns a clock, started, of the run on all devices here."""
  devices = jax.devices()
  peak = counts.peak_flops(devices[0].device_kind)
  return Clock(
    steps=run.steps,
    evaluation_steps=run.evaluation_steps,
    tokens_per_step=run.tokens_per_step,
    flops_per_token=run.flops.total,
    peak_flops=None if peak is None else peak * len(devices),
  )
