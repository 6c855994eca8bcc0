"""The one entry of every command: flags in, exit codes out.

absl alone exits 1 for `--help` and for flags it can't parse, shows a bare
traceback for a misspelt config key, and goes on with a config file that does
not exist. `run` mends all four and turns the errors of `poison_jax.errors`
into one line on standard error and their exit code.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import flags
from ml_collections import config_dict, config_flags

from poison_jax import config as config_lib
from poison_jax import user_module
from poison_jax.errors import PoisonJaxError, UserError

FLAGS = flags.FLAGS


def define_config() -> flags.FlagHolder:
  """Defines --config=FILE.py[:arguments] and the --config.a.b=c overrides."""
  return config_flags.DEFINE_config_file(
    "config",
    default=None,
    help_string="Configuration file, like configs/tiny.py or "
    "configs/tiny.py:poisons=32; --config.a.b=c overrides a field.",
    lock_config=True,
  )


def load_config(holder: flags.FlagHolder) -> config_lib.Config | None:
  """Returns the validated configuration, or None without --config.

  Raises:
    UserError: the file is missing or broken, or a field is not legal.
  """
  if holder.value is None:
    return None
  if not isinstance(holder.value, config_dict.ConfigDict):
    raise UserError(
      "config file: get_config() must return a ConfigDict, not a "
      f"{type(holder.value).__name__}"
    )
  return config_lib.from_config_dict(holder.value)


def run(
  main: Callable[[list[str]], None],
  *,
  leave: Callable[[str, int], None] = lambda *_: None,
) -> NoReturn:
  """Parses the flags, calls `main` with the other arguments, and exits.

  Args:
    main: the command.
    leave: called with an error's message and exit code, after it is printed.
  """
  FLAGS.set_gnu_getopt(True)
  try:
    rest = _parse(sys.argv)
    main(rest[1:])
    sys.stdout.flush()
  except PoisonJaxError as error:
    _fail(str(error), error.code, leave)
  except BrokenPipeError:
    # The reader (`| head`) has enough; keep the interpreter from complaining.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)
  except OSError as error:
    where = f": {error.filename}" if error.filename else ""
    if isinstance(error, FileExistsError | NotADirectoryError):
      where += " (a file, where a folder is wanted)"
    _fail(f"{error.strerror or error}{where}", UserError.code, leave)
  except (MemoryError, RuntimeError) as error:
    if not _is_of_memory(error):
      _crash(error, leave)
    _fail(
      f"not enough memory ({str(error).strip()[:200]}): lower "
      "config.train.batch, train.length, evaluation.batch or the model's size, "
      "raise train.micro_batches or train.loss_pieces, or model.remat=full; "
      "what is another run then needs another --workdir",
      UserError.code,
      leave,
    )
  except KeyboardInterrupt:
    _fail("interrupted", 128 + signal.SIGINT, leave)
  except Exception as error:
    _crash(error, leave)
  sys.exit(0)


def _is_of_memory(error: Exception) -> bool:
  """Says whether the machine's memory or a device's ran out."""
  # JAX raises a RuntimeError; JAX isn't imported here, to tell its kind.
  words = ("RESOURCE_EXHAUSTED", "Out of memory")
  return isinstance(error, MemoryError) or any(w in str(error) for w in words)


def _fail(
  message: str, code: int, leave: Callable[[str, int], None]
) -> NoReturn:
  print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
  leave(message, code)
  sys.exit(code)


def _crash(error: Exception, leave: Callable[[str, int], None]) -> NoReturn:
  """Ends with a traceback: this is our mistake, not the user's."""
  traceback.print_exception(error)
  leave(f"{type(error).__name__}: {error}", 1)
  sys.exit(1)


def _parse(argv: list[str]) -> list[str]:
  if any(a in ("--help", "-h", "-help", "--helpshort") for a in argv[1:]):
    module = sys.modules["__main__"]
    print((module.__doc__ or "").strip(), "\n\nFlags:")
    print(FLAGS.module_help(module).strip())
    if "config" in FLAGS:
      print(f"  --config: {FLAGS['config'].help}")
    sys.exit(0)
  _check_config_flags(argv)
  try:
    return FLAGS(argv)
  except flags.Error as error:
    raise UserError(_last_line(str(error))) from None
  except PoisonJaxError:
    raise
  except Exception as error:
    # All that runs here beside absl is the user's config file.
    reason = user_module.reason_and_place(error)
    if isinstance(error, AttributeError) and error.name == "get_config":
      reason = "it defines no function get_config(), which returns a ConfigDict"
    raise UserError(f"config file failed: {reason}") from error


def _last_line(text: str) -> str:
  """Returns a config file's own error without the traceback before it."""
  head, marker, trace = text.partition("Traceback (most recent call last):")
  if not marker:
    return text
  last = trace.strip().splitlines()[-1]
  if "get_config() takes 0 positional" in last:
    last = "this config takes no arguments after a colon"
  return (
    head.split(": Error whilst")[0]
    + ": "
    + last.removeprefix(f"{UserError.__module__}.UserError: ")
  )


def _check_config_flags(argv: list[str]) -> None:
  """Raises UserError where --config names no file or a key does not exist.

  ml_collections would go on with a lazy error object, or end in a traceback.
  """
  overrides, has_config = [], False
  for i, argument in enumerate(argv):
    name, separator, value = argument.partition("=")
    name = name.lstrip("-") if name.startswith("-") else ""
    if not separator:
      value = argv[i + 1] if i + 1 < len(argv) else ""
    if name.startswith("config."):
      overrides.append((name.removeprefix("config."), value))
    if name != "config":
      continue
    has_config = True
    file = value.partition(":")[0]
    if not os.path.isfile(file) or not file.endswith(".py"):
      what = "not a Python file" if os.path.isfile(file) else "no such file"
      raise UserError(
        f"--config={value}: {what}; it must name a Python file such as "
        "configs/tiny.py (the config.json of a run is read with --workdir)"
      )
  for key, value in overrides:
    if not has_config:
      raise UserError(
        f"--config.{key} overrides a field of --config=FILE.py, which is "
        "missing (a run that exists keeps its config.json)"
      )
    config_lib.check_override(key, value)
