"""Where a run begins that continues another: a checkpoint of that one.

A run's `origin.json` names it, with a digest of the weights, so that a run that
is started again before its first checkpoint begins with the same ones, and a
reader can tell what it grew from. Later the run's own checkpoints count.
"""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from poison_jax.config import Config
from poison_jax.data.folder import Folder
from poison_jax.data.manifest import read_manifest
from poison_jax.errors import CheckFailed, UserError
from poison_jax.training import digest, workdir
from poison_jax.training import optimizer as optimizer_lib
from poison_jax.training import step as step_lib
from poison_jax.training.checkpoints import Checkpoints, Damaged, Each
from poison_jax.training.run import Run
from poison_jax.training.step import TrainState

FILE = "origin.json"

# Fields of a model that may differ: how it computes, not what it is.
_FREE = frozenset({"init_scale", "remat", "compute_dtype", "gradient_dtype"})


@dataclasses.dataclass(frozen=True)
class Origin:
  """The checkpoint that a run began with.

  Attributes:
    folder: the run it is of, as `start.weights` has it.
    step: steps that were done there.
    digest: 16 hex digits over the digests of the weights.
    code_version: of the code that saved it.
  """

  folder: str
  step: int
  digest: str
  code_version: str


def check(run: Run, folder: str) -> None:
  """Checks that a run can begin as its `start` says; reads no array.

  Not where the run in `folder` has checkpoints of its own.

  Raises:
    UserError: there is no run or no such checkpoint to continue, or it is of
      another model, vocabulary or optimizer; names what differs.
    CheckFailed: the checkpoint is damaged.
  """
  start = run.config.start
  if not start.weights or Checkpoints(folder).steps():
    return
  # Weights that `import_weights` wrote are to be told from a run's here, and
  # in `load`: they have one step, a fingerprint, and no optimizer.
  theirs = workdir.load_config(start.weights)
  _check_model(run.config, theirs)
  checkpoints = Checkpoints(start.weights)
  step = _choose(run.config, checkpoints, folder)
  _check_vocabulary(run, theirs, checkpoints.meta(step).store_hash)
  if start.optimizer == "restored":
    _check_optimizer(run, checkpoints.leaves(step), step)


def load(
  run: Run,
  mesh: Mesh,
  optimizer: optax.GradientTransformation,
  folder: str,
  each: Each,
) -> TrainState:
  """Returns the state before step 0 of a run that continues another.

  Writes `origin.json`, or compares it where it is there already.

  Args:
    run: planned.
    mesh: where the state goes.
    optimizer: the run's.
    folder: the run's own.
    each: asks all processes, as for `Checkpoints.restore_latest`.

  Raises:
    UserError: no such checkpoint.
    CheckFailed: it is damaged, or not the one that the run began with.
  """
  start = run.config.start
  checkpoints = Checkpoints(start.weights)
  step = each("origin", _choose(run.config, checkpoints, folder))[0]
  abstract = step_lib.abstract_state(run.decoder, optimizer, mesh)
  if start.optimizer == "restored":
    restored = checkpoints.restore(step, abstract, each=each)
    found, zero = restored.state, jax.jit(jnp.zeros_like)
    state = found.replace(
      step=zero(found.step),
      opt_state=optimizer_lib.from_first_step(found.opt_state),
      poison_tokens_seen=zero(found.poison_tokens_seen),
    )
  else:
    restored = checkpoints.restore_params(step, abstract.params, each=each)
    state = step_lib.state_from(restored.state, optimizer, mesh)
  origin = Origin(
    folder=start.weights,
    step=step,
    digest=_digest(checkpoints.leaves(step)),
    code_version=restored.meta.code_version,
  )
  if jax.process_index() == 0:
    _write_or_compare(origin, folder)
  print(f"beginning with {start.weights} after step {step}", flush=True)
  return state


def read(folder: str) -> Origin | None:
  """Returns what the run in `folder` began with; None for new weights.

  Raises:
    CheckFailed: its file is damaged.
  """
  content = Folder(folder).read(FILE)
  if content is None:
    return None
  try:
    return Origin(**json.loads(content))
  except (ValueError, TypeError) as error:
    raise CheckFailed(f"{folder}/{FILE} is damaged: {error}") from error


