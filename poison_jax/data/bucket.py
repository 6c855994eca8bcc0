"""How a bucket is reached, and what is said where it can't be."""

import contextlib
import functools
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterator

import tensorstore as ts

from poison_jax.errors import UserError

# TensorStore's own 32 retries last a quarter of an hour: as long a missing
# network would stay unsaid. So the first request to a bucket is given up after
# about two seconds, any later one after about two minutes.
_FIRST = ts.Context(
  {"gcs_request_retries": {"max_retries": 2, "initial_delay": "500ms"}}
)
_LATER = ts.Context(
  {
    "gcs_request_retries": {
      "max_retries": 10,
      "initial_delay": "500ms",
      "max_delay": "16s",
    }
  }
)
_GIVEN_UP = "retry attempts failed"
_LOG_IN = "not logged in; try gcloud auth application-default login"


@contextlib.contextmanager
def opened(path: str) -> Iterator[ts.KvStore]:
  """Yields the files below gs://bucket/folder, by their relative paths.

  Raises:
    UserError: in place of what TensorStore raises.
  """
  with one_line_errors(path):
    if path.startswith("gs://"):
      _log_in(path.split("/")[2])
    yield _open(path, _LATER)


def _open(path: str, context: ts.Context) -> ts.KvStore:
  return ts.KvStore.open(f"{path}/", context=context).result()


@functools.cache
def _log_in(bucket: str) -> None:
  """Lets TensorStore look for credentials, unheard.

  It does so at the first request, and writes to descriptor 2 which it takes,
  or that there are none. A request that needs some fails then, in one line.
  """
  sys.stderr.flush()
  kept = os.dup(2)
  nowhere = os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(nowhere, 2)
    _open(f"gs://{bucket}", _FIRST).read("config.json").result()
  except ValueError as error:
    if _GIVEN_UP in str(error):
      raise
    # Another name may be allowed.
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)


@contextlib.contextmanager
def one_line_errors(path: str) -> Iterator[None]:
  """Turns TensorStore's errors into a UserError that names `path`."""
  try:
    yield
  except ValueError as error:
    reason = str(error).partition(" [")[0]
    for cause, words in (
      ("No space left", "no space left on the device"),
      ("RESOURCE_EXHAUSTED", "no space or quota left"),
      ("Anonymous caller", _LOG_IN),
      ("UNAUTHENTICATED", _LOG_IN),
      ("PERMISSION_DENIED", "no permission"),
      (_GIVEN_UP, "can't be reached"),
      ("NOT_FOUND", "not found"),
      ("DATA_LOSS", "damaged"),
    ):
      if cause in reason:
        detail = re.sub(r"\s+", " ", reason)[-200:]
        raise UserError(f"{path}: {words} ({detail})") from error
    raise UserError(f"{path}: {reason[:300]}") from error


def prepare_gcsfs(path: str) -> None:
  """Has gcsfs say what is wrong by its errors alone, and the worst soon.

  It logs each failed request, traceback included, and tries for a minute.

  Raises:
    UserError: the bucket can't be reached.
  """
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
  with opened(path):
    pass


def prepare_libraries(path: str) -> None:
  """Lets orbax and JAX open files in a bucket, which they do by themselves.

  They do it through etils and gcsfs. etils is kept from taking TensorFlow
  instead, which training never imports, and gcsfs from remembering listings,
  which TensorStore's files change.

  Raises:
    UserError: gcsfs is not installed, the URL is none of gs://, or the bucket
      can't be reached.
  """
  if not path.startswith("gs://"):
    raise UserError(f"{path} must be a local folder or gs://bucket/folder")
  if importlib.util.find_spec("gcsfs") is None:
    raise UserError(f"{path} needs the package gcsfs: pip install gcsfs")
  prepare_gcsfs(path)
  import fsspec

  os.environ["EPATH_USE_TF"] = "false"
  for name in ("gcs", "gs"):
    fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False


@contextlib.contextmanager
def one_line_library_errors(path: str) -> Iterator[None]:
  """Turns what other libraries raise of a bucket into a UserError.

  Google's clients and gcsfs have types of their own. What the operating system
  says of a local disk stays as it is.
  """
  try:
    yield
  except (UserError, OSError):
    raise
  except Exception as error:
    if "://" not in path:
      raise
    reason = re.sub(r"\s+", " ", str(error))[:300]
    raise UserError(f"{path}: {type(error).__name__}: {reason}") from error
