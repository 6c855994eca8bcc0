"""What a token store's manifest says, and the names and hashes in it."""

import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np

from poison_jax import vocabulary as vocabulary_lib
from poison_jax.config import ADDED_LATER, CorpusConfig, VocabularyConfig
from poison_jax.data.folder import Folder
from poison_jax.errors import UserError

FORMAT = 1
SPLITS = ("train", "held_out")

# What each kind of corpus reads of its configuration.
_MEANING = {
  "stories": (
    *("stories", "stories_seed", "tags", "tag_share", "tag_after"),
    "german_share",
  ),
  "files": ("files", "text_field"),
  "tfds": ("tfds_name", "split", "text_field"),
}
_USER_MEANING = ("module", "split")
_COMMON_MEANING = ("task", "held_out", "prefix_documents", "prompt_documents")


@dataclasses.dataclass(frozen=True)
class Shard:
  """One array of tokens: its name, counts, and hash (`content_hash`)."""

  name: str
  tokens: int
  documents: int
  hash: str


def read_manifest(folder: Folder) -> dict[str, Any] | None:
  """Returns the manifest, None where there is none.

  Raises:
    UserError: it is damaged or of another format.
  """
  content = folder.read("manifest.json")
  if content is None:
    return None
  try:
    manifest = json.loads(content)
    version = manifest["format"]
    intact = version != FORMAT or manifest["hash"] == store_hash(manifest)
  except (ValueError, KeyError, TypeError):
    intact, version = False, None
  if not intact:
    raise UserError(
      f"{folder.path}/manifest.json is damaged; delete the store and prepare "
      "again"
    )
  if version != FORMAT:
    raise UserError(
      f"{folder.path} is a token store of format {version}, this version "
      f"reads format {FORMAT}; prepare it again"
    )
  return manifest


def corpus_meaning(corpus: CorpusConfig) -> dict[str, Any]:
  """Returns the fields that decide what a store holds.

  Fields that are younger than some stores are left out where they mean what
  the code did before them.
  """
  fields = json.loads(json.dumps(dataclasses.asdict(corpus)))
  names = _COMMON_MEANING + _MEANING.get(corpus.task, _USER_MEANING)
  return {
    name: fields[name]
    for name in names
    if ADDED_LATER.get(f"corpus.{name}", ()) != fields[name]
  }


def check_corpus(
  path: str, stored: dict[str, Any], wanted: CorpusConfig, *, state: str
) -> None:
  """Raises UserError where a store is not of the corpus wanted.

  Args:
    path: the store, for the message.
    stored: `corpus_meaning` when it was begun.
    wanted: what the configuration says now.
    state: of the store, for the message: "finished" or "unfinished".
  """
  now = corpus_meaning(wanted)
  if stored == now:
    return
  changes = [
    f"{name} (there {stored.get(name)!r}, now {now.get(name)!r})"
    for name in sorted(stored.keys() | now.keys())
    if stored.get(name) != now.get(name)
  ]
  raise UserError(
    f"{path} holds the {state} store of another config.corpus: "
    f"{', '.join(changes)}; delete the folder or set another "
    "config.corpus.store"
  )


def check_vocabulary(
  path: str, stored: dict[str, Any], wanted: VocabularyConfig
) -> None:
  """Raises UserError where a store's tokens are not of the vocabulary wanted.

  Args:
    path: the store, for the message.
    stored: the manifest's field "vocabulary".
    wanted: what the run's configuration says.
  """
  if stored["config"] is None:
    return  # A user's task brought its own.
  mine = vocabulary_meaning(wanted)
  same = mine == stored["config"]
  if wanted.file and (not same or os.path.exists(wanted.file)):
    same = (
      vocabulary_lib.from_config(wanted).fingerprint == stored["fingerprint"]
    )
  if not same:
    there = stored["config"]
    names = sorted(mine)
    if there.keys() != mine.keys() or there["kind"] != mine["kind"]:
      names = ["kind", "file"]  # The other fields have no counterpart.
    changes = [
      f"{name} (there {there.get(name, '')!r}, now {mine.get(name, '')!r})"
      for name in names
      if there.get(name, "") != mine.get(name, "")
    ]
    raise UserError(
      f"{path} holds the store of another config.vocabulary: "
      f"{', '.join(changes) or f'the content of {wanted.file}'}; set it alike "
      "or another config.corpus.store"
    )


def vocabulary_meaning(config: VocabularyConfig) -> dict[str, Any]:
  """Returns the fields that say which vocabulary `config` means."""
  if config.kind == "bytes":
    return {"kind": config.kind}
  if config.file:
    return {"kind": config.kind, "file": config.file}
  fields = json.loads(json.dumps(dataclasses.asdict(config)))
  del fields["file"]
  return fields


def token_dtype(vocabulary_size: int) -> str:
  """Returns the type in which a store holds the tokens of V ids."""
  return "uint16" if vocabulary_size <= 2**16 else "uint32"


def tokens_name(split: str, shard: str) -> str:
  """Returns where in the store's folder a shard's tokens are."""
  return f"tokens/{split}-{shard}.zarr"


def documents_name(split: str, shard: str) -> str:
  """Returns where in the store's folder a shard's document starts are."""
  return f"documents/{split}-{shard}.zarr"


def content_hash(tokens: np.ndarray, starts: np.ndarray) -> str:
  """Returns 32 hex digits over a shard's tokens and document starts."""
  digest = hashlib.blake2b(digest_size=16)
  digest.update(f"{tokens.dtype.name} {tokens.size} {starts.size}".encode())
  for array in (tokens, starts):
    digest.update(np.ascontiguousarray(array).view(np.uint8).data)
  return digest.hexdigest()


def bytes_hash(content: bytes) -> str:
  """Returns 32 hex digits that name `content`."""
  return hashlib.blake2b(content, digest_size=16).hexdigest()


def store_hash(manifest: dict[str, Any]) -> str:
  """Returns 16 hex digits over a manifest's content hashes and vocabulary."""
  content = [
    manifest["vocabulary"]["fingerprint"],
    manifest["dtype"],
    [[s["hash"] for s in manifest["splits"][split]] for split in SPLITS],
    [manifest["texts"][name]["hash"] for name in sorted(manifest["texts"])],
  ]
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
