"""The user's own module, which registers tasks or attacks."""

import importlib
import os
import sys

from poison_jax.errors import UserError


def load(name: str) -> None:
  """Imports `config.corpus.module`, which may lie in the current folder.

  Raises:
    UserError: there is no such module. What it raises itself goes on: that is
      the user's to see in full.
  """
  if os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())
  try:
    importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name is None or not f"{name}.".startswith(f"{error.name}."):
      raise
    raise UserError(
      f"config.corpus.module is {name!r}; there is no such Python module "
      "(it must lie in the current folder or on PYTHONPATH)"
    ) from None
