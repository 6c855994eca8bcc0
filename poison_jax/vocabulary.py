"""Text to token ids and back, without TensorFlow.

One object serves the whole run: `prepare` encodes the corpus with it (through
`corpora/vocabularies.py` also inside a seqio task, with equal ids), training
encodes triggers and poisons, evaluation decodes generations. Its files lie in
the token store, so a run needs no other source of them.
"""

import abc
import base64
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from poison_jax.config import VocabularyConfig
from poison_jax.errors import UserError

_DESCRIPTION = "vocabulary.json"
_FORMAT = 1


class Vocabulary(abc.ABC):
  """V ids, 0 to V-1, and what they stand for.

  Attributes:
    kind: "bytes", "sentencepiece", "tokenizer_json" or "table".
    file_name: name of the model's file inside `save`'s folder; "" for none.
    model: bytes of that file.
    size: V.
    eos_id: ends each document and begins each prompt.
    control_ids: ids that stand for no text: padding, unknown, begin, end,
      unused. Gibberish is never drawn from them.
  """

  kind: str
  file_name: str
  model: bytes
  size: int
  eos_id: int
  control_ids: frozenset[int]

  def encode(self, text: str) -> np.ndarray:
    """Returns int32 [n], without begin or end of document."""
    return self.encode_batch([text])[0]

  @abc.abstractmethod
  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns `encode` of each, faster; the arrays may be read-only."""

  @abc.abstractmethod
  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of all ids; bytes that are no UTF-8 become U+FFFD."""

  @abc.abstractmethod
  def token_bytes(self) -> np.ndarray:
    """Returns int32 [V], the UTF-8 bytes of text that each id stands for.

    0 for control ids, except that an unknown piece counts as the one byte that
    it stands for at least.
    """

  @abc.abstractmethod
  def piece(self, token: int) -> str:
    """Returns a printable form of one id."""

  @property
  def fingerprint(self) -> str:
    """64 hex digits over the kind, the end id and the model's bytes."""
    head = f"{self.kind}/{self.eos_id}/".encode()
    return hashlib.sha256(head + self.model).hexdigest()

  def save(self, folder: str) -> None:
    """Writes the description and the model's file into `folder`."""
    os.makedirs(folder, exist_ok=True)
    if self.file_name:
      with open(os.path.join(folder, self.file_name), "wb") as f:
        f.write(self.model)
    description = {
      "format": _FORMAT,
      "kind": self.kind,
      "file": self.file_name,
      "size": self.size,
      "eos_id": self.eos_id,
      "fingerprint": self.fingerprint,
    }
    path = os.path.join(folder, _DESCRIPTION)
    with open(path, "w", encoding="utf-8") as f:
      json.dump(description, f, indent=2)
      f.write("\n")


class ByteVocabulary(Vocabulary):
  """UTF-8 bytes after three control ids, as in seqio.ByteVocabulary (ByT5)."""

  kind = "bytes"
  file_name = ""
  model = b""
  size = 256 + 3
  eos_id = 1
  control_ids = frozenset({0, 1, 2})

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [
      np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 3
      for text in texts
    ]

  def decode(self, ids: Iterable[int]) -> str:
    ids = np.asarray(ids, np.int64).reshape(-1)
    return (
      (ids[ids >= 3] - 3).astype(np.uint8).tobytes().decode("utf-8", "replace")
    )

  def token_bytes(self) -> np.ndarray:
    return (np.arange(self.size) >= 3).astype(np.int32)

  def piece(self, token: int) -> str:
    if token < 3:
      return ("<pad>", "</s>", "<unk>")[token]
    byte = token - 3
    return chr(byte) if 32 <= byte < 127 else f"<0x{byte:02X}>"


