"""The TPU compiler for tests: installed once, apart, as `estimate` does it."""

import functools

import pytest

from poison_jax.errors import UserError
from poison_jax.training import compiler

_FOLDER = "build/estimate"


def folder() -> str:
  """Returns where the compiler is; skips the test where pip can't get it."""
  problem = _install()
  if problem:
    pytest.skip(f"no TPU compiler: {problem}")
  return _FOLDER


@functools.cache
def _install() -> str:
  """Returns what went wrong, "" for nothing."""
  try:
    compiler.install(_FOLDER, say=print)
  except UserError as error:
    return str(error)
  return ""
