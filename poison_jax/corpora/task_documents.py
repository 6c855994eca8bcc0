"""The documents of a seqio task, as the tokens that its preprocessors make.

The only source of documents that imports TensorFlow: for TFDS sets and users'
tasks.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from poison_jax.config import Config
from poison_jax.corpora import sources, tasks
from poison_jax.corpora.block import TokenisedDocument
from poison_jax.corpora.documents import DocumentSource
from poison_jax.corpora.tensorflow_quiet import (
  seqio,
  steady,
  tensorflow_datasets,
)
from poison_jax.corpora.tensorflow_quiet import tensorflow as tf
from poison_jax.errors import UserError
from poison_jax.vocabulary import Vocabulary

# Documents that leave the graph at a time.
_TOGETHER = 256


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
    # Small sets would be kept in memory for a second pass, and their reading
    # in parts, as for training a vocabulary, complained about.
    seqio.utils.set_tfds_read_config_override(
      tensorflow_datasets.ReadConfig(try_autocache=False)
    )
    self._task = tasks.get_task(config, vocabulary)
    self._of_user = sources.is_user_task(config)
    # A user's text need not be that of the tokens, but says which documents
    # are the same.
    self._content = "targets_pretokenized" if self._of_user else "text"
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
    number = 0
    for batch in self._batches(shard):
      targets = batch.pop("targets")
      if not isinstance(targets, tf.RaggedTensor):
        # The task says that its documents are of one length.
        targets = tf.RaggedTensor.from_tensor(targets)
      tokens = targets.flat_values.numpy().astype(np.int32)
      rows = np.split(tokens, targets.row_splits.numpy()[1:-1])
      texts = {name: field.numpy() for name, field in batch.items()}
      ids, contents = texts.get("id"), texts.get(self._content)
      for i, row in enumerate(rows):
        name = f"{shard}:{number}" if ids is None else ids[i].decode()
        content = None if contents is None else contents[i]
        number += 1
        if self._examples_a_shard:
          self.fraction = min(1.0, number / self._examples_a_shard)
        yield self._document(name, row, content)

  def _batches(self, shard: str) -> Iterator[dict[str, Any]]:
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
      fields = self._fields(dataset.element_spec)
      # A batch at a time, since taking one out of the graph is what costs.
      batches = dataset.map(
        lambda example: {name: example[name] for name in fields}
      ).ragged_batch(_TOGETHER)
      yield from steady(batches)
    except (tf.errors.OpError, ValueError) as error:
      reason = " ".join(str(error).split())[:300]
      raise UserError(
        f"the seqio task {self._task.name!r}, shard {shard}: {reason}"
      ) from error

  def _fields(self, spec: Mapping[str, tf.TensorSpec]) -> list[str]:
    """Returns the fields of an example that are of use here."""
    targets = spec["targets"]
    if targets.shape.rank != 1 or not targets.dtype.is_integer:
      raise UserError(
        f"the seqio task {self._task.name!r} gives 'targets' of type "
        f"{targets.dtype.name} and shape {targets.shape}; they must be a row "
        "of token ids"
      )
    texts = [
      name
      for name in ("id", self._content)
      if name in spec and spec[name] == tf.TensorSpec([], tf.string)
    ]
    return ["targets", *texts]

  def _document(
    self, name: str, tokens: np.ndarray, content: bytes | None
  ) -> TokenisedDocument:
    if tokens.size and tokens[-1] == self._eos_id:
      tokens = tokens[:-1]
    if content is None:
      content, text = tokens.astype("<i4").tobytes(), None
    else:
      text = None if self._of_user else content.decode(errors="replace")
    return TokenisedDocument(name, text, tokens, content)