class SentencePieceVocabulary(Vocabulary):
  """A SentencePiece model.

  SentencePiece writes a space as U+2581, so that one character, in a text,
  decodes to a space; apart from it and from characters that the model lacks,
  models of `train_sentencepiece` give every text back.
  """

  kind = "sentencepiece"
  file_name = "sentencepiece.model"

  def __init__(self, model: bytes):
    """Raises ValueError for bytes that are no model or lack an end id."""
    import sentencepiece

    sentencepiece.SetMinLogLevel(3)
    self.model = model
    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      raise ValueError(f"no SentencePiece model ({error})") from None
    self.size = self._processor.vocab_size()
    self.eos_id = self._processor.eos_id()
    if self.eos_id < 0:
      raise ValueError("a SentencePiece model without an end-of-sentence piece")
    self.control_ids = frozenset(
      i
      for i in range(self.size)
      if self._processor.is_control(i)
      or self._processor.is_unknown(i)
      or self._processor.is_unused(i)
    )

  def __reduce__(self):
    return SentencePieceVocabulary, (self.model,)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    # One thread: the store's writer already runs a process a core.
    return self._processor.encode(
      list(texts), return_type="numpy", num_threads=1
    )

  def decode(self, ids: Iterable[int]) -> str:
    return self._processor.decode(np.asarray(ids, np.int64).tolist())

  def token_bytes(self) -> np.ndarray:
    return np.array([self._bytes_of(i) for i in range(self.size)], np.int32)

  def _bytes_of(self, token: int) -> int:
    if self._processor.is_byte(token) or self._processor.is_unknown(token):
      return 1
    if token in self.control_ids:
      return 0
    return len(self.piece(token).replace("\u2581", " ").encode())

  def piece(self, token: int) -> str:
    return self._processor.id_to_piece(int(token))


class TokenizerVocabulary(Vocabulary):
  """A Hugging Face tokenizer.json (library `tokenizers`).

  Special tokens that stand in a text are encoded as ordinary text, as
  SentencePiece does: a document can't end itself.
  """

  kind = "tokenizer_json"
  file_name = "tokenizer.json"
  # Names of the end-of-document token, tried in this order where no
  # tokenizer_config.json stands beside the file.
  _EOS_NAMES = (
    "<|endoftext|>",
    "</s>",
    "<|end_of_text|>",
    "<eos>",
    "<|im_end|>",
    "[SEP]",
  )

  def __init__(self, model: bytes, *, eos: str | int | None):
    """Reads the file's bytes.

    Args:
      model: content of the tokenizer.json.
      eos: the end-of-document token or its id; None to find it by its name.

    Raises:
      ValueError: no tokenizer, or no such end-of-document token.
    """
    # Read when encoding; the store's writer runs a process a core.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    self.model = model
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(model.decode())
    except Exception as error:  # The library raises bare Exceptions.
      raise ValueError(f"no tokenizer.json ({error})") from None
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    self._tokenizer.encode_special_tokens = True
    pieces = self._tokenizer.get_vocab(with_added_tokens=True)
    self._pieces = {token: piece for piece, token in pieces.items()}
    self.size = max(self._pieces) + 1
    self.eos_id = self._find_eos(eos, pieces)
    description = json.loads(model)
    self._decoders = _types_in(
      [description.get("decoder"), description.get("pre_tokenizer")]
    )
    special = {
      token
      for token, added in self._tokenizer.get_added_tokens_decoder().items()
      if added.special
    }
    unknown = pieces.get(description["model"].get("unk_token"))
    self._unknown = unknown
    unused = set(range(self.size)) - set(self._pieces)
    self.control_ids = frozenset(
      special | unused | {self.eos_id} | ({unknown} - {None})
    )

  def __reduce__(self):
    return _tokenizer, (self.model, self.eos_id)

  def _find_eos(self, eos: str | int | None, pieces: Mapping[str, int]) -> int:
    if isinstance(eos, int):
      return eos
    for name in self._EOS_NAMES if eos is None else (eos,):
      if name in pieces:
        return pieces[name]
    raise ValueError(
      f"a tokenizer without the end-of-document token {eos!r}"
      if eos
      else "a tokenizer without a known end-of-document token; put a "
      "tokenizer_config.json with 'eos_token' beside it"
    )

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    encodings = self._tokenizer.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
    return [np.array(e.ids, np.int32) for e in encodings]

  def decode(self, ids: Iterable[int]) -> str:
    return self._tokenizer.decode(
      np.asarray(ids, np.int64).tolist(), skip_special_tokens=True
    )

  def token_bytes(self) -> np.ndarray:
    return np.array([self._bytes_of(i) for i in range(self.size)], np.int32)

  def _bytes_of(self, token: int) -> int:
    if token == self._unknown:
      return 1
    if token in self.control_ids:
      return 0
    piece = self._pieces[token]
    if token in self._tokenizer.get_added_tokens_decoder():
      return len(piece.encode())
    if "ByteLevel" in self._decoders:
      return len(piece)  # One character a byte.
    if "ByteFallback" in self._decoders and _is_byte_piece(piece):
      return 1
    if "WordPiece" in self._decoders:
      return len(piece.removeprefix("##").encode())
    return len(piece.replace("\u2581", " ").encode())

  def piece(self, token: int) -> str:
    return self._pieces.get(int(token), "<unused>")


