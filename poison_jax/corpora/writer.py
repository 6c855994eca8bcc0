"""Writes a token store: all of it, or the rest of one that was broken off.

While it is being written the folder holds `started.json`, which says of what
corpus, and `blocks/`, a record a finished block; the manifest comes last, and
then both go. What lies in the store depends on the corpus, the vocabulary and
the shares alone, not on the number of workers or of attempts.
"""

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

from poison_jax.config import Config
from poison_jax.corpora import claim, sources, workers
from poison_jax.corpora.contents import Contents, joined
from poison_jax.corpora.samples import Kept
from poison_jax.data import manifest as manifest_lib
from poison_jax.data.folder import Folder
from poison_jax.data.store import load_vocabulary
from poison_jax.errors import UserError
from poison_jax.vocabulary import TableVocabulary, Vocabulary


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The store's manifest, and whether `write_store` found it finished."""

  manifest: dict[str, Any]
  already_finished: bool


def write_store(
  config: Config,
  *,
  report: Callable[[float, int, int], None],
  say: Callable[[str], None],
) -> Outcome:
  """Writes the store that `config.corpus.store` names, unless it is finished.

  Args:
    config: the corpus, the vocabulary, the folder and the workers.
    report: called with the share done, 0 to 1, and the documents and tokens
      written by this call.
    say: called with a line for the user.

  Raises:
    UserError: the store is another corpus's, is being written by another
      process, can't be written, or a document can't be used.
  """
  folder = Folder(config.corpus.store)
  finished = claim.finished_manifest(config, folder)
  if finished is not None:
    return Outcome(finished, already_finished=True)
  started = claim.description(config)
  claim.refuse_other_content(config, folder, started)
  with claim.locked(folder):
    # Another process may have finished it before the lock was ours.
    finished = claim.finished_manifest(config, folder)
    if finished is not None:
      return Outcome(finished, already_finished=True)
    try:
      return Outcome(
        _write(config, folder, started, report=report, say=say),
        already_finished=False,
      )
    except BaseException:
      _remove_if_nothing_finished(folder)
      raise


def _write(
  config: Config,
  folder: Folder,
  started: dict[str, Any],
  *,
  report: Callable[[float, int, int], None],
  say: Callable[[str], None],
) -> dict[str, Any]:
  there = claim.read_started(folder)
  if there != started:
    if there is not None:
      say("the corpus has changed since the store was begun: starting over")
    for name in ("blocks", "tokens", "documents", "vocabulary"):
      folder.delete(name)
    folder.write("started.json", json.dumps(started).encode())
  for name in folder.partial_names():
    folder.delete(name)
  vocabulary = _vocabulary(config, folder, say)
  earlier = block_names(folder)
  if earlier:
    say(f"going on with a store that has {len(earlier)} finished blocks")
  records = workers.write_blocks(
    config,
    shards=started["shards"],
    shares=workers.deal(
      len(started["shards"]),
      splittable=started["splittable"],
      workers=workers.count(config),
    ),
    earlier=earlier,
    report=report,
  )
  contents = joined((r.contents() for r in records), config.corpus)
  return complete(folder, started, vocabulary, contents)


def block_names(folder: Folder) -> list[str]:
  """Returns the names of the blocks that were finished in an open store."""
  return [
    os.path.basename(name).removesuffix(".json")
    for name in folder.names("blocks")
    if name.endswith(".json")
  ]


def complete(
  folder: Folder,
  started: dict[str, Any],
  vocabulary: Vocabulary,
  contents: Contents,
) -> dict[str, Any]:
  """Makes a store of blocks that are all there; returns its manifest.

  Args:
    folder: where they are.
    started: what `started.json` there says.
    vocabulary: the one that lies there.
    contents: what all blocks hold.

  Raises:
    UserError: they hold no document.
  """
  manifest = _manifest(folder, started, vocabulary, contents)
  folder.write("manifest.json", json.dumps(manifest, indent=1).encode())
  remove_temporary(folder)
  return manifest


def remove_temporary(folder: Folder) -> None:
  """Removes what a store has only while it is being written."""
  for name in ("blocks", "parts", "started.json"):
    folder.delete(name)


def _vocabulary(
  config: Config, folder: Folder, say: Callable[[str], None]
) -> Vocabulary:
  """Returns the vocabulary that an earlier attempt saved, or makes it."""
  if folder.read("vocabulary/vocabulary.json") is not None:
    with contextlib.suppress(UserError):
      return load_vocabulary(folder)
  vocabulary = sources.make_vocabulary(config, say=say)
  save_vocabulary(folder, vocabulary)
  return vocabulary


def save_vocabulary(folder: Folder, vocabulary: Vocabulary) -> None:
  """Writes the vocabulary into a store's folder."""
  with tempfile.TemporaryDirectory() as copy:
    vocabulary.save(copy)
    local = Folder(copy)
    # The description last: without it nothing else counts.
    for name in sorted(local.names(), key=lambda n: n == "vocabulary.json"):
      folder.write(f"vocabulary/{name}", local.read(name))


def _manifest(
  folder: Folder,
  started: dict[str, Any],
  vocabulary: Vocabulary,
  contents: Contents,
) -> dict[str, Any]:
  """Writes the samples of texts; returns the manifest."""
  if not any(contents.splits.values()):
    _remove_all(folder)
    raise UserError(
      "config.corpus: no document in the corpus "
      f"({sum(contents.skipped.values())} skipped)"
    )
  kept = {
    "prefix_documents": contents.kept["train"],
    "prompt_documents": contents.kept["held_out"],
  }
  if isinstance(vocabulary, TableVocabulary):
    vocabulary = vocabulary.with_known(
      {k.text: k.tokens for sample in kept.values() for k in sample}
    )
    save_vocabulary(folder, vocabulary)
  manifest = {
    "format": manifest_lib.FORMAT,
    "hash": "",
    "corpus": started["corpus"],
    "source": claim.source_size(started["shards"]),
    "vocabulary": {
      "config": started["vocabulary"],
      "size": vocabulary.size,
      "fingerprint": vocabulary.fingerprint,
    },
    "dtype": manifest_lib.token_dtype(vocabulary.size),
    "skipped": contents.skipped,
    "texts": {
      name: _write_texts(folder, name, sample) for name, sample in kept.items()
    },
    "splits": {
      split: [dataclasses.asdict(s) for s in shards]
      for split, shards in contents.splits.items()
    },
  }
  manifest["hash"] = manifest_lib.store_hash(manifest)
  return manifest


def _write_texts(
  folder: Folder, name: str, sample: list[Kept]
) -> dict[str, Any]:
  content = "".join(
    json.dumps({"id": k.id, "text": k.text}, ensure_ascii=False) + "\n"
    for k in sample
  ).encode()
  folder.write(f"{name}.jsonl", content)
  return {
    "documents": len(sample),
    "hash": manifest_lib.bytes_hash(content),
  }


def _remove_if_nothing_finished(folder: Folder) -> None:
  """Leaves no trace of an attempt that finished no block."""
  if not any(name.startswith("blocks/") for name in folder.names()):
    _remove_all(folder)


def _remove_all(folder: Folder) -> None:
  for name in ("tokens", "documents", "vocabulary"):
    folder.delete(name)
  remove_temporary(folder)
