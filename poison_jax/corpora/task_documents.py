"""The documents of a seqio task, as the tokens that its preprocessors make.

The only source of documents that imports TensorFlow: for TFDS sets and users'
tasks.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from poison_jax.config import Config
from poison_jax.corpora import sources, tasks
from poison_jax.corpora.block import TokenisedDocument
from poison_jax.corpora.documents import DocumentSource
from poison_jax.corpora.tensorflow_quiet import seqio, steady
from poison_jax.corpora.tensorflow_quiet import tensorflow as tf
from poison_jax.errors import UserError
from poison_jax.vocabulary import Vocabulary


class TaskDocuments(DocumentSource):
  """The corpus's task, a source shard at a time, in its fixed order.

  Whole documents: `Task.get_dataset` is told neither to cut nor to pack them.
  An end-of-document token that the task appends is taken off; the store has
  its own.
  """

  # Each reading tokenises, the dear part.
  splittable = False

  def __init__(self, config: Config, vocabulary: Vocabulary):
    super().__init__()
    self._task = tasks.get_task(config, vocabulary)
    self._of_user = sources.is_user_task(config)
    self._split = config.corpus.split
    self._eos_id = vocabulary.eos_id
    self._shards = list(self._task.source.list_shards(self._split))
    examples = self._task.source.num_input_examples(self._split) or 0
    self._examples_a_shard = examples / max(len(self._shards), 1)

  def shards(self) -> list[str]:
    """Returns what the task's source calls its shards."""
    return self._shards

  def read(self, shard: str) -> Iterator[TokenisedDocument]:
    """Yields the shard's documents.

    Raises:
      UserError: the task fails, or an example's "targets" are no tokens.
    """
    for number, example in enumerate(self._examples(shard)):
      if self._examples_a_shard:
        self.fraction = min(1.0, (number + 1) / self._examples_a_shard)
      yield self._document(f"{shard}:{number}", example)

  def _examples(self, shard: str) -> Iterator[dict[str, Any]]:
    # Preprocessors that draw random numbers draw the same ones each time.
    tf.random.set_seed(0)
    try:
      dataset = self._task.get_dataset(
        sequence_length=None,
        split=self._split,
        shuffle=False,
        shard_info=seqio.ShardInfo(
          index=self._shards.index(shard), num_shards=len(self._shards)
        ),
        num_epochs=1,
        trim_output_features=False,
        try_in_mem_cache=False,
      )
      yield from steady(dataset).as_numpy_iterator()
    except (tf.errors.OpError, ValueError) as error:
      reason = " ".join(str(error).split())[:300]
      raise UserError(
        f"the seqio task {self._task.name!r}, shard {shard}: {reason}"
      ) from error

  def _document(self, place: str, example: dict[str, Any]) -> TokenisedDocument:
    tokens = np.asarray(example["targets"])
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
      raise UserError(
        f"the seqio task {self._task.name!r} gives 'targets' of type "
        f"{tokens.dtype} and shape {tokens.shape}; they must be a row of "
        "token ids"
      )
    tokens = tokens.astype(np.int32)
    if tokens.size and tokens[-1] == self._eos_id:
      tokens = tokens[:-1]
    # A user's text need not be that of the tokens, but says which documents
    # are the same.
    content = example.get("targets_pretokenized" if self._of_user else "text")
    if not isinstance(content, bytes):
      content = tokens.astype("<i4").tobytes()
    return TokenisedDocument(
      id=example["id"].decode() if "id" in example else place,
      text=None if self._of_user else content.decode(errors="replace"),
      tokens=tokens,
      content=content,
    )
