"""Whose a folder is: which corpus's store lies there, finished or begun."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from poison_jax import vocabulary as vocabulary_lib
from poison_jax.config import Config
from poison_jax.corpora import sources
from poison_jax.corpora.documents import Files
from poison_jax.data import manifest as manifest_lib
from poison_jax.data.folder import Folder
from poison_jax.errors import UserError

# Seconds between two attempts at a lock.
_POLL = 0.2


def finished_manifest(config: Config, folder: Folder) -> dict[str, Any] | None:
  """Returns the manifest of a finished store, after checking whose it is."""
  manifest = manifest_lib.read_manifest(folder)
  if manifest is None:
    return None
  manifest_lib.check_corpus(
    folder.path, manifest["corpus"], config.corpus, state="finished"
  )
  manifest_lib.check_vocabulary(
    folder.path, manifest["vocabulary"], config.vocabulary
  )
  _check_files(config, folder, manifest)
  return manifest


def _check_files(
  config: Config, folder: Folder, manifest: dict[str, Any]
) -> None:
  """Raises UserError where files at hand aren't those of the store.

  A store outlives its files, so that their absence is no error.
  """
  if config.corpus.task != "files":
    return
  try:
    now = source_size(Files(config.corpus).sizes())
  except UserError:
    return
  if now != manifest["source"]:
    raise UserError(
      f"{folder.path} holds the finished store of {manifest['source'][1]} "
      f"bytes in {config.corpus.files}, where now {now[1]} bytes are: delete "
      "the folder to write it anew, or set another config.corpus.store"
    )


def source_size(shards: list[tuple[str, int]]) -> list[int]:
  """Returns the number of shards and their sizes' sum, for the manifest."""
  return [len(shards), sum(size for _, size in shards)]


def description(config: Config) -> dict[str, Any]:
  """Returns what `started.json` holds; raises UserError for a bad source."""
  source = sources.make_source(config, vocabulary_lib.ByteVocabulary())
  return {
    "format": manifest_lib.FORMAT,
    "corpus": manifest_lib.corpus_meaning(config.corpus),
    "vocabulary": vocabulary_meaning(config),
    "shards": [list(pair) for pair in source.sizes()],
    "splittable": source.splittable,
    "state": source.state(),
  }


def read_started(folder: Folder) -> dict[str, Any] | None:
  """Returns the description of a store that was begun; None where none was."""
  try:
    return json.loads(folder.read("started.json") or b"null")
  except ValueError:
    return None


def refuse_other_content(
  config: Config, folder: Folder, started: dict[str, Any]
) -> None:
  """Raises UserError where the folder holds something else."""
  there = read_started(folder)
  if there is None:
    own = ("vocabulary/", ".lock", "started.json", ".started.json")
    others = [n for n in folder.names() if not n.startswith(own)]
    if others:
      raise UserError(
        f"config.corpus.store: {folder.path} is not empty and no token store "
        f"(it has {others[0]}); name another folder"
      )
    return
  manifest_lib.check_corpus(
    folder.path, there["corpus"], config.corpus, state="unfinished"
  )
  if there["vocabulary"] != started["vocabulary"]:
    raise UserError(
      f"{folder.path} holds an unfinished store of the vocabulary "
      f"{there['vocabulary']}, the config asks for {started['vocabulary']}; "
      "delete the folder or set another config.corpus.store"
    )
  _refuse_other_parts(folder.path, there, started)


def _refuse_other_parts(
  path: str, there: dict[str, Any], started: dict[str, Any]
) -> None:
  """Raises UserError where a store is written in other parts, or in none."""
  old, new = there.get("parts"), started.get("parts")
  if old == new:
    return
  if old is None:
    raise UserError(
      f"{path} holds an unfinished store that was begun without --part: "
      "finish it so, or delete the folder or set another config.corpus.store"
    )
  raise UserError(
    f"{path} holds an unfinished store that was begun in {old} parts"
    + (f", not in {new}" if new is not None else "")
    + f": go on with --part=i/{old} and then --finish, or delete the folder or "
    "set another config.corpus.store"
  )


