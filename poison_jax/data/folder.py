"""Files and one-dimensional arrays in a folder, on local disk or in a bucket.

A local folder is written through temporary names and renames; a bucket
(`gs://...`) through TensorStore, whose objects appear whole or not at all.
This is the one place that tells the two apart wherever it can be one.

Arrays are TensorStore zarr3: one file, uncompressed, dealt into inner chunks,
so that a bucket serves a few kilobytes of it and a local disk maps it into
memory.
"""

import contextlib
import mmap
import os
import shutil
import uuid
from typing import Any

import numpy as np
import tensorstore as ts

from poison_jax.data import bucket
from poison_jax.errors import UserError

# Values an inner chunk: the least that a read from a bucket transfers. Small,
# since rows are read in random order.
INNER_CHUNK = 4096

_PARTIAL = ".partial"
_LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}


class Folder:
  """A folder of files; `path` is local, or a URL like gs://bucket/folder."""

  def __init__(self, path: str):
    self.path = path.rstrip("/")
    self.local = "://" not in path

  def read(self, name: str) -> bytes | None:
    """Returns the content of file `name`, None where there is no such file."""
    if self.local:
      try:
        with open(os.path.join(self.path, name), "rb") as f:
          return f.read()
      except (FileNotFoundError, NotADirectoryError):
        return None
    return self.read_versioned(name)[0]

  def write(self, name: str, content: bytes) -> None:
    """Writes file `name`, which never shows a part of its content."""
    if not self.local:
      with bucket.opened(self.path) as files:
        files.write(name, content).result()
      return
    path = os.path.join(self.path, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = _partial_name(path)
    try:
      with open(partial, "wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
      os.replace(partial, path)
    except BaseException as error:
      with contextlib.suppress(OSError):
        os.remove(partial)
      if isinstance(error, OSError) and error.filename is None:
        error.filename = path  # A full disk's error names no file.
      raise

  def create(self, name: str, content: bytes) -> bool:
    """Writes file `name` if there is none; says whether it did.

    Of several processes at once, on several machines, one does.
    """
    if not self.local:
      there, version = self.read_versioned(name)
      if there is not None:
        return False
      return self.write_versioned(name, content, version=version) is not None
    path = os.path.join(self.path, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = _partial_name(path)
    try:
      with open(partial, "wb") as f:
        f.write(content)
      os.link(partial, path)  # Whole, and once: on network disks as well.
    except FileExistsError:
      return False
    finally:
      with contextlib.suppress(OSError):
        os.remove(partial)
    return True

  def read_versioned(self, name: str) -> tuple[bytes | None, bytes]:
    """Returns a bucket's file `name` (None: there is none), and its version.

    A bucket can write on condition that a file is still of some version, or
    still missing: with this and `write_versioned` processes take turns. On a
    local disk the kernel's locks do that.
    """
    with bucket.opened(self.path) as files:
      result = files.read(name).result()
    content = None if result.state == "missing" else result.value
    return content, result.stamp.generation

  def write_versioned(
    self, name: str, content: bytes | None, *, version: bytes
  ) -> bytes | None:
    """Replaces a bucket's file `name` if it is of that version.

    Args:
      name: of the file.
      content: None deletes it.
      version: from `read_versioned`.

    Returns:
      Its new version; None, and nothing is changed, where another process has
      changed it.
    """
    with bucket.opened(self.path) as files:
      stamp = files.write(name, content, if_equal=version).result()
    return stamp.generation or None

  def delete(self, name: str) -> None:
    """Deletes the file or the subfolder `name`, if it exists."""
    if not self.local:
      with bucket.opened(self.path) as files:
        for keys in _keys(name):
          files.delete_range(keys).result()
      return
    path = os.path.join(self.path, name)
    if os.path.isdir(path):
      shutil.rmtree(path)
    elif os.path.exists(path):
      os.remove(path)

  def exists(self, name: str) -> bool:
    """Says whether there is a file or a subfolder `name`."""
    if self.local:
      return os.path.exists(os.path.join(self.path, name))
    with bucket.opened(self.path) as files:
      return any(files.list(keys).result() for keys in _keys(name))

  def is_empty(self) -> bool:
    """Says whether nothing is in the folder, or there is none."""
    if not self.local:
      return not self.names()
    try:
      return not os.listdir(self.path)
    except FileNotFoundError:
      return True

  def names(self, below: str = "") -> list[str]:
    """Returns the paths of all files below, relative, sorted.

    Args:
      below: a subfolder, whose files alone are asked for.
    """
    if not self.local:
      keys = _keys(below)[1] if below else ts.KvStore.KeyRange()
      with bucket.opened(self.path) as files:
        return sorted(name.decode() for name in files.list(keys).result())
    return sorted(
      os.path.relpath(os.path.join(root, file), self.path)
      for root, _, files in os.walk(os.path.join(self.path, below))
      for file in files
    )

  def real_path(self) -> str:
    """Returns the path that no other path of the same folder has."""
    return os.path.realpath(self.path) if self.local else self.path

  def for_libraries(self) -> str:
    """Returns the full path, for libraries that open files themselves.

    Raises:
      UserError: as `bucket.prepare_libraries`.
    """
    if self.local:
      return os.path.abspath(self.path)
    bucket.prepare_libraries(self.path)
    return self.path

  def partial_names(self) -> list[str]:
    """Returns what writers that were killed left, for `delete`.

    To be asked while no other process writes here.
    """
    if not self.local:
      return []
    return [
      os.path.relpath(os.path.join(root, name), self.path)
      for root, folders, files in os.walk(self.path)
      for name in folders + files
      if name.startswith(".") and name.endswith(_PARTIAL)
    ]

  def write_array(self, name: str, values: np.ndarray) -> None:
    """Writes the one-dimensional `values` whole, then renames (local)."""
    inner = -(-max(values.size, 1) // INNER_CHUNK) * INNER_CHUNK
    path = os.path.join(self.path, name)
    partial = _partial_name(path) if self.local else path
    spec = {
      "driver": "zarr3",
      "kvstore": self._kvstore(partial),
      # An omitted chunk would break the layout that `_map` relies on.
      "store_data_equal_to_fill_value": True,
      "metadata": {
        "shape": [values.size],
        "data_type": values.dtype.name,
        "chunk_grid": {
          "name": "regular",
          "configuration": {"chunk_shape": [inner]},
        },
        "codecs": [
          {
            "name": "sharding_indexed",
            "configuration": {
              "chunk_shape": [INNER_CHUNK],
              "codecs": [_LITTLE_ENDIAN],
              "index_codecs": [_LITTLE_ENDIAN, {"name": "crc32c"}],
            },
          }
        ],
      },
    }
    try:
      with bucket.one_line_errors(path):
        _created(spec, replace=self.local).write(values).result()
      if self.local:
        if os.path.isdir(path):
          shutil.rmtree(path)
        os.replace(partial, path)
    except BaseException:
      if self.local:
        shutil.rmtree(partial, ignore_errors=True)
      raise

  def open_array(
    self, name: str, *, size: int, dtype: str
  ) -> np.ndarray | ts.TensorStore:
    """Returns array `name`: mapped into memory where local, else TensorStore's.

    Raises:
      UserError: it is missing, cut off, or of another size or type.
    """
    if self.local:
      mapped = _map(os.path.join(self.path, name), size, np.dtype(dtype))
      if mapped is not None:
        return mapped
    path = os.path.join(self.path, name)
    with bucket.one_line_errors(path):
      array = ts.open(
        {
          "driver": "zarr3",
          "kvstore": self._kvstore(path),
          # Else a file that is gone would read as zeros.
          "fill_missing_data_reads": False,
        },
        read=True,
      ).result()
    if array.shape != (size,) or array.dtype.name != dtype:
      raise UserError(
        f"{path}: has {array.shape[0]} values of {array.dtype.name}, the "
        f"manifest says {size} of {dtype}; delete the store and prepare again"
      )
    return array

  def _kvstore(self, path: str) -> dict[str, str] | str:
    if self.local:
      return {"driver": "file", "path": os.path.abspath(path) + "/"}
    return path + "/"


def _created(spec: dict[str, Any], *, replace: bool) -> ts.TensorStore:
  """Returns a new array, or where `replace` is False one of its shape.

  Whoever writes an array of a bucket again writes the same values: it is not
  deleted before, lest it be missing for a while, or for good.
  """
  if not replace:
    try:
      return ts.open(spec, create=True, open=True).result()
    except ValueError as error:
      if "FAILED_PRECONDITION" not in str(error):
        raise
      # There is one of another shape.
  return ts.open(spec, create=True, delete_existing=True).result()


def _partial_name(path: str) -> str:
  """Returns a name that no thread, process or machine has a second time."""
  head, tail = os.path.split(path)
  return os.path.join(head, f".{tail}.{uuid.uuid4().hex[:12]}{_PARTIAL}")


def _keys(name: str) -> tuple[ts.KvStore.KeyRange, ts.KvStore.KeyRange]:
  """Returns the keys of the file `name`, and all that begin with "<name>/"."""
  return (
    ts.KvStore.KeyRange(name, f"{name}\0"),
    ts.KvStore.KeyRange(f"{name}/", f"{name}0"),
  )


def _map(path: str, size: int, dtype: np.dtype) -> np.ndarray | None:
  """Returns the array's only file as read-only memory, 1-D.

  The zarr3 sharding codec puts inner chunks first and their index, (offset,
  bytes) in uint64 and a checksum of four bytes, last. Where the index says
  that the chunks lie in order the file begins with the plain values; where it
  doesn't (a store that another program wrote) returns None.
  """
  file = os.path.join(path, "c", "0")
  chunks = -(-max(size, 1) // INNER_CHUNK)
  chunk_bytes = INNER_CHUNK * dtype.itemsize
  try:
    with open(file, "rb") as f:
      if os.fstat(f.fileno()).st_size != chunks * (chunk_bytes + 16) + 4:
        return None
      memory = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
  except FileNotFoundError:
    return None
  index = np.frombuffer(
    memory, "<u8", count=2 * chunks, offset=chunks * chunk_bytes
  ).reshape(chunks, 2)
  in_order = (
    index[:, 0] == np.arange(chunks, dtype=np.uint64) * chunk_bytes
  ) & (index[:, 1] == chunk_bytes)
  if not in_order.all():
    return None
  return np.frombuffer(memory, dtype.newbyteorder("<"), count=size)
