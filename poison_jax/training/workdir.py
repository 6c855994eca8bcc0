"""A run's folder: whose it is, its `config.json`, and one process at a time.

No JAX here: commands that only read a run start fast.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator

from poison_jax import config as config_lib
from poison_jax import version
from poison_jax.config import Config
from poison_jax.errors import UserError

FORMAT = 1
CONFIG = "config.json"
LEDGER = "ledger.parquet"  # Written before step 0: the run has begun.
_CHECKPOINTS = "checkpoints"
_LOCK = ".lock"


@contextlib.contextmanager
def locked(workdir: str) -> Iterator[None]:
  """Makes `workdir` and holds it against other processes.

  The lock is the kernel's, so it ends with the process however that dies.
  Where an error of the user's input or of the disk ends the context before the
  run has begun (it has no ledger), what was made is removed again.

  Raises:
    UserError: another process holds it.
    OSError: the folder can't be made or written.
  """
  os.makedirs(workdir, exist_ok=True)
  fresh = not os.path.exists(os.path.join(workdir, _LOCK))
  if fresh and not _is_run(workdir) and os.listdir(workdir):
    raise UserError(
      f"--workdir={workdir} is not empty and holds no run ({CONFIG} is "
      "missing): name a new folder"
    )
  with open(os.path.join(workdir, _LOCK), "a+", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise UserError(
        f"--workdir={workdir} is in use by process {file.read().strip()}: "
        "wait for it or stop it (kill -TERM saves)"
      ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    try:
      yield
    except (UserError, OSError):
      if not _has_begun(workdir):
        _remove(workdir)
      raise


def claim(workdir: str, config: Config | None) -> Config:
  """Returns the run's config, written to a new workdir or read from an old.

  Args:
    workdir: locked.
    config: of a new run, or what a resumed one is asked to be; None to
      resume as it was.

  Raises:
    UserError: `config` would be another run (it names each such field), or
      there is neither a run nor a config.
  """
  if config is not None and not _has_begun(workdir):
    _write_config(workdir, config)
    return config
  old = load_config(workdir)
  if config is None:
    return old
  changes = config_lib.changes_of_meaning(old, config)
  if changes:
    raise UserError(
      f"--workdir={workdir} holds another run; these fields differ: "
      + "; ".join(changes)
    )
  # Fields that are free (mesh, how often to save) hold from now on.
  if config != old:
    _write_config(workdir, config)
  return config


def load_config(workdir: str) -> Config:
  """Returns the configuration of the run in `workdir`.

  Raises:
    UserError: no run there, or its config.json is damaged or of a later
      format.
  """
  path = os.path.join(workdir, CONFIG)
  if not os.path.isdir(workdir) or not os.path.exists(path):
    raise UserError(
      f"{workdir} holds no run, {path} is missing (a new run needs "
      "--config=FILE.py)"
    )
  try:
    with open(path, encoding="utf-8") as file:
      found = json.load(file)
    tree, kind, stated = (
      found[key] for key in ("config", "format", "config_hash")
    )
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path} is damaged: {error!r}") from error
  if kind != FORMAT:
    raise UserError(f"{path} has format {kind}; this code reads {FORMAT}")
  config = config_lib.from_dict(tree)
  if config_lib.config_hash(config) != stated:
    raise UserError(f"{path} was edited: its config_hash is not its config's")
  return config


def _is_run(workdir: str) -> bool:
  return os.path.exists(os.path.join(workdir, CONFIG))


def _has_begun(workdir: str) -> bool:
  # A run that lost its ledger is a damaged run, not a new one.
  return any(
    os.path.exists(os.path.join(workdir, name))
    for name in (LEDGER, _CHECKPOINTS)
  )


def _remove(workdir: str) -> None:
  """Removes what `locked` and `claim` made; other files stay."""
  for name in (CONFIG, f"{CONFIG}.part", f"{LEDGER}.part", _LOCK):
    with contextlib.suppress(FileNotFoundError):
      os.remove(os.path.join(workdir, name))
  with contextlib.suppress(OSError):
    os.rmdir(workdir)


def _write_config(workdir: str, config: Config) -> None:
  path = os.path.join(workdir, CONFIG)
  try:
    with open(f"{path}.part", "w", encoding="utf-8") as file:
      json.dump(
        {
          "format": FORMAT,
          "config": config_lib.to_dict(config),
          "config_hash": config_lib.config_hash(config),
          "code_version": version.code_version(),
        },
        file,
        indent=2,
      )
      file.write("\n")
      file.flush()
      os.fsync(file.fileno())
  except OSError as error:
    error.filename = path  # A full disk's error names no file.
    raise
  os.replace(f"{path}.part", path)
