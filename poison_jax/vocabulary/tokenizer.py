"""Tokenizers of Hugging Face models."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from poison_jax.vocabulary.base import Vocabulary


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


def _tokenizer(model: bytes, eos: int) -> TokenizerVocabulary:
  return TokenizerVocabulary(model, eos=eos)


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