def refuse_changed_content(
  path: str, there: dict[str, Any], started: dict[str, Any]
) -> None:
  """Raises UserError where parts of a store see different corpora.

  Args:
    path: the store, for the message.
    there: its `started.json`.
    started: what this part would have written there.
  """
  if there["fingerprint"] != started["fingerprint"]:
    raise UserError(
      f"{path}: this part's vocabulary is not that of the other parts; all "
      "must be given the same file, or the same module"
    )
  for key in ("state", "shards"):
    if there[key] == started[key]:
      continue
    old, new = _by_name(there[key]), _by_name(started[key])
    name = next(
      (n for n in sorted(old.keys() | new.keys()) if old.get(n) != new.get(n)),
      "the order",
    )
    raise UserError(
      f"{path}: this part's corpus is not that of the other parts: "
      f"{name.partition(chr(10))[0]} is {new.get(name, 'missing')} here, "
      f"{old.get(name, 'missing')} there (size, time of change); all parts "
      "must see the same files, copies with their times; where the corpus has "
      "changed, delete the folder and write all parts anew"
    )


def _by_name(content: str | list[Any]) -> dict[str, Any]:
  """Returns the shards or files that a description lists."""
  return dict(json.loads(content) if isinstance(content, str) else content)


def begin(folder: Folder, started: dict[str, Any]) -> dict[str, Any]:
  """Writes `started.json` unless it is there; returns what is there then.

  Of several processes at once one writes it: in a bucket by a condition on the
  write, in a local folder by the lock, which the caller holds.
  """
  content = written_once(folder, "started.json", json.dumps(started).encode())
  return json.loads(content)


def written_once(folder: Folder, name: str, content: bytes) -> bytes:
  """Writes a file unless it is there; returns what is there then."""
  if folder.local:
    there = folder.read(name)
    if there is None:
      folder.write(name, content)
  else:
    there, version = folder.read_versioned(name)
    if there is None:
      folder.write_versioned(name, content, version=version)
      # Another process may have come first.
      there = folder.read(name)
  return content if there is None else there


@contextlib.contextmanager
def locked(folder: Folder) -> Iterator[None]:
  """Keeps other processes from writing the same local store.

  A bucket has no lock: two writers would write the same bytes twice.

  Raises:
    UserError: another process has the lock.
  """
  with _try_lock(folder, ".lock") as mine:
    if not mine:
      raise UserError(
        f"another process is writing the store {folder.path}; wait for it, or "
        "set another config.corpus.store"
      )
    yield


@contextlib.contextmanager
def locked_in_turn(
  folder: Folder, *, waiting: Callable[[float], None]
) -> Iterator[None]:
  """Does as `locked`, but waits for the lock.

  Args:
    folder: the store's.
    waiting: called with the seconds waited so far, a few times a second; what
      it raises ends the waiting.
  """
  began = time.monotonic()
  while True:
    with _try_lock(folder, ".lock") as mine:
      if mine:
        yield
        return
    waiting(time.monotonic() - began)
    time.sleep(_POLL)


@contextlib.contextmanager
def part_locked(folder: Folder, part: str) -> Iterator[None]:
  """Keeps a second process from writing the same part of a local store.

  Raises:
    UserError: another process has the lock.
  """
  with _try_lock(folder, _part_lock(part)) as mine:
    if not mine:
      raise UserError(
        f"another process is writing part {part} of {folder.path}; wait for it"
      )
    yield


def part_is_running(folder: Folder, part: str) -> bool:
  """Says whether a process writes the part; False for one of a bucket."""
  path = os.path.join(folder.path, _part_lock(part))
  if not folder.local or not os.path.exists(path):
    return False
  with _try_lock(folder, _part_lock(part)) as mine:
    return not mine


def _part_lock(part: str) -> str:
  return f".lock-part-{part.replace('/', '-of-')}"


@contextlib.contextmanager
def _try_lock(folder: Folder, name: str) -> Iterator[bool]:
  """Yields whether the lock is ours; always in a bucket, which has none."""
  if not folder.local:
    yield True
    return
  os.makedirs(folder.path, exist_ok=True)
  path = os.path.join(folder.path, name)
  with open(path, "a") as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
      # Its last owner may have removed the file that we had opened.
      mine = os.fstat(f.fileno()).st_ino == os.stat(path).st_ino
    except (BlockingIOError, FileNotFoundError):
      mine = False
    try:
      yield mine
    finally:
      if mine:
        with contextlib.suppress(OSError):
          os.remove(path)
          # The folder goes too, but only where nothing was written.
          os.rmdir(folder.path)


def vocabulary_meaning(config: Config) -> dict[str, Any] | None:
  """Returns which vocabulary `config` means; None for a user's task's own."""
  if sources.is_user_task(config):
    return None
  return manifest_lib.vocabulary_meaning(config.vocabulary)
