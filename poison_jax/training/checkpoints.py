"""Checkpoints that notice damage: orbax arrays, a digest, and a way back.

orbax alone restores a flipped bit silently wrong, casts another dtype
silently, and takes any numeric folder for a step. So each checkpoint carries,
beside the state, a JSON item with the shapes, dtypes and digests of all arrays
and a checksum of itself, and a restore compares them and walks back.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from poison_jax.data.bucket import one_line_library_errors
from poison_jax.data.folder import Folder
from poison_jax.errors import CheckFailed
from poison_jax.training import digest
from poison_jax.training.workdir import CHECKPOINTS

FORMAT = 1

State = TypeVar("State")

# Gives, of a matter and what this process says of it, what every one says.
Each = Callable[[str, Any], list[Any]]


@dataclasses.dataclass(frozen=True)
class Meta:
  """What a checkpoint says of itself, beside its arrays."""

  step: int  # Steps done.
  poisons_seen: int  # Planned poisons in those steps.
  poison_tokens_seen: int  # Counted on the device.
  config_hash: str
  plan_hash: str
  store_hash: str
  code_version: str
  # Metrics of this step that wait for its evaluation (stopped by a signal
  # before it); None where the step's line is written.
  unwritten: dict[str, float] | None


@dataclasses.dataclass(frozen=True)
class Restored(Generic[State]):
  state: State
  meta: Meta


def _only_here(_: str, fact: Any) -> list[Any]:
  return [fact]


class Damaged(CheckFailed):
  """A checkpoint can't be read, or is not what was saved."""


class Checkpoints:
  """Reads the checkpoints of one run; never changes anything but in
  `restore_latest`."""

  def __init__(self, workdir: str):
    self._folder = epath.Path(Folder(workdir).for_libraries()) / CHECKPOINTS
    quiet_orbax()

  def steps(self) -> list[int]:
    """Returns the steps that have a folder, damaged ones too, ascending."""
    with one_line_library_errors(str(self._folder)):
      if not self._folder.exists():
        return []
      return sorted(int(p.name) for p in self._folder.iterdir() if _is_step(p))

  def meta(self, step: int) -> Meta:
    """Returns what the checkpoint says of itself.

    Raises:
      Damaged: it is missing or not what was saved.
    """
    return self._record(step)[0]

  def leaves(self, step: int) -> dict[str, str]:
    """Returns {"params/embedding": "float32[256,64] <16 hex digits>", ...}.

    Raises:
      Damaged: it is missing or not what was saved.
    """
    return self._record(step)[1]

  def restore(
    self, step: int, abstract_state: State, *, each: Each = _only_here
  ) -> Restored[State]:
    """Returns the state after `step` steps, onto the shardings asked for.

    Args:
      step: one of `steps()`.
      abstract_state: a tree of `jax.ShapeDtypeStruct` with shardings, on any
        mesh.
      each: asks all processes; a file may be damaged that some alone read.

    Raises:
      Damaged: the files are, a single flipped bit included.
      CheckFailed: the checkpoint is of another tree of arrays.
    """
    return self._restore(step, abstract_state, part="", each=each)

  def restore_params(
    self, step: int, abstract_params: State, *, each: Each = _only_here
  ) -> Restored[State]:
    """Like `restore`, for the parameters alone; reads nothing else."""
    restored = self._restore(
      step, {"params": abstract_params}, part="params/", each=each
    )
    return Restored(restored.state["params"], restored.meta)

  def restore_latest(
    self,
    abstract_state: State,
    *,
    say: Callable[[str], None],
    each: Each = _only_here,
  ) -> Restored[State] | None:
    """Returns the newest good checkpoint; None where there is none at all.

    Damaged ones are passed over with one line each and, once a good one is
    found, moved aside, so that the run can save these steps again.

    Args:
      abstract_state: as in `restore`.
      say: is given the lines.
      each: asks all processes; a file may be damaged that some alone read.

    Raises:
      CheckFailed: there are some, and all are damaged.
    """
    damaged = []
    for step in reversed(self.steps()):
      try:
        restored = self._restore(step, abstract_state, part="", each=each)
      except Damaged as error:
        say(f"{error}: passed over")
        damaged.append(step)
        continue
      if jax.process_index() == 0:
        for bad in damaged:
          self._set_aside(bad)
      each("restored", step)  # Nobody looks at the folder before.
      return restored
    if damaged:
      raise CheckFailed(
        f"none of the checkpoints in {self._folder} is good (steps "
        f"{', '.join(map(str, sorted(damaged)))}); delete the folder to start "
        "from step 0"
      )
    return None

  def _restore(
    self, step: int, abstract: Any, *, part: str, each: Each = _only_here
  ) -> Restored:
    wanted = digest.describe(abstract)
    # The target's keys are paths in the saved tree, whatever its node types.
    target = dict(zip(wanted, jax.tree.leaves(abstract), strict=True))
    damage = None
    try:
      meta, saved = self._described(step, wanted, part=part)
      state = self._read_arrays(step, nest(target))
    except Damaged as error:
      damage = str(error)
    for found in each(f"damage of checkpoint {step}", damage):
      if found is not None:
        raise Damaged(found)
    for path, value in digest.digest(state).items():
      if value != saved[path]:
        raise Damaged(
          f"checkpoint of step {step} is damaged (the digest of {path} differs)"
        )
    values = dict(flat(state))
    tree = jax.tree.structure(abstract)
    return Restored(jax.tree.unflatten(tree, [values[p] for p in wanted]), meta)

  def _described(
    self, step: int, wanted: dict[str, str], *, part: str
  ) -> tuple[Meta, dict[str, str]]:
    """Returns the meta data and the arrays' digests, if they are as wanted.

    Raises:
      Damaged: the record is.
      CheckFailed: the checkpoint is of another tree of arrays.
    """
    meta, leaves = self._record(step)
    saved = {k: v for k, v in leaves.items() if k.startswith(part)}
    for path in sorted(saved.keys() | wanted.keys()):
      found = saved.get(path, "nothing").split()[0]
      if found != wanted.get(path, "nothing"):
        raise CheckFailed(
          f"checkpoint of step {step} in {self._folder} is of another model: "
          f"{path} is {found}, wanted {wanted.get(path, 'nothing')}"
        )
    return meta, saved

  def _read_arrays(self, step: int, target: Any) -> Any:
    """Returns the arrays as they lie there, not yet compared.

    Raises:
      Damaged: orbax or tensorstore can't read them; they raise many types for
        missing and broken files.
    """
    try:
      with _reader(ocp.PyTreeCheckpointHandler) as reader:
        return reader.restore(
          self._folder / str(step) / "state",
          args=ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
          ),
        )
    except Exception as error:
      raise Damaged(
        f"checkpoint of step {step} can't be read "
        f"({type(error).__name__}: {first_line(error)})"
      ) from error

  def _record(self, step: int) -> tuple[Meta, dict[str, str]]:
    """Returns the JSON item: the meta data, and the arrays' digests."""
    try:
      with _reader(ocp.JsonCheckpointHandler) as reader:
        record = reader.restore(self._folder / str(step) / "meta")
      stated = record.pop("checksum")
      if stated != checksum(record) or record["format"] != FORMAT:
        raise ValueError("its record is not what was saved")
      meta = Meta(**record["meta"])
      if meta.step != step:
        raise ValueError(f"it says that it is of step {meta.step}")
      return meta, record["leaves"]
    except Exception as error:
      raise Damaged(
        f"checkpoint of step {step} can't be read "
        f"({type(error).__name__}: {first_line(error)})"
      ) from error

  def _set_aside(self, step: int) -> None:
    number = 0
    while True:
      aside = self._folder / f"damaged-{step}-{number}"
      if not aside.exists():
        (self._folder / str(step)).rename(aside)
        return
      number += 1


