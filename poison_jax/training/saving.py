"""Saves checkpoints in the background and deletes those not to be kept."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo

from poison_jax.config import CheckpointConfig
from poison_jax.data.bucket import one_line_library_errors
from poison_jax.data.folder import Folder
from poison_jax.errors import UserError
from poison_jax.training import checkpoints as checkpoints_lib
from poison_jax.training import digest
from poison_jax.training.workdir import CHECKPOINTS

# Seconds between two looks at whether a save is complete.
_POLL = 0.02


class CheckpointWriter:
  """Saves in the background and keeps what the config says.

  A context manager; leaving it waits for the last save.
  """

  def __init__(self, workdir: str, config: CheckpointConfig):
    checkpoints_lib.quiet_orbax()
    self._config = config
    workdir = Folder(workdir).for_libraries()
    self._folder = epath.Path(workdir) / CHECKPOINTS
    with one_line_library_errors(str(self._folder)):
      self._manager = ocp.CheckpointManager(
        self._folder,
        options=ocp.CheckpointManagerOptions(
          cleanup_tmp_directories=True,
          preservation_policy=_Kept(config),
        ),
      )
      self.last_good: int | None = self._manager.latest_step()
    self._saving: int | None = None
    self._failure: Exception | None = None
    self._watch_for_failure()

  def due(self, step: int) -> bool:
    """Whether the config asks for a checkpoint after `step` steps."""
    c = self._config
    return (
      step % c.every == 0
      or (c.keep_log_spaced and _is_power_of_two(step))
      or (c.keep_every > 0 and step % c.keep_every == 0)
    )

  def save(self, state: Any, meta: checkpoints_lib.Meta) -> None:
    """Starts to save; the arrays may be donated once this returns.

    Raises:
      UserError: this or the save before could not be written (full disk).
    """
    self.wait()
    record = {
      "format": checkpoints_lib.FORMAT,
      "meta": dataclasses.asdict(meta),
      "leaves": digest.digest(state),
    }
    record["checksum"] = checkpoints_lib.checksum(record)
    self._saving = meta.step
    with self._explained():
      self._manager.save(
        meta.step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(
            checkpoints_lib.nest(dict(checkpoints_lib.flat(state)))
          ),
          meta=ocp.args.JsonSave(record),
        ),
        force=True,
      )

  def wait(self) -> None:
    """Returns once the last save is complete.

    Raises:
      UserError: it could not be written.
    """
    with self._explained():
      while self._manager.is_saving_in_progress():
        if self._failure is not None:
          raise self._failure
        time.sleep(_POLL)
      self._manager.wait_until_finished()
    if self._saving is not None:
      self.last_good, self._saving = self._saving, None

  def __enter__(self):
    return self

  def __exit__(self, kind: type | None, *_):
    if kind is None:
      self.wait()
    elif issubclass(kind, Exception):
      # What is being saved is worth having; the error itself goes on.
      with contextlib.suppress(UserError):
        self.wait()
    if self._failure is not None and jax.process_count() > 1:
      return  # It would wait for the others, which wait for this one.
    try:
      self._manager.close()
    except Exception:
      if kind is None:
        raise
      # A failed save's error, once more.

  def last_good_in_words(self) -> str:
    """Returns what a user whose run ends early wants to know."""
    if self.last_good is None:
      return "there is no checkpoint before it"
    return f"the checkpoint of step {self.last_good} is good"

  def _watch_for_failure(self) -> None:
    """Notices at once that this process could not write its part.

    orbax tells of it only after all processes have met, and those that wait
    for this one's part give up after twenty minutes.
    """
    checkpointer = self._manager._checkpointer  # No public name leads there.
    wait_until_finished = checkpointer.wait_until_finished

    def wait() -> None:
      try:
        wait_until_finished()
      except Exception as error:
        self._failure = error
        raise

    checkpointer.wait_until_finished = wait

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Turns a failed write (full disk, no permission) into one line."""
    try:
      yield
    except Exception as error:
      # asyncio logs each array's own failure, one by one, at exit.
      logging.getLogger("asyncio").setLevel(logging.CRITICAL)
      why = _reason(error)
      raise UserError(
        f"checkpoint of step {self._saving} can't be written to "
        f"{self._folder} ({why}); "
        f"{self.last_good_in_words()}"
      ) from error


def _reason(error: Exception) -> str:
  """Returns why a write failed; TensorStore says it last, after long paths."""
  for words in ("No space left on device", "Disk quota exceeded"):
    if words in str(error):
      return words
  return f"{type(error).__name__}: {checkpoints_lib.first_line(error)}"


@dataclasses.dataclass(frozen=True)
class _Kept:
  """orbax's preservation policy: what `CheckpointConfig` keeps."""

  config: CheckpointConfig

  def should_preserve(
    self,
    checkpoints: Sequence[PolicyCheckpointInfo],
    *,
    context: Any,
  ) -> list[bool]:
    del context  # Nothing in it yet.
    c = self.config
    newest = len(checkpoints) - c.keep_last
    return [
      i >= newest
      or (c.keep_log_spaced and _is_power_of_two(info.step))
      or (c.keep_every > 0 and info.step % c.keep_every == 0)
      for i, info in enumerate(checkpoints)
    ]


def _is_power_of_two(step: int) -> bool:
  return step > 0 and step & (step - 1) == 0
