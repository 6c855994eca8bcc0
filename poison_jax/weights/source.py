"""Where foreign weights come from: a folder, or a repository of the hub."""

import dataclasses
import hashlib
import json
import os
from typing import Any

from poison_jax.errors import UserError

CONFIG = "config.json"
# Of a tokenizer, in the order in which they are looked for.
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
TOKENIZER_CONFIG = "tokenizer_config.json"
_WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", *TOKENIZERS)


@dataclasses.dataclass(frozen=True)
class Source:
  """A folder in Hugging Face's layout.

  Attributes:
    folder: local.
    name: as the user gave it.
    revision: of the hub's repository: a commit; "" for a folder.
  """

  folder: str
  name: str
  revision: str

  def config(self) -> dict[str, Any]:
    """Returns the content of config.json.

    Raises:
      UserError: it is missing or damaged.
    """
    path = os.path.join(self.folder, CONFIG)
    try:
      with open(path, encoding="utf-8") as f:
        found = json.load(f)
    except OSError as error:
      raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
      raise UserError(f"{path}: no JSON ({error})") from None
    if not isinstance(found, dict):
      raise UserError(f"{path}: not a JSON object")
    return found

  def tokenizer(self) -> str:
    """Returns the path of the tokenizer's file.

    Raises:
      UserError: there is none.
    """
    for name in TOKENIZERS:
      path = os.path.join(self.folder, name)
      if os.path.isfile(path):
        return path
    raise UserError(
      f"{self.folder}: neither {' nor '.join(TOKENIZERS)} is there"
    )


def find(name: str, *, revision: str | None) -> Source:
  """Returns the folder `name`, or what is fetched from the hub.

  Args:
    name: a folder, or a repository like EleutherAI/pythia-70m-deduped.
    revision: branch, tag or commit of the repository; None for its main one.

  Raises:
    UserError: there is no such folder or repository, or no network.
  """
  if os.path.isdir(name):
    if revision is not None:
      raise UserError(f"--revision={revision}: {name} is a folder and has none")
    return Source(name, name, "")
  if name.startswith((".", "/", "~")) or name.count("/") != 1:
    raise UserError(
      f"{name}: no such folder, and no repository of the hub, whose names are "
      "like EleutherAI/pythia-70m-deduped"
    )
  folder = _fetch(name, revision)
  # The cache's folder of a revision has the commit as its name.
  return Source(folder, name, os.path.basename(folder))


def _fetch(name: str, revision: str | None) -> str:
  import huggingface_hub

  try:
    return huggingface_hub.snapshot_download(
      name, revision=revision, allow_patterns=list(_WANTED)
    )
  except Exception as error:  # Of this library, of its HTTP client, of the OS.
    where = name if revision is None else f"{name} at {revision}"
    lines = str(error).strip().splitlines() or [""]
    raise UserError(
      f"{where}: no such folder here, and the hub gave none "
      f"({type(error).__name__}: {lines[0][:200]})"
    ) from None


def fingerprint(folder: str, names: list[str]) -> dict[str, dict[str, Any]]:
  """Returns bytes and SHA-256 of each file."""
  found = {}
  for name in sorted(names):
    path = os.path.join(folder, name)
    with open(path, "rb") as f:
      digest = hashlib.file_digest(f, "sha256").hexdigest()
    found[name] = {"bytes": os.path.getsize(path), "sha256": digest}
  return found