def _reader(handler: type) -> ocp.Checkpointer:
  """Returns a reader that waits for no other process.

  One that found a damaged file would leave the others waiting.
  """
  here = jax.process_index()
  options = ocp.options.MultiprocessingOptions(
    primary_host=here,
    active_processes={here},
    barrier_sync_key_prefix=f"process {here}",
  )
  return ocp.Checkpointer(
    handler(multiprocessing_options=options), multiprocessing_options=options
  )


def _is_step(path: epath.Path) -> bool:
  """Says whether it is a checkpoint whose saving was brought to its end.

  On a local disk orbax gives the folder its name last. In a bucket, where a
  folder can't be renamed in one act, it writes this file last.
  """
  if not path.name.isdigit() or not path.is_dir():
    return False
  return "://" not in str(path) or (path / "commit_success.txt").exists()


def first_line(error: Exception) -> str:
  line = (str(error).strip() or "no reason given").splitlines()[0]
  return line.partition(". See full TensorStore details")[0][:200]


def checksum(record: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def flat(tree: Any) -> Iterator[tuple[str, Any]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def nest(leaves: dict[str, Any]) -> dict[str, Any]:
  """Returns {"a": {"b": x}} for {"a/b": x}: plain, whatever optax's types."""
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *folders, name = path.split("/")
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[name] = leaf
  return tree


@functools.cache
def quiet_orbax() -> None:
  """Drops what orbax says of a damaged file: we say it in one line.

  That is its log, and the complaints of the reads and writes that it abandons
  when one fails: they end in tensorstore's threads, after their event loop is
  closed, or leave gcsfs's buffers in use.
  """
  logging.getLogger("absl").addFilter(
    lambda record: "orbax" not in record.pathname
  )
  logging.getLogger("asyncio").addFilter(
    lambda record: "exception was never retrieved" not in record.getMessage()
  )
  before = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    coroutine = inspect.iscoroutine(unraisable.object)
    if coroutine and "orbax" in unraisable.object.cr_code.co_filename:
      return
    if str(unraisable.exc_value) == "Event loop is closed":
      return
    if isinstance(unraisable.exc_value, BufferError):
      return  # A buffer of gcsfs's, whose upload was refused.
    before(unraisable)

  sys.unraisablehook = hook
