"""How a cell's last attempt ended: `endings/HASH.json`, by its dispatcher.

Beside the run's folder and not in it, so that the run is as if made alone.
"""

import dataclasses
import json

from poison_jax.data.folder import Folder
from poison_jax.errors import UserError

_FOLDER = "endings"

DONE = "done"
STOPPED = "stopped"
FAILED = "failed"
TRIAGED = "triaged"


@dataclasses.dataclass(frozen=True)
class Ending:
  """The end of an attempt.

  Attributes:
    result: DONE, STOPPED (saved: goes on when started again), FAILED, or
      TRIAGED (its verdict was decided: it doesn't go on).
    code: the exit code; below 0 the signal that killed it.
    message: why, a line; "" where it is done.
    code_versions: of all attempts that trained, the newest last.
    seconds: that all attempts took, start to end.
    ended: epoch seconds.
    host: where it ran.
  """

  result: str
  code: int
  message: str
  code_versions: tuple[str, ...]
  seconds: float
  ended: float
  host: str


def write(workdir: str, cell: str, ending: Ending) -> None:
  """Writes how the newest attempt at a cell, by hash, ended."""
  content = json.dumps(dataclasses.asdict(ending), indent=1) + "\n"
  Folder(workdir).write(_name(cell), content.encode())


def read(workdir: str, cell: str) -> Ending | None:
  """Returns how the newest attempt ended; None before the first end.

  Raises:
    UserError: the file is damaged.
  """
  content = Folder(workdir).read(_name(cell))
  if content is None:
    return None
  try:
    found = json.loads(content)
    versions = tuple(found.pop("code_versions"))
    return Ending(**found, code_versions=versions)
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError(
      f"{workdir}/{_name(cell)} is damaged ({error}): delete it; the cell is "
      "then looked at anew"
    ) from None


def forget(workdir: str, cell: str) -> None:
  """Deletes how a cell's attempts ended: it begins anew."""
  Folder(workdir).delete(_name(cell))


def _name(cell: str) -> str:
  return f"{_FOLDER}/{cell}.json"
