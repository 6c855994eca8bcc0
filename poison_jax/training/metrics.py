"""`metrics.jsonl` and `generations.jsonl`: JSON lines, cut when resuming.

On a local disk each is one file that grows. Nothing can be appended to an
object in a bucket: there `metrics/000000501.jsonl` has the lines from step 501
on, up to where the next object begins, and is written before the checkpoint
that ends its interval commits. No JAX here.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from poison_jax.data.folder import Folder
from poison_jax.errors import UserError

METRICS = "metrics.jsonl"
GENERATIONS = "generations.jsonl"


class JsonLines:
  """JSON objects, one a line, each with a `step`.

  On a local disk a line is in the file (for the operating system) once `write`
  returns, so killing the process loses none; `sync` also survives a loss of
  power. In a bucket lines are there after `sync`: a run resumes at a
  checkpoint, and would cut later ones.
  """

  def __init__(self, folder: Folder, name: str, *, resume_at: int | None):
    """Opens file `name` for appending.

    Args:
      folder: the run's; the file is made where it is missing.
      name: like metrics.jsonl.
      resume_at: keep the lines of steps up to this one and cut the rest, a
        torn last line included; None removes all.

    Raises:
      OSError: the file can't be written.
      UserError: the bucket can't be, or a line that is to be kept is damaged.
    """
    last = -1 if resume_at is None else resume_at
    self._sink: _Sink
    if folder.local:
      self._sink = _File(os.path.join(folder.path, name), last=last)
    else:
      self._sink = _Objects(folder, name, last=last)
    self._last = self._sink.kept

  @property
  def last_step(self) -> int:
    """The step of the last line; -1 where there is none."""
    return self._last

  def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
    """Appends lines of one step.

    Raises:
      ValueError: the file has lines of this step or a later one already.
      OSError: the file can't be written.
    """
    lines = list(lines)
    for line in lines:
      if line["step"] <= self._last:
        raise ValueError(f"step {line['step']} after step {self._last}")
    if lines:
      self._sink.append(lines)
      self._last = lines[-1]["step"]

  def sync(self) -> None:
    """Returns once the lines are on the disk, or in the bucket.

    Raises:
      OSError: the file can't be written.
      UserError: the bucket can't be.
    """
    self._sink.sync()

  def close(self) -> None:
    """Ends the writing; what was not synced may be lost."""
    self._sink.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def part_names(folder: Folder, name: str) -> list[str]:
  """Returns the files that make up `name`, in order; none where it is missing.

  A local folder has one, a bucket one for each interval.
  """
  if folder.local:
    return [name] if folder.exists(name) else []
  return folder.names(os.path.splitext(name)[0])


def last_step(folder: Folder, name: str) -> int:
  """Returns the step of the last whole line; -1 where there is none."""
  for part in reversed(part_names(folder, name)):
    for line in reversed((folder.read(part) or b"").splitlines()):
      with contextlib.suppress(ValueError, KeyError, TypeError):
        return int(json.loads(line)["step"])
  return -1


class _Sink(Protocol):
  """Where lines go; `kept` is the last step of those that are there."""

  kept: int

  def append(self, lines: list[Mapping[str, Any]]) -> None: ...

  def sync(self) -> None: ...

  def close(self) -> None: ...


class _File:
  """A local file."""

  def __init__(self, path: str, *, last: int):
    self._path = path
    kept = []
    if os.path.exists(path):
      with open(path, "rb") as file:
        kept = _up_to(last, file.read(), path)
    self.kept = kept[-1]["step"] if kept else -1
    with _naming(path):
      part = f"{path}.part"
      with open(part, "w", encoding="utf-8") as file:
        file.writelines(_encode(line) for line in kept)
      os.replace(part, path)
      self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

  def append(self, lines: list[Mapping[str, Any]]) -> None:
    with _naming(self._path):
      self._file.write("".join(map(_encode, lines)))
      self._file.flush()

  def sync(self) -> None:
    with _naming(self._path):
      self._file.flush()
      os.fsync(self._file.fileno())

  def close(self) -> None:
    with _naming(self._path):
      self._file.close()


class _Objects:
  """An object for each interval, named by the step of its first line.

  So cutting one keeps its name, and it is replaced in one write: a process
  killed in the midst of it leaves no line twice.
  """

  def __init__(self, folder: Folder, name: str, *, last: int):
    self._folder = folder
    self._stem, self._suffix = os.path.splitext(name)
    self._waiting: list[Mapping[str, Any]] = []
    self.kept = -1
    for part in reversed(part_names(folder, name)):
      content = folder.read(part) or b""
      lines = _up_to(last, content, f"{folder.path}/{part}")
      if not lines:
        folder.delete(part)
        continue
      left = "".join(map(_encode, lines)).encode()
      if left != content:
        folder.write(part, left)
      self.kept = lines[-1]["step"]
      break

  def append(self, lines: list[Mapping[str, Any]]) -> None:
    self._waiting += lines

  def sync(self) -> None:
    if not self._waiting:
      return
    self._folder.write(
      f"{self._stem}/{self._waiting[0]['step']:09}{self._suffix}",
      "".join(map(_encode, self._waiting)).encode(),
    )
    self._waiting = []

  def close(self) -> None:
    pass


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Adds the path to an error of writing, which has none by itself."""
  try:
    yield
  except OSError as error:
    raise OSError(error.errno, error.strerror, path) from error


def _up_to(last: int, content: bytes, path: str) -> list[dict[str, Any]]:
  """Returns the lines of steps up to `last`, without a torn last line.

  Raises:
    UserError: a line before the first later one is damaged; names it.
  """
  whole = content[: content.rfind(b"\n") + 1]
  lines = []
  for number, text in enumerate(whole.splitlines() if last >= 0 else [], 1):
    try:
      line = json.loads(text)
      if not isinstance(line, dict) or type(line["step"]) is not int:
        raise ValueError("not an object with a step")
    except (ValueError, KeyError) as error:
      raise UserError(damaged(f"{path}:{number}", error)) from None
    if line["step"] > last:
      break
    lines.append(line)
  return lines


def damaged(where: str, error: Exception) -> str:
  """Returns what a user can do about a damaged line."""
  return (
    f"{where} is damaged: {error}; restore the file, or cut it before that "
    "line and resume the run from a checkpoint before it"
  )


def _encode(line: Mapping[str, Any]) -> str:
  """Returns one line of JSON; a number that is not finite becomes null."""
  plain = {
    key: None if isinstance(v, float) and not math.isfinite(v) else v
    for key, v in line.items()
  }
  return json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n"
