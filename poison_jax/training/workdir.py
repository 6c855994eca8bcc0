"""A run's folder: whose it is, its `config.json`, and one process at a time.

No JAX here: commands that only read a run start fast.
"""

import contextlib
import json
import os
from collections.abc import Iterator

import pyarrow as pa

from poison_jax import config as config_lib
from poison_jax import version
from poison_jax.config import Config
from poison_jax.data.folder import Folder
from poison_jax.errors import UserError
from poison_jax.poison import ledger
from poison_jax.training import lock as lock_lib
from poison_jax.training.lock import Lock

FORMAT = 1
CONFIG = "config.json"
CHECKPOINTS = "checkpoints"


@contextlib.contextmanager
def locked(workdir: str) -> Iterator[Lock]:
  """Makes `workdir` and holds it against other processes.

  Where an error of the user's input or of the disk ends the context before the
  run has begun (it has no ledger), what was made is removed again.

  Raises:
    UserError: another process holds it, or it is no folder for a run.
    OSError: the folder can't be made or written.
  """
  folder = Folder(workdir)
  fresh = not folder.exists(lock_lib.FILE)
  given = fresh and folder.exists(CONFIG)  # By a study, for a run to begin.
  if fresh and not given and not folder.is_empty():
    raise UserError(
      f"--workdir={workdir} is not empty and holds no run ({CONFIG} is "
      "missing): name a new folder"
    )
  with lock_lib.locked(folder) as lock:
    try:
      yield lock
    except (UserError, OSError):
      if not _has_begun(folder):
        _remove(folder, *([] if given else [CONFIG]))
      raise


def claim(workdir: str, config: Config | None) -> Config:
  """Returns the run's config, written to a new workdir or read from an old.

  An old one's file stays as it is until `keep`: what the config asks for may
  still be refused (a mesh, a store), and then the run must be as it was.

  Args:
    workdir: locked.
    config: of a new run, or what a resumed one is asked to be; None to
      resume as it was.

  Raises:
    UserError: `config` would be another run (it names each such field), or
      there is neither a run nor a config.
  """
  if config is not None and not _has_begun(Folder(workdir)):
    write_config(workdir, config)
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
  return config


def keep(workdir: str, config: Config) -> None:
  """Has a claimed config's free fields (mesh, how often to save) last.

  Raises:
    OSError: the file can't be written.
  """
  if config != load_config(workdir):
    write_config(workdir, config)


def load_config(workdir: str) -> Config:
  """Returns the configuration of the run in `workdir`.

  Raises:
    UserError: no run there, or its config.json is damaged or of a later
      format.
  """
  path = os.path.join(workdir, CONFIG)
  content = Folder(workdir).read(CONFIG)
  if content is None:
    raise UserError(
      f"{workdir} holds no run, {path} is missing (a new run needs "
      "--config=FILE.py)"
    )
  try:
    found = json.loads(content)
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


def read_ledger(workdir: str) -> pa.Table:
  """Returns the ledger of the run in `workdir`.

  Raises:
    CheckFailed: it is missing or damaged.
  """
  content = Folder(workdir).read(ledger.FILE)
  return ledger.decode(content, path=os.path.join(workdir, ledger.FILE))


def _has_begun(folder: Folder) -> bool:
  # The ledger is written before step 0. A run that lost it is a damaged run,
  # not a new one.
  return any(folder.exists(name) for name in (ledger.FILE, CHECKPOINTS))


def _remove(folder: Folder, *names: str) -> None:
  """Removes these files and what `locked` made; others stay."""
  with contextlib.suppress(UserError):  # The bucket's error is on its way.
    for name in names:
      folder.delete(name)
  if folder.local:  # In a bucket the lock deletes itself at its end.
    for name in (*folder.partial_names(), lock_lib.FILE):
      folder.delete(name)
    with contextlib.suppress(OSError):
      os.rmdir(folder.path)


def write_config(workdir: str, config: Config) -> None:
  """Writes `config.json`, whole or not at all."""
  content = {
    "format": FORMAT,
    "config": config_lib.to_dict(config),
    "config_hash": config_lib.config_hash(config),
    "code_version": version.code_version(),
  }
  Folder(workdir).write(CONFIG, (json.dumps(content, indent=2) + "\n").encode())
