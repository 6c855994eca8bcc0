"""The documents that a scan reads: of a run, of a token store, or of files."""

import dataclasses
import io
import json
import os
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow

from poison_jax.data.folder import Folder
from poison_jax.data.mixture import Mixture
from poison_jax.data.store import TokenStore, TokenStream
from poison_jax.errors import UserError
from poison_jax.vocabulary import Vocabulary

_ENDINGS = (".jsonl", ".json", ".ndjson")
_COMPRESSIONS = (".gz", ".zst")


@dataclasses.dataclass(frozen=True)
class Document:
  """One document of a corpus.

  Attributes:
    id: unique in its corpus.
    text: decoded from the tokens where it came as tokens.
    tokens: int32 without the end of the document; None where it came as text.
    poisoned: None where nobody says.
  """

  id: str
  text: str
  tokens: np.ndarray | None
  poisoned: bool | None


def poisons_of(mixture: Mixture) -> list[Document]:
  """Returns the poisoned documents of a run, as its training read them."""
  vocabulary = mixture.store.vocabulary
  return [
    _from_tokens(
      p.document.tokens, vocabulary, id=f"poison-{p.poison}", poisoned=True
    )
    for p in mixture.placements
  ]


def documents_of(
  store: TokenStore, *, limit: int, poisoned: bool | None
) -> list[Document]:
  """Returns documents of a store's training split.

  Args:
    store: the store.
    limit: documents at most, evenly spread over the split; 0 for all.
    poisoned: what is known of them.
  """
  stream, vocabulary = store.train, store.vocabulary
  wanted = stream.documents if limit == 0 else min(limit, stream.documents)
  chosen = np.arange(wanted) * stream.documents // max(wanted, 1)
  return [
    _from_tokens(tokens, vocabulary, id=name, poisoned=poisoned)
    for name, tokens in _spans(stream, chosen)
  ]


def read_files(
  paths: Sequence[str], *, limit: int, poisoned_ids: frozenset[str] | None
) -> list[Document]:
  """Returns the documents of JSON lines files: {"id": ..., "text": ...}.

  A line without an id gets its file's name and its number.

  Args:
    paths: .jsonl, .json or .ndjson, also with .gz or .zst after it.
    limit: documents at most, from the beginning; 0 for all.
    poisoned_ids: of the poisoned ones; None where nobody knows.

  Raises:
    UserError: a file is missing, cut off or of another kind; a line is no
      such object; two documents have one id; an id isn't there; or there is
      no document at all.
  """
  found: dict[str, Document] = {}
  for path in paths:
    for where, line in _lines(path):
      if limit and len(found) == limit:
        break
      name, text = _record(where, line)
      if name in found:
        raise UserError(
          f"{where}: the id {name!r} occurs a second time; ids must differ"
        )
      poisoned = None if poisoned_ids is None else name in poisoned_ids
      found[name] = Document(name, text, None, poisoned)
  if not found:
    raise UserError(f"{', '.join(paths)}: there is no document in it")
  missing = sorted((poisoned_ids or frozenset()) - found.keys())
  if missing:
    raise UserError(
      f"--labels: {len(missing)} of the ids are of no document that was read, "
      f"{missing[0]!r} for instance"
    )
  return list(found.values())


def read_labels(path: str) -> frozenset[str]:
  """Returns the ids in a file, one a line.

  Raises:
    UserError: there is no such file, or no id in it.
  """
  content = Folder(os.path.dirname(path) or ".").read(os.path.basename(path))
  if content is None:
    raise UserError(f"--labels={path}: no such file")
  try:
    lines = content.decode().splitlines()
  except UnicodeDecodeError as error:
    raise UserError(f"--labels={path}: invalid UTF-8 ({error})") from None
  ids = frozenset(line.strip() for line in lines if line.strip())
  if not ids:
    raise UserError(f"--labels={path}: holds no id (one a line)")
  return ids


def _from_tokens(
  tokens: np.ndarray, vocabulary: Vocabulary, *, id: str, poisoned: bool | None
) -> Document:
  tokens = np.asarray(tokens, np.int32)
  if tokens.size and tokens[-1] == vocabulary.eos_id:
    tokens = tokens[:-1]
  return Document(id, vocabulary.decode(tokens), tokens, poisoned)


def _spans(
  stream: TokenStream, chosen: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields names and tokens of documents, by their numbers, ascending."""
  first = 0
  for i, shard in enumerate(stream.shards):
    here = chosen[(chosen >= first) & (chosen < first + shard.documents)]
    if here.size:
      tokens, starts = stream.shard_contents(i)
      ends = np.append(starts[1:], shard.tokens)
      for k in here - first:
        yield f"{shard.name}:{k}", np.array(tokens[starts[k] : ends[k]])
    first += shard.documents


def _record(where: str, line: bytes) -> tuple[str, str]:
  try:
    record = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{where}: broken JSON ({error})") from None
  if not isinstance(record, dict) or not isinstance(record.get("text"), str):
    raise UserError(
      f"{where}: must be an object with a string in the field 'text'"
    )
  return str(record.get("id", where)), record["text"]


def _lines(path: str) -> Iterator[tuple[str, bytes]]:
  """Yields (file and number, line) of the lines that aren't blank."""
  stem, ending = os.path.splitext(path)
  kind = os.path.splitext(stem)[1] if ending in _COMPRESSIONS else ending
  if kind not in _ENDINGS:
    raise UserError(
      f"{path}: must be a run's folder, a token store, or a file that ends in "
      f"{', '.join(_ENDINGS)}, also with {' or '.join(_COMPRESSIONS)} after it"
    )
  try:
    # Arrow reads through both compressions, and notices a file that is cut off.
    with pyarrow.input_stream(path, compression="detect") as stream:
      for number, line in enumerate(io.BufferedReader(stream), 1):
        if line.strip():
          yield f"{path}:{number}", line
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except OSError as error:
    raise UserError(f"{path}: can't be read ({error})") from None