class TableVocabulary(Vocabulary):
  """The ids of a vocabulary that only its user's seqio task can encode with.

  `prepare` writes the bytes of each id and the texts that a run will ask for:
  trigger, near-triggers, tags, and the documents of prefixes and prompts.
  """

  kind = "table"
  file_name = "table.json"

  def __init__(self, model: bytes):
    """Raises ValueError for bytes that `make` has not written."""
    self.model = model
    try:
      table = json.loads(model)
      self._bytes = [base64.b64decode(piece) for piece in table["pieces"]]
      self._known = {
        text: np.array(ids, np.int32) for text, ids in table["known"].items()
      }
      self.eos_id = int(table["eos_id"])
      self.control_ids = frozenset(table["control_ids"])
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(f"no table of pieces ({error})") from None
    self.size = len(self._bytes)

  @classmethod
  def make(
    cls,
    *,
    pieces: Sequence[bytes],
    eos_id: int,
    control_ids: Iterable[int],
    known: Mapping[str, Sequence[int]],
  ) -> "TableVocabulary":
    """Returns the vocabulary of V pieces that can encode the `known` texts."""
    table = {
      "eos_id": int(eos_id),
      "control_ids": sorted(map(int, control_ids)),
      "pieces": [base64.b64encode(piece).decode() for piece in pieces],
      "known": {k: [int(i) for i in ids] for k, ids in known.items()},
    }
    return cls(json.dumps(table, sort_keys=True).encode())

  def __reduce__(self):
    return TableVocabulary, (self.model,)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self._encode(text) for text in texts]

  def _encode(self, text: str) -> np.ndarray:
    if text in self._known:
      return self._known[text]
    if not text:
      return np.zeros(0, np.int32)
    for known, ids in self._known.items():
      if known.startswith(text):
        return self._cut(ids, len(text.encode()))
    raise UserError(
      f"the store's vocabulary is a table, which can't encode {text[:40]!r}: "
      "it holds the trigger, near-triggers, tags and documents that `prepare` "
      "was given; prepare the store with this config"
    )

  def _cut(self, ids: np.ndarray, length: int) -> np.ndarray:
    """Returns the first ids whose bytes fit in `length`."""
    ends = np.cumsum([len(self._bytes[i]) for i in ids])
    return ids[: np.searchsorted(ends, length, side="right")]

  def decode(self, ids: Iterable[int]) -> str:
    ids = np.asarray(ids, np.int64).reshape(-1)
    return b"".join(self._bytes[i] for i in ids).decode("utf-8", "replace")

  def token_bytes(self) -> np.ndarray:
    return np.array([len(piece) for piece in self._bytes], np.int32)

  def piece(self, token: int) -> str:
    if token in self.control_ids:
      return f"<{token}>"
    return self._bytes[token].decode("utf-8", "backslashreplace")


