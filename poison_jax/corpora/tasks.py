"""The corpus as a seqio task, and a user's task by its name.

A task's feature "targets" holds the tokens of one document; ours have no end
token, as the feature's `add_eos` is for whoever trains on them to ask for.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping

from poison_jax import user_module
from poison_jax.config import Config, nearest
from poison_jax.corpora import sources
from poison_jax.corpora.documents import DocumentSource
from poison_jax.corpora.tensorflow_quiet import seqio
from poison_jax.corpora.tensorflow_quiet import tensorflow as tf
from poison_jax.corpora.tfds_source import tfds_source
from poison_jax.corpora.vocabularies import (
  as_seqio,
  from_seqio,
  strings_of,
)
from poison_jax.errors import UserError
from poison_jax.vocabulary import Vocabulary

# Documents that the graph tokenises at a time.
_TOGETHER = 256


def get_task(config: Config, vocabulary: Vocabulary) -> seqio.Task:
  """Returns the corpus's task, registered.

  Stories, files and TFDS sets are registered under a name that depends on all
  that decides their content, with the fields "text" and "targets". A user's
  task is the one that `corpus.module` registers, unchanged; it has its own
  vocabulary.

  Raises:
    UserError: there is no such task, module or data set.
  """
  if sources.is_user_task(config):
    return user_task(config)
  meaning = [dataclasses.asdict(config.corpus), vocabulary.fingerprint]
  digest = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode())
  name = f"poison_jax_{config.corpus.task}_{digest.hexdigest()[:12]}"
  if name not in seqio.TaskRegistry.names():
    feature = seqio.Feature(
      vocabulary=as_seqio(vocabulary), add_eos=False, dtype=tf.int32
    )
    seqio.TaskRegistry.add(
      name,
      source=_source(config, vocabulary),
      preprocessors=[_text_alone(config), _tokenise],
      output_features={"targets": feature},
    )
  return seqio.TaskRegistry.get(name)


def vocabulary_of_task(config: Config) -> Vocabulary:
  """Returns our vocabulary with the ids of the user's task.

  Raises:
    UserError: there is no such task or module, the task has no feature
      "targets", or its vocabulary has no end token or encodes no text.
  """
  task = user_task(config)
  return from_seqio(
    task.output_features["targets"].vocabulary,
    strings=strings_of(config),
    where=f"the seqio task {task.name!r}",
  )


def user_task(config: Config) -> seqio.Task:
  """Returns the task `corpus.task`, which `corpus.module` registers.

  Raises:
    UserError: there is no such task or module, or the task has no feature
      "targets".
  """
  name, module = config.corpus.task, config.corpus.module
  if module:
    user_module.load(module)
  names = seqio.TaskRegistry.names()
  if name not in names:
    ours = ("stories", "files", "tfds")
    raise UserError(
      f"config.corpus.task is {name!r}; it must be one of {', '.join(ours)}, "
      "or a seqio task that config.corpus.module registers"
      + (f" ({module} doesn't)" if module else " (it is empty)")
      + nearest(name, [*ours, *names])
    )
  task = seqio.TaskRegistry.get(name)
  if "targets" not in task.output_features:
    raise UserError(
      f"the seqio task {name!r} has no output feature 'targets', but "
      f"{', '.join(map(repr, task.output_features)) or 'none'}"
    )
  _check_split(task, config.corpus.split)
  return task


class DocumentsSource(seqio.DataSource):
  """A source of documents for seqio: "id" and "text"; one split, "train"."""

  def __init__(self, documents: DocumentSource):
    super().__init__(splits=["train"])
    self._documents = documents

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return False

  def list_shards(self, split: str) -> list[str]:
    return self._documents.shards()

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    *,
    sequence_length=None,
    use_cached: bool = False,
    num_epochs: int | None = 1,
  ) -> tf.data.Dataset:
    """Returns the documents; `shuffle` shuffles the shards."""
    shards = tf.data.Dataset.from_tensor_slices(self.list_shards(split))
    if shard_info is not None:
      shards = shards.shard(shard_info.num_shards, shard_info.index)
    if shuffle:
      shards = shards.shuffle(len(self.list_shards(split)), seed=seed)
    signature = {
      "id": tf.TensorSpec([], tf.string),
      "text": tf.TensorSpec([], tf.string),
    }
    return shards.flat_map(
      lambda shard: tf.data.Dataset.from_generator(
        self._read, output_signature=signature, args=(shard,)
      )
    )

  def _read(self, shard: bytes):
    for document in self._documents.read(shard.decode()):
      yield document._asdict()


def _source(config: Config, vocabulary: Vocabulary) -> seqio.DataSource:
  if config.corpus.task == "tfds":
    return tfds_source(config.corpus)
  return DocumentsSource(sources.make_source(config, vocabulary))


def _text_alone(
  config: Config,
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
  """Returns a preprocessor that keeps the text, in the field "text"."""
  field = config.corpus.text_field if config.corpus.task == "tfds" else "text"

  def keep(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.map(lambda example: {"text": example[field]})

  return keep


def _tokenise(
  dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
  """Adds "targets"; many documents at a time, which is twice as fast."""
  vocabulary = output_features["targets"].vocabulary

  def encode(batch: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
    tokens = vocabulary.encode_tf(batch["text"])
    return {**batch, "targets": tf.cast(tokens, tf.int32)}

  def dense(example: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
    return {**example, "targets": tf.ensure_shape(example["targets"], [None])}

  return dataset.batch(_TOGETHER).map(encode).unbatch().map(dense)


def _check_split(task: seqio.Task, split: str) -> None:
  if split not in task.splits:
    raise UserError(
      f"config.corpus.split is {split!r}; the seqio task {task.name!r} has "
      f"{', '.join(task.splits)}{nearest(split, task.splits)}"
    )