def _choose(config: Config, checkpoints: Checkpoints, folder: str) -> int:
  """Returns the step of the checkpoint to begin with.

  The one that `origin.json` names, else the one asked for, else the newest
  whose record is good.
  """
  start, there = config.start, checkpoints.steps()
  if not there:
    raise UserError(
      f"config.start.weights is {start.weights!r}, which has no checkpoint"
    )
  begun = read(folder)
  wanted = start.checkpoint if begun is None else begun.step
  if wanted is None:
    return _newest_good(checkpoints, there)
  if wanted not in there:
    raise UserError(
      f"config.start.checkpoint is {wanted}, of which {start.weights} has no "
      f"checkpoint; there are {', '.join(map(str, there))}"
    )
  return wanted


def _newest_good(checkpoints: Checkpoints, there: list[int]) -> int:
  for step in reversed(there):
    try:
      checkpoints.meta(step)
    except Damaged as error:
      damage = error
      continue
    return step
  raise damage


def _check_model(config: Config, theirs: Config) -> None:
  mine, there = (dataclasses.asdict(c.model) for c in (config, theirs))
  changes = [
    f"model.{name} (there {there[name]!r}, here {mine[name]!r})"
    for name in mine
    if name not in _FREE and mine[name] != there[name]
  ]
  if changes:
    raise UserError(
      f"config.start.weights is {config.start.weights!r}, which holds another "
      f"model: {', '.join(changes)}; set them as there"
    )


def _check_vocabulary(run: Run, theirs: Config, store_hash: str) -> None:
  """Raises UserError where the weights are of another vocabulary, by bytes."""
  if store_hash == run.store.hash:
    return
  weights, path = run.config.start.weights, theirs.corpus.store
  manifest = read_manifest(Folder(path))
  if manifest is None or manifest["hash"] != store_hash:
    raise UserError(
      f"config.start.weights is {weights!r}, whose vocabulary can't be "
      f"compared: the token store that it was trained on, {path} of hash "
      f"{store_hash}, is missing or another one"
    )
  if manifest["vocabulary"]["fingerprint"] != run.store.vocabulary.fingerprint:
    raise UserError(
      f"config.start.weights is {weights!r}, which has another vocabulary, "
      f"that of {path}: prepare this run's store with it "
      "(config.vocabulary.file)"
    )


def _check_optimizer(run: Run, leaves: dict[str, str], step: int) -> None:
  optimizer = optimizer_lib.run_optimizer(run.config, steps=run.steps)
  shapes = jax.eval_shape(
    functools.partial(step_lib.new_state, run.decoder, optimizer, low=0, high=0)
  )
  wanted = _of_optimizer(digest.describe(shapes))
  found = _of_optimizer({p: leaf.split()[0] for p, leaf in leaves.items()})
  differing = sorted(wanted.items() ^ found.items())
  if differing:
    path = differing[0][0]
    raise UserError(
      "config.start.optimizer is 'restored', but checkpoint "
      f"{step} of {run.config.start.weights} is of another optimizer: {path} "
      f"is {found.get(path, 'nothing')} there and {wanted.get(path, 'nothing')}"
      " here; set config.optimizer as there, or config.start.optimizer=fresh"
    )


def _of_optimizer(leaves: dict[str, Any]) -> dict[str, Any]:
  return {p: leaf for p, leaf in leaves.items() if p.startswith("opt_state/")}


def _digest(leaves: dict[str, str]) -> str:
  weights = sorted((p, v) for p, v in leaves.items() if p.startswith("params/"))
  return hashlib.sha256(json.dumps(weights).encode()).hexdigest()[:16]


def _write_or_compare(origin: Origin, folder: str) -> None:
  begun = read(folder)
  if begun is None:
    content = json.dumps(dataclasses.asdict(origin), indent=2) + "\n"
    Folder(folder).write(FILE, content.encode())
  elif begun.digest != origin.digest:
    raise CheckFailed(
      f"{origin.folder} after step {origin.step} has weights of digest "
      f"{origin.digest}; the run in {folder} began with {begun.digest}"
    )
