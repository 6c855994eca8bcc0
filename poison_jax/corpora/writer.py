"""Writes a token store: all of it, or the rest of one that was broken off.

While it is being written the folder holds `started.json`, which says of what
corpus, and `blocks/`, a record a finished block; the manifest comes last, and
then both go. What lies in the store depends on the corpus, the vocabulary and
the shares alone, not on the number of workers or of attempts.
"""

import collections
import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

from poison_jax.config import Config
from poison_jax.corpora import claim, sources, workers
from poison_jax.corpora.blocks import BlockRecord
from poison_jax.corpora.samples import Kept, smallest
from poison_jax.corpora.workers import Total
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
  earlier = [
    os.path.basename(name).removesuffix(".json")
    for name in folder.names()
    if name.startswith("blocks/") and name.endswith(".json")
  ]
  if earlier:
    say(f"going on with a store that has {len(earlier)} finished blocks")
  records = workers.write_blocks(
    config,
    shards=[name for name, _ in started["shards"]],
    splittable=started["splittable"],
    earlier=earlier,
    report=Total([size for _, size in started["shards"]], report),
  )
  manifest = _manifest(config, folder, started, vocabulary, records)
  content = json.dumps(manifest, indent=1).encode()
  folder.write("manifest.json", content)
  folder.delete("blocks")
  folder.delete("started.json")
  return manifest


def _vocabulary(
  config: Config, folder: Folder, say: Callable[[str], None]
) -> Vocabulary:
  """Returns the vocabulary that an earlier attempt saved, or makes it."""
  if folder.read("vocabulary/vocabulary.json") is not None:
    with contextlib.suppress(UserError):
      return load_vocabulary(folder)
  vocabulary = sources.make_vocabulary(config, say=say)
  _save_vocabulary(folder, vocabulary)
  return vocabulary


def _save_vocabulary(folder: Folder, vocabulary: Vocabulary) -> None:
  with tempfile.TemporaryDirectory() as copy:
    vocabulary.save(copy)
    local = Folder(copy)
    # The description last: without it nothing else counts.
    for name in sorted(local.names(), key=lambda n: n == "vocabulary.json"):
      folder.write(f"vocabulary/{name}", local.read(name))


def _manifest(
  config: Config,
  folder: Folder,
  started: dict[str, Any],
  vocabulary: Vocabulary,
  records: list[BlockRecord],
) -> dict[str, Any]:
  """Writes the samples of texts; returns the manifest."""
  splits = {
    split: [r.splits[split] for r in records if split in r.splits]
    for split in manifest_lib.SPLITS
  }
  skipped = sum(
    (collections.Counter(r.skipped) for r in records), collections.Counter()
  )
  if not any(splits.values()):
    _remove_all(folder)
    raise UserError(
      f"config.corpus: no document in the corpus ({skipped.total()} skipped)"
    )
  kept = {
    f"{name}_documents": smallest(
      [k for r in records for k in r.kept[split]], size
    )
    for name, split, size in (
      ("prefix", "train", config.corpus.prefix_documents),
      ("prompt", "held_out", config.corpus.prompt_documents),
    )
  }
  if isinstance(vocabulary, TableVocabulary):
    vocabulary = vocabulary.with_known(
      {k.text: k.tokens for sample in kept.values() for k in sample}
    )
    _save_vocabulary(folder, vocabulary)
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
    "skipped": dict(sorted(skipped.items())),
    "texts": {
      name: _write_texts(folder, name, sample) for name, sample in kept.items()
    },
    "splits": {
      split: [dataclasses.asdict(s) for s in shards]
      for split, shards in splits.items()
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
  for name in ("blocks", "tokens", "documents", "vocabulary", "started.json"):
    folder.delete(name)
