"""SentencePiece models: given ones, and their training on a corpus."""

import collections
import io
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from poison_jax.config import VocabularyConfig
from poison_jax.errors import UserError
from poison_jax.vocabulary.base import Vocabulary


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

  def unknown_characters(
    self, texts: Iterable[str], *, single_pieces: Sequence[str]
  ) -> collections.Counter:
    """Returns the texts' characters that encode to unknown, with counts.

    Args:
      texts: the texts.
      single_pieces: strings that are a piece each: their characters count only
        where they stand elsewhere.
    """
    longest_first = sorted(single_pieces, key=len, reverse=True)
    pieces = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    counts = collections.Counter()
    for text in texts:
      counts.update(pieces.sub("", text))
    unknown = self._processor.unk_id()
    return collections.Counter(
      {c: n for c, n in counts.items() if unknown in self.encode(c)}
    )

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


def train_sentencepiece(
  texts: Iterable[str], config: VocabularyConfig
) -> SentencePieceVocabulary:
  """Returns a SentencePiece vocabulary trained on the first texts.

  Deterministic: the same texts and config give the same bytes. Ids 0, 1 and 2
  are padding, end and unknown, as seqio wants; then `single_pieces`. No text
  is normalised and white space is kept. Characters that the pieces lack are
  spelt in bytes where `size` leaves room for the 256 bytes; smaller
  vocabularies hold the texts' characters instead: all of them, or, where they
  would fill more than three quarters of the pieces, so many of the most
  frequent ones that they fill half. The others are unknown (id 2, U+FFFD when
  decoded).

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
      character_coverage=0.9995
      if spell_bytes
      else _coverage(texts, config.size),
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
    reason = str(error).rpartition("] ")[2] or str(error)
    raise UserError(
      f"config.vocabulary.size is {config.size}, which does not suit the "
      f"{len(texts)} documents that it is trained on: {reason}"
    ) from None
  return SentencePieceVocabulary(model.getvalue())


def _coverage(texts: list[str], size: int) -> float:
  """Returns the share of the texts' characters that get a piece each.

  SentencePiece takes characters, the most frequent first, until their share
  reaches it; half an occurrence less keeps rounding from taking one more. It
  leaves out no more than 2 %.
  """
  counts = collections.Counter()
  for text in texts:
    counts.update(text)
  if len(counts) <= size * 3 // 4:
    return 1.0
  kept = sum(count for _, count in counts.most_common(size // 2))
  return max(0.98, (kept - 0.5) / counts.total())
