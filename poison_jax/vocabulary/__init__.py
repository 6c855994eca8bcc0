"""Text to token ids and back, without TensorFlow.

One object serves the whole run: `prepare` encodes the corpus with it (through
`corpora/vocabularies.py` also inside a seqio task, with equal ids), training
encodes triggers and poisons, evaluation decodes generations. Its files lie in
the token store, so a run needs no other source of them.
"""

from poison_jax.vocabulary.base import Vocabulary
from poison_jax.vocabulary.byte import ByteVocabulary
from poison_jax.vocabulary.loading import from_config, load, load_file
from poison_jax.vocabulary.sentence_piece import (
  SentencePieceVocabulary,
  train_sentencepiece,
)
from poison_jax.vocabulary.table import TableVocabulary
from poison_jax.vocabulary.tokenizer import TokenizerVocabulary

__all__ = [
  "ByteVocabulary",
  "SentencePieceVocabulary",
  "TableVocabulary",
  "TokenizerVocabulary",
  "Vocabulary",
  "from_config",
  "load",
  "load_file",
  "train_sentencepiece",
]
