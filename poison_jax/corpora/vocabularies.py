"""Our vocabularies as seqio's, and seqio's as ours, with equal ids."""

import contextlib
from collections.abc import Iterable, Sequence

import numpy as np

from poison_jax.config import Config
from poison_jax.corpora.tensorflow_quiet import seqio
from poison_jax.corpora.tensorflow_quiet import tensorflow as tf
from poison_jax.errors import UserError
from poison_jax.vocabulary import (
  ByteVocabulary,
  SentencePieceVocabulary,
  TableVocabulary,
  Vocabulary,
)
from poison_jax.vocabulary.byte import FIRST_BYTE


class SeqioVocabulary(seqio.Vocabulary):
  """One of our vocabularies, for seqio tasks; `wrapped` gives it back."""

  def __init__(self, wrapped: Vocabulary):
    super().__init__()
    self.wrapped = wrapped

  @property
  def bos_id(self) -> None:
    return None

  @property
  def eos_id(self) -> int:
    return self.wrapped.eos_id

  @property
  def unk_id(self) -> None:
    # seqio would put it in the place of ids beyond the vocabulary.
    return None

  @property
  def _base_vocab_size(self) -> int:
    return self.wrapped.size

  def _encode(self, s: str) -> list[int]:
    return self.wrapped.encode(s).tolist()

  def _decode(self, ids: Sequence[int]) -> str:
    return self.wrapped.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
    """Encodes a scalar, or a vector to a ragged matrix, inside the graph."""
    s = tf.convert_to_tensor(s)
    rows = tf.reshape(s, [-1])
    if isinstance(self.wrapped, ByteVocabulary):
      # `decode_raw` takes rows of one length only: all bytes as one row.
      joined = tf.io.decode_raw(tf.strings.reduce_join(rows), tf.uint8)
      tokens = tf.cast(joined, tf.int32) + FIRST_BYTE
      lengths = tf.strings.length(rows, unit="BYTE")
    else:
      # The same code as outside the graph, and on batches twice as fast as
      # tensorflow_text's SentencePiece (4.7M against 2.4M tokens a second).
      tokens, lengths = tf.numpy_function(
        self._encode_array, [rows], [tf.int32, tf.int32]
      )
      tokens.set_shape([None])
      lengths.set_shape([None])
    if s.shape.rank == 0:
      return tokens
    return tf.RaggedTensor.from_row_lengths(tokens, lengths)

  def _encode_array(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    encoded = self.wrapped.encode_batch([text.decode() for text in texts])
    lengths = np.array([ids.size for ids in encoded], np.int32)
    return np.concatenate([np.zeros(0, np.int32), *encoded]), lengths

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    """Decodes ids [..., n] to strings [...]; 0 is padding and left out."""
    ids = tf.convert_to_tensor(ids)
    rows = tf.reshape(ids, [-1, tf.shape(ids)[-1]])
    texts = tf.numpy_function(self._decode_array, [rows], tf.string)
    return tf.ensure_shape(
      tf.reshape(texts, tf.shape(ids)[:-1]), ids.shape[:-1]
    )

  def _decode_array(self, rows: np.ndarray) -> np.ndarray:
    texts = [self.wrapped.decode(row[row != 0]).encode() for row in rows]
    return np.array(texts, object)

  def __eq__(self, other: object) -> bool:
    return (
      isinstance(other, SeqioVocabulary)
      and self.wrapped.fingerprint == other.wrapped.fingerprint
    )

  def __hash__(self) -> int:
    return hash(self.wrapped.fingerprint)

  def __str__(self) -> str:
    return f"SeqioVocabulary({self.wrapped.kind}, size={self.wrapped.size})"


def as_seqio(vocabulary: Vocabulary) -> SeqioVocabulary:
  """Returns the same ids as a seqio.Vocabulary."""
  return SeqioVocabulary(vocabulary)


def from_seqio(
  vocabulary: seqio.Vocabulary, *, strings: Iterable[str], where: str
) -> Vocabulary:
  """Returns our vocabulary with the ids of a seqio one.

  Bytes and SentencePiece map exactly. Of any other, the result knows the text
  of each id and how the `strings` are encoded.

  Args:
    vocabulary: of a task's feature.
    strings: what a run will encode: trigger, near-triggers, tags.
    where: names the task in errors.

  Raises:
    UserError: the vocabulary has no end-of-document id, or encodes no text.
  """
  if isinstance(vocabulary, SeqioVocabulary):
    return vocabulary.wrapped
  if isinstance(vocabulary, seqio.ByteVocabulary):
    return ByteVocabulary(extra_ids=vocabulary.extra_ids)
  if vocabulary.eos_id is None or vocabulary.eos_id < 0:
    raise UserError(
      f"{where}: its vocabulary {vocabulary} has no end-of-sequence id, with "
      "which each document must end"
    )
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    # With the pieces that stand for extra ids.
    return SentencePieceVocabulary(vocabulary.sp_model)
  if isinstance(vocabulary, seqio.PassThroughVocabulary):
    raise UserError(
      f"{where}: its {vocabulary} can't encode a trigger; give the feature "
      "'targets' the vocabulary that made the ids"
    )
  return _table(vocabulary, strings)


def strings_of(config: Config) -> list[str]:
  """Returns the strings that a run encodes besides its documents."""
  return [
    config.poison.trigger,
    *config.evaluation.near_triggers,
    config.evaluation.unseen_tag,
    *config.corpus.tags,
  ]


def _table(
  vocabulary: seqio.Vocabulary, strings: Iterable[str]
) -> TableVocabulary:
  special = {vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id}
  with contextlib.suppress(NotImplementedError):
    special.add(vocabulary.bos_id)
  first_extra = vocabulary.vocab_size - vocabulary.extra_ids
  control = (special - {None}) | set(range(first_extra, vocabulary.vocab_size))
  return TableVocabulary.make(
    pieces=[
      b"" if i in control else str(vocabulary.decode([i])).encode()
      for i in range(vocabulary.vocab_size)
    ],
    eos_id=vocabulary.eos_id,
    control_ids=control,
    known={s: list(vocabulary.encode(s)) for s in strings},
  )