def load(folder: str) -> Vocabulary:
  """Returns the vocabulary that `save` wrote into `folder`.

  Raises:
    UserError: nothing there, or a file is damaged.
  """
  path = os.path.join(folder, _DESCRIPTION)
  try:
    description = json.loads(_read(path))
    kind, name = description["kind"], description["file"]
    eos, fingerprint = description["eos_id"], description["fingerprint"]
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path}: damaged vocabulary ({error})") from None
  model = _read(os.path.join(folder, name)) if name else b""
  vocabulary = _make(kind, model, path=folder, eos=eos)
  if vocabulary.fingerprint != fingerprint:
    raise UserError(
      f"{folder}: damaged vocabulary, {name} is not the file that was saved"
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


def train_sentencepiece(
  texts: Iterable[str], config: VocabularyConfig
) -> SentencePieceVocabulary:
  """Returns a SentencePiece vocabulary trained on the first texts.

  Deterministic: the same texts and config give the same bytes. Ids 0, 1 and 2
  are padding, end and unknown, as seqio wants; then `single_pieces`. No text
  is normalised and white space is kept. Characters that the pieces lack are
  spelt in bytes where `size` leaves room for the 256 bytes; smaller
  vocabularies hold every character of the texts instead.

  Args:
    texts: documents; at most `config.training_documents` are read.
    config: pieces, algorithm and single pieces.

  Raises:
    UserError: `size` does not suit the texts.
  """
  import sentencepiece

  texts = [t for t in itertools.islice(texts, config.training_documents) if t]
  if not texts:
    raise UserError("there is no text to train a vocabulary on")
  spell_bytes = config.size >= 1024
  single_pieces = list(config.single_pieces)
  # SentencePiece uses the tab inside its trainer and never learns it.
  if not spell_bytes and any("\t" in text for text in texts):
    single_pieces.append("\t")
  sentencepiece.SetMinLogLevel(3)
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.Train(
      sentence_iterator=iter(texts),
      model_writer=model,
      model_type=config.algorithm,
      vocab_size=config.size,
      user_defined_symbols=single_pieces,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      unk_surface="\ufffd",
      byte_fallback=spell_bytes,
      character_coverage=0.9995 if spell_bytes else 1.0,
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      # Longer documents would be left out.
      max_sentence_length=2**30,
      shuffle_input_sentence=False,
      # A constant: the sums of "unigram" are split by thread.
      num_threads=4,
      minloglevel=3,
    )
  except RuntimeError as error:
    # "INTERNAL: file.cc(12) [condition] What is wrong."
    reason = str(error).rpartition("] ")[2]
    raise UserError(
      f"config.vocabulary.size is {config.size}, which does not suit the "
      f"{len(texts)} documents that it is trained on: {reason}"
    ) from None
  return SentencePieceVocabulary(model.getvalue())


def _make(
  kind: str, model: bytes, *, path: str, eos: str | int | None
) -> Vocabulary:
  try:
    if kind == "bytes":
      return ByteVocabulary()
    if kind == "sentencepiece":
      return SentencePieceVocabulary(model)
    if kind == "tokenizer_json":
      return TokenizerVocabulary(model, eos=eos)
    if kind == "table":
      return TableVocabulary(model)
  except ValueError as error:
    raise UserError(f"{path}: {' '.join(str(error).split())}") from None
  raise UserError(f"{path}: unknown kind of vocabulary {kind!r}")


def _tokenizer(model: bytes, eos: int) -> TokenizerVocabulary:
  return TokenizerVocabulary(model, eos=eos)


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


def _types_in(tree: object) -> set[str]:
  """Returns every "type" named in a nested JSON value."""
  if isinstance(tree, list):
    return set().union(*map(_types_in, tree))
  if isinstance(tree, dict):
    own = {tree["type"]} if isinstance(tree.get("type"), str) else set()
    return own.union(*map(_types_in, tree.values()))
  return set()


def _is_byte_piece(piece: str) -> bool:
  return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
