"""Which vocabulary a folder, a file or a config names."""

import json
import os

from poison_jax.config import VocabularyConfig
from poison_jax.errors import UserError
from poison_jax.vocabulary.base import DESCRIPTION, Vocabulary
from poison_jax.vocabulary.byte import ByteVocabulary
from poison_jax.vocabulary.sentence_piece import SentencePieceVocabulary
from poison_jax.vocabulary.table import TableVocabulary
from poison_jax.vocabulary.tokenizer import TokenizerVocabulary


def load(folder: str) -> Vocabulary:
  """Returns the vocabulary that `save` wrote into `folder`.

  Raises:
    UserError: nothing there, or a file is damaged.
  """
  path = os.path.join(folder, DESCRIPTION)
  try:
    description = json.loads(_read(path))
    kind, name = description["kind"], description["file"]
    eos, fingerprint = description["eos_id"], description["fingerprint"]
    extra_ids = description["size"] - ByteVocabulary().size
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path}: damaged vocabulary ({error})") from None
  if kind == "bytes":
    vocabulary = ByteVocabulary(extra_ids=extra_ids)
  else:
    model = _read(os.path.join(folder, name))
    vocabulary = _make(kind, model, path=folder, eos=eos)
  if vocabulary.fingerprint != fingerprint:
    raise UserError(
      f"{folder}: damaged vocabulary, {name or DESCRIPTION} is not what was "
      "saved"
    )
  return vocabulary


def load_file(path: str) -> Vocabulary:
  """Returns the vocabulary of a .model (SentencePiece) or .json file.

  Args:
    path: local, or of a file system that fsspec knows (gs://...).

  Raises:
    UserError: the file is missing, damaged, or of another kind.
  """
  extension = os.path.splitext(path)[1]
  if extension == ".model":
    return _make("sentencepiece", _read(path), path=path, eos=None)
  if extension == ".json":
    eos = _eos_beside(path)
    return _make("tokenizer_json", _read(path), path=path, eos=eos)
  raise UserError(
    f"{path}: a vocabulary's file ends in .model (SentencePiece) or .json "
    "(Hugging Face tokenizers)"
  )


def from_config(config: VocabularyConfig) -> Vocabulary:
  """Returns the vocabulary of a config that needs no training of one.

  Raises:
    UserError: `file` is empty, missing, damaged, or of another kind.
  """
  if config.kind == "bytes":
    return ByteVocabulary()
  if not config.file:
    raise UserError(
      f"config.vocabulary.file is empty; kind {config.kind!r} needs "
      + (
        "a tokenizer.json there"
        if config.kind == "tokenizer_json"
        else "a .model there, or one trained on the corpus by `prepare`"
      )
    )
  eos = _eos_beside(config.file) if config.kind == "tokenizer_json" else None
  return _make(config.kind, _read(config.file), path=config.file, eos=eos)


def _make(
  kind: str, model: bytes, *, path: str, eos: str | int | None
) -> Vocabulary:
  try:
    if kind == "sentencepiece":
      return SentencePieceVocabulary(model)
    if kind == "tokenizer_json":
      return TokenizerVocabulary(model, eos=eos)
    if kind == "table":
      return TableVocabulary(model)
  except ValueError as error:
    raise UserError(f"{path}: {' '.join(str(error).split())}") from None
  raise UserError(f"{path}: unknown kind of vocabulary {kind!r}")


def _eos_beside(path: str) -> str | None:
  """Returns "eos_token" of the tokenizer_config.json beside `path`, or None."""
  beside = os.path.join(os.path.dirname(path), "tokenizer_config.json")
  try:
    eos = json.loads(_read(beside)).get("eos_token")
  except UserError:
    return None
  except ValueError as error:
    raise UserError(f"{beside}: no JSON ({error})") from None
  return eos["content"] if isinstance(eos, dict) else eos


def _read(path: str) -> bytes:
  try:
    if "://" in path:
      import fsspec

      with fsspec.open(path, "rb") as f:
        return f.read()
    with open(path, "rb") as f:
      return f.read()
  except (OSError, ImportError) as error:
    raise UserError(f"{path}: can't read the vocabulary ({error})") from None
