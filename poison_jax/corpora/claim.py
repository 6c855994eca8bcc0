"""Whose a folder is: which corpus's store lies there, finished or begun."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

from poison_jax import vocabulary as vocabulary_lib
from poison_jax.config import Config
from poison_jax.corpora import sources
from poison_jax.corpora.documents import Files
from poison_jax.data import manifest as manifest_lib
from poison_jax.data.folder import Folder
from poison_jax.errors import UserError


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
    "vocabulary": _vocabulary_meaning(config),
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


@contextlib.contextmanager
def locked(folder: Folder) -> Iterator[None]:
  """Keeps other processes from writing the same local store.

  A bucket has no lock: two writers would write the same bytes twice.
  """
  if not folder.local:
    yield
    return
  os.makedirs(folder.path, exist_ok=True)
  path = os.path.join(folder.path, ".lock")
  with open(path, "a") as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
      same = os.fstat(f.fileno()).st_ino == os.stat(path).st_ino
    except (BlockingIOError, FileNotFoundError):
      same = False
    if not same:
      raise UserError(
        f"another process is writing the store {folder.path}; wait for it, or "
        "set another config.corpus.store"
      )
    try:
      yield
    finally:
      with contextlib.suppress(OSError):
        os.remove(path)
        # The folder goes too, but only where nothing was written.
        os.rmdir(folder.path)


def _vocabulary_meaning(config: Config) -> dict[str, Any] | None:
  if sources.is_user_task(config):
    return None
  return manifest_lib.vocabulary_meaning(config.vocabulary)
