"""Sources of documents as text, and the one that reads a user's files.

No TensorFlow here. `Files` reads JSON lines, Parquet and plain text, local or
gs://, plain or compressed; what can't be read is named with its file and line.
"""

import abc
import codecs
import collections
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from poison_jax.config import CorpusConfig
from poison_jax.data import open_files
from poison_jax.data.store import Document
from poison_jax.errors import UserError

_COMPRESSIONS = (".gz", ".zst")
_KINDS = {
  "lines": (".jsonl", ".json", ".ndjson"),
  "parquet": (".parquet",),
  "text": (".txt", ".text", ".md"),
}
_EMPTY = "empty document"

# Small files share a shard up to so many bytes: a folder of a hundred thousand
# text files should not become as many arrays.
SHARD_BYTES = 2**22


class DocumentSource(abc.ABC):
  """A corpus as text, in shards that can be read apart.

  Attributes:
    skipped: documents passed over so far by this object, by reason.
    fraction: share, 0 to 1, of the shard being read that has been read; 0
      where it isn't known.
    splittable: whether several workers may share a shard, each reading it
      whole: so where reading is cheap against tokenising.
  """

  splittable = True

  def __init__(self):
    self.skipped: collections.Counter[str] = collections.Counter()
    self.fraction = 0.0

  @abc.abstractmethod
  def shards(self) -> list[str]:
    """Returns the names of the shards, in their order."""

  def sizes(self) -> list[tuple[str, int]]:
    """Returns each shard with its size, in one unit; 0 where it's unknown.

    It weighs shards against each other in the progress shown.
    """
    return [(shard, 0) for shard in self.shards()]

  def state(self) -> str:
    """Returns what changes when the documents might have changed.

    A store that was broken off goes on only where this is the same.
    """
    return json.dumps(self.sizes())

  @abc.abstractmethod
  def read(self, shard: str) -> Iterator[Document]:
    """Yields the shard's documents, each time the same."""


class Unreadable(NamedTuple):
  """A document that `corpus.on_error` decides about."""

  where: str
  reason: str
  detail: str

  def __str__(self) -> str:
    return f"{self.where}: {self.reason}{self.detail}"


