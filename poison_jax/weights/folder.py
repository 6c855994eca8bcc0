"""A new folder that is there whole or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator

from poison_jax.errors import UserError


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[str]:
  """Gives a folder to write into, which at the end gets the name `path`.

  Where the context ends by an error it is removed.

  Raises:
    UserError: `path` is in a bucket, or there already and not empty.
    OSError: it can't be made.
  """
  if "://" in path:
    raise UserError(f"{path}: must be a local folder, to copy afterwards")
  path = path.rstrip("/")
  if os.path.exists(path) and (not os.path.isdir(path) or os.listdir(path)):
    raise UserError(f"{path} is not empty: name a new folder")
  head, tail = os.path.split(os.path.abspath(path))
  os.makedirs(head, exist_ok=True)
  partial = os.path.join(head, f".{tail}.{uuid.uuid4().hex[:12]}.partial")
  os.mkdir(partial)
  try:
    yield partial
    os.rename(partial, path)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
