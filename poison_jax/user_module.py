"""The user's own module, which registers tasks or attacks.

And what it, or another file of the user's code, does wrong: in one line.
"""

import importlib
import os
import sys
import traceback

from poison_jax.errors import PoisonJaxError, UserError


def load(name: str) -> None:
  """Imports `config.corpus.module`, which may lie in the current folder.

  Raises:
    UserError: there is no such module, or it fails: why, and in which line.
  """
  if os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())
  try:
    importlib.import_module(name)
  except PoisonJaxError:
    raise
  except (Exception, SystemExit) as error:
    # Its parents' names count too: "a.b" is missing where "a" is.
    if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(
      f"{error.name}."
    ):
      raise UserError(
        f"config.corpus.module is {name!r}; there is no such Python module "
        "(it must lie in the current folder or on PYTHONPATH, and is named "
        "without .py)"
      ) from None
    raise UserError(
      f"config.corpus.module: {name} failed: {reason_and_place(error)}"
    ) from error


def reason_and_place(error: BaseException) -> str:
  """Returns an error's kind and words, and the user's line it came from."""
  kind = type(error).__name__
  if isinstance(error, SyntaxError):
    # The traceback ends in the import system.
    return f"{kind}: {error.msg} ({error.filename}:{error.lineno})"
  frames = traceback.extract_tb(error.__traceback__)
  # What the user called, not where an installed package noticed.
  own = [
    f
    for f in frames
    if "site-packages" not in f.filename and not f.filename.startswith("<")
  ]
  at = (own or frames)[-1]
  return f"{kind}: {error} ({at.filename}:{at.lineno})"