class Files(DocumentSource):
  """The documents in the files that `corpus.files` names.

  A file is a shard; small ones that follow each other share one. A line of
  JSON (.jsonl, .json, .ndjson) or a row of Parquet is a document, its text in
  the field `corpus.text_field`, its id in "id" where there is one. A plain
  text file (.txt, .text, .md) is one document. .gz and .zst after the ending
  are read through. Documents that can't be read, or hold nothing but white
  space, stop the reading with a UserError or are passed over and counted, as
  `corpus.on_error` says.
  """

  def __init__(self, config: CorpusConfig):
    super().__init__()
    self._file_fraction = 0.0
    self._field = config.text_field
    self._stop = config.on_error == "stop"
    self._globs = [g.strip() for g in config.files.split(",") if g.strip()]

  def shards(self) -> list[str]:
    """Returns the paths of each shard's files, joined by line ends.

    Raises:
      UserError: a glob matches no file, or a file is of no kind known here.
    """
    return [shard for shard, _ in self.sizes()]

  def sizes(self) -> list[tuple[str, int]]:
    """Returns each shard with the bytes of its files, as stored.

    Raises:
      UserError: as `shards`.
    """
    shards: list[tuple[list[str], int]] = []
    for path, (size, _) in self._files().items():
      if shards and shards[-1][1] + size <= SHARD_BYTES:
        shards[-1] = (shards[-1][0] + [path], shards[-1][1] + size)
      else:
        shards.append(([path], size))
    return [("\n".join(paths), size) for paths, size in shards]

  def state(self) -> str:
    """Returns the paths, sizes and times of change of the files."""
    return json.dumps(self._files())

  def read(self, shard: str) -> Iterator[Document]:
    """Yields the documents of one of `shards`.

    Raises:
      UserError: as the class says, or a file is missing or cut off.
    """
    paths = shard.split("\n")
    for i, path in enumerate(paths):
      for document in self._read_file(path):
        self.fraction = (i + self._file_fraction) / len(paths)
        yield document

  def _files(self) -> dict[str, tuple[int, str]]:
    """Returns each file's bytes and version, in the order of reading."""
    files: dict[str, tuple[int, str]] = {}
    for pattern in self._globs:
      found = open_files.expand(pattern)
      if not found:
        raise UserError(
          f"config.corpus.files: {pattern!r} {_why_no_file(pattern)}"
        )
      files.update(found)
    for path in files:
      _kind(path)
    return files

  def _read_file(self, path: str) -> Iterator[Document]:
    records = {
      "lines": self._json_lines,
      "parquet": self._parquet_rows,
      "text": self._text_file,
    }[_kind(path)](path)
    self._file_fraction = 0.0
    try:
      for record in records:
        if isinstance(record, Document):
          yield record
        elif self._stop:
          raise UserError(
            f"{record} (config.corpus.on_error=skip passes over such documents)"
          )
        else:
          self.skipped[record.reason] += 1
    except open_files.DAMAGED as e:
      # Not a matter of one document: what follows can't be read at all.
      raise UserError(
        f"{path}: the compressed file is damaged or cut off ({e})"
      ) from None

  def _json_lines(self, path: str) -> Iterator[Document | Unreadable]:
    with open_files.open_decompressed(path) as (stream, position):
      for number, line in enumerate(stream, 1):
        self._file_fraction = position()
        where = f"{path}:{number}"
        if number == 1:
          line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
          continue
        try:
          record = json.loads(line.decode())
        except UnicodeDecodeError as error:
          yield Unreadable(where, "invalid UTF-8", f" at byte {error.start}")
          continue
        except (ValueError, RecursionError) as error:
          yield Unreadable(where, "broken JSON", f" ({error})")
          continue
        yield self._document(where, record)

  def _parquet_rows(self, path: str) -> Iterator[Document | Unreadable]:
    with open_files.open_binary(path) as stream:
      try:
        file = pyarrow.parquet.ParquetFile(stream)
        names = file.schema_arrow.names
        if self._field not in names:
          raise UserError(str(_no_field(path, self._field, names)))
        columns = [self._field] + ["id"] * ("id" in names)
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns):
          ids = batch.column("id").to_pylist() if "id" in names else None
          for i, text in enumerate(_as_bytes(batch.column(self._field))):
            number += 1
            record = {self._field: text} | ({"id": ids[i]} if ids else {})
            yield self._document(f"{path}:{number}", record)
          self._file_fraction = number / max(file.metadata.num_rows, 1)
      except pyarrow.ArrowException as error:
        raise UserError(
          f"{path}: no Parquet file, or a damaged one ({error})"
        ) from None

  def _text_file(self, path: str) -> Iterator[Document | Unreadable]:
    with open_files.open_decompressed(path) as (stream, _):
      content = stream.read()
    try:
      text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
      line = content[: error.start].count(b"\n") + 1
      yield Unreadable(
        f"{path}:{line}", "invalid UTF-8", f" at byte {error.start} of the file"
      )
      return
    if text.strip():
      yield Document(os.path.basename(path), text)
    else:
      yield Unreadable(path, _EMPTY, "")

  def _document(self, where: str, record: Any) -> Document | Unreadable:
    if not isinstance(record, dict):
      return Unreadable(
        where, "not an object", f" but a JSON {type(record).__name__}"
      )
    if self._field not in record:
      return _no_field(where, self._field, list(record))
    text = record[self._field]
    try:
      if isinstance(text, bytes):
        text = text.decode()
      elif isinstance(text, str):
        # JSON can spell half of a surrogate pair, which no UTF-8 can hold.
        text.encode()
      else:
        return Unreadable(
          where,
          "text not a string",
          f": field {self._field!r} holds {type(text).__name__}",
        )
    except UnicodeError as error:
      return Unreadable(where, "invalid UTF-8", f" ({error})")
    if not text.strip():
      return Unreadable(where, _EMPTY, "")
    name = record.get("id")
    # Without the folder, so that a moved corpus gives the same store.
    return Document(
      os.path.basename(where) if name is None else str(name), text
    )


def _no_field(where: str, field: str, names: list[str]) -> Unreadable:
  return Unreadable(
    where,
    "no text field",
    f" {field!r}; the fields are {', '.join(map(repr, names)) or 'none'} "
    "(config.corpus.text_field names it)",
  )


def _why_no_file(pattern: str) -> str:
  if os.path.isdir(pattern):
    inside = os.path.join(pattern, "*.jsonl")
    return f"is a folder; name the files in it, like {inside!r}"
  if "://" in pattern:
    return "matches no file"
  return f"matches no file (seen from {os.getcwd()})"


def _as_bytes(column: pyarrow.Array) -> list[Any]:
  """Returns a column's values; strings as bytes, which may be invalid UTF-8."""
  if pyarrow.types.is_dictionary(column.type):
    column = column.dictionary_decode()
  if pyarrow.types.is_string(column.type):
    column = column.cast(pyarrow.binary())
  elif pyarrow.types.is_large_string(column.type):
    column = column.cast(pyarrow.large_binary())
  return column.to_pylist()


def _kind(path: str) -> str:
  """Returns how to read `path`, by its ending: "lines", "parquet", "text"."""
  stem, ending = os.path.splitext(path)
  if ending in _COMPRESSIONS:
    ending = os.path.splitext(stem)[1]
  for kind, endings in _KINDS.items():
    if ending in endings:
      return kind
  legal = " ".join(e for endings in _KINDS.values() for e in endings)
  raise UserError(
    f"config.corpus.files: {path} has an unknown ending; known are {legal}, "
    f"and {' '.join(_COMPRESSIONS)} after them"
  )
