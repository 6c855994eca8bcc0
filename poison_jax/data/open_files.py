"""Opens the files that globs name: local or in a bucket, gzip and zstandard."""

import contextlib
import glob
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator
from typing import IO

import fsspec
import zstandard

from poison_jax.data import bucket
from poison_jax.errors import UserError

# What reading a compressed file that is damaged or cut off raises.
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)


def expand(
  pattern: str, *, field: str = "config.corpus.files"
) -> dict[str, tuple[int, str]]:
  """Returns the files that a glob matches, sorted: bytes, and a version.

  The version changes when the file does: time of change or entity tag.

  Args:
    pattern: one glob.
    field: that gave it, for the messages.

  Raises:
    UserError: the bucket can't be reached, or its package isn't installed.
  """
  if "://" not in pattern:
    found = filter(os.path.isfile, glob.glob(pattern, recursive=True))
    stats = {path: os.stat(path) for path in sorted(found)}
    return {p: (s.st_size, str(s.st_mtime_ns)) for p, s in stats.items()}
  if pattern.startswith("gs://"):
    bucket.prepare_gcsfs(pattern)
  try:
    filesystem, path = fsspec.core.url_to_fs(pattern)
    found = filesystem.glob(path, detail=True)
    return {
      filesystem.unstrip_protocol(name): (
        information["size"],
        str(information.get("etag") or information.get("mtime")),
      )
      for name, information in sorted(found.items())
      if information["type"] == "file"
    }
  except ImportError as error:
    raise UserError(
      f"{field}: {pattern} needs a package that isn't installed ({error})"
    ) from None
  except Exception as error:
    # Each bucket's client has errors of its own (login, permission, network).
    raise UserError(
      f"{field}: {pattern}: {type(error).__name__}: {error}"
    ) from error


def open_binary(path: str) -> IO[bytes]:
  """Opens a local file or one in a bucket, for reading."""
  if "://" not in path:
    return open(path, "rb")
  return fsspec.open(path, "rb").open()


@contextlib.contextmanager
def open_decompressed(
  path: str,
) -> Iterator[tuple[IO[bytes], Callable[[], float]]]:
  """Yields the file, decompressed, and a function: the share of it read."""
  with open_binary(path) as raw:
    total = max(raw.seek(0, io.SEEK_END), 1)
    raw.seek(0)
    if path.endswith(".gz"):
      stream = gzip.GzipFile(fileobj=raw)
    elif path.endswith(".zst"):
      stream = io.BufferedReader(_ZstdFile(raw), 2**20)
    else:
      stream = raw
    yield stream, lambda: raw.tell() / total


class _ZstdFile(io.RawIOBase):
  """Reads a .zst file of any number of frames.

  zstandard's own reader takes a file that ends inside a frame for whole.
  """

  def __init__(self, raw: IO[bytes]):
    self._raw = raw
    self._frame = None
    self._pending = b""

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._pending:
      compressed = self._raw.read(2**18)
      if not compressed:
        if self._frame is not None:
          raise EOFError("the file ends inside a frame")
        return 0
      self._pending = self._decompress(compressed)
    size = min(len(buffer), len(self._pending))
    buffer[:size] = self._pending[:size]
    self._pending = self._pending[size:]
    return size

  def _decompress(self, compressed: bytes) -> bytes:
    out = []
    while compressed:
      if self._frame is None:
        self._frame = zstandard.ZstdDecompressor().decompressobj()
      out.append(self._frame.decompress(compressed))
      compressed = self._frame.unused_data
      if self._frame.eof:
        self._frame = None
    return b"".join(out)
