"""`metrics.jsonl` and `generations.jsonl`: JSON lines, cut when resuming."""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class JsonLines:
  """A file of JSON objects, one a line, each with a `step`.

  A line is in the file (for the operating system) once `write` returns, so
  killing the process loses none; `sync` also survives a loss of power.
  """

  def __init__(self, path: str, *, resume_at: int | None):
    """Opens `path` for appending.

    Args:
      path: local file; made where it is missing.
      resume_at: keep the lines of steps up to this one and cut the rest, a
        torn last line included; None empties the file.

    Raises:
      OSError: the file can't be written.
    """
    self._path = path
    self._last = -1
    kept = []
    if resume_at is not None and os.path.exists(path):
      kept = [line for line in read_lines(path) if line["step"] <= resume_at]
    with _naming(path):
      part = f"{path}.part"
      with open(part, "w", encoding="utf-8") as file:
        file.writelines(_encode(line) for line in kept)
      os.replace(part, path)
      self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    if kept:
      self._last = kept[-1]["step"]

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
    with _naming(self._path):
      self._file.write("".join(map(_encode, lines)))
      self._file.flush()
    if lines:
      self._last = lines[-1]["step"]

  def sync(self) -> None:
    """Returns once the lines are on the disk."""
    with _naming(self._path):
      self._file.flush()
      os.fsync(self._file.fileno())

  def close(self) -> None:
    with _naming(self._path):
      self._file.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Adds the path to an error of writing, which has none by itself."""
  try:
    yield
  except OSError as error:
    raise OSError(error.errno, error.strerror, path) from error


def read_lines(path: str) -> list[dict[str, Any]]:
  """Returns the objects of a file, without a torn last line."""
  lines = []
  with open(path, encoding="utf-8") as file:
    for text in file:
      if not text.endswith("\n"):
        break
      lines.append(json.loads(text))
  return lines


def _encode(line: Mapping[str, Any]) -> str:
  """Returns one line of JSON; a number that is not finite becomes null."""
  plain = {
    key: None if isinstance(v, float) and not math.isfinite(v) else v
    for key, v in line.items()
  }
  return json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n"
