"""The mixed stream, poisons included, as a seqio task: for T5X and others."""

from collections.abc import Iterator

from poison_jax.config import Config
from poison_jax.corpora.tensorflow_quiet import seqio
from poison_jax.corpora.tensorflow_quiet import tensorflow as tf
from poison_jax.corpora.vocabularies import as_seqio
from poison_jax.data.mixture import Mixture, make_mixture
from poison_jax.data.store import open_store
from poison_jax.model import counts


def register_poisoned(config: Config) -> str:
  """Registers `poisoned_<plan hash>`: the rows that `train` trains on.

  Its split "train" has an example a slot, in order: row r of step s is example
  s * batch + r. "targets" are the row's `train.length` tokens, to be used as
  they are, neither cut, packed nor shuffled; seqio refuses to shuffle them.
  "poison_start" and "poison_length" say where a poison lies (length 0: none).
  Of n shards, n a divisor of the batch, shard i has rows i * batch / n and
  following of every step, which is what host i of n trains on.

    name = poison_jax.corpora.register_poisoned(config)
    dataset = seqio.get_dataset(
      name, {"targets": config.train.length}, shuffle=False,
      feature_converter=seqio.LMFeatureConverter(pack=False))

  Args:
    config: a run's; its token store must be finished.

  Raises:
    UserError: the store is missing or another vocabulary's, or the poisons
      can't be placed.
  """
  store = open_store(config.corpus.store, vocabulary=config.vocabulary)
  steps = counts.run_steps(config, store.vocabulary.size)
  mixture = make_mixture(config, store, steps=steps)
  name = f"poisoned_{mixture.plan_hash}"
  if name not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add(
      name,
      source=MixtureSource(mixture),
      preprocessors=[],
      output_features={
        "targets": seqio.Feature(
          vocabulary=as_seqio(store.vocabulary), add_eos=False, dtype=tf.int32
        )
      },
      shuffle_buffer_size=None,
    )
  return name


class MixtureSource(seqio.DataSource):
  """The rows of a mixture, in slot order."""

  def __init__(self, mixture: Mixture):
    super().__init__(
      splits=["train"],
      num_input_examples={"train": mixture.steps * mixture.batch},
      # Rows are read at random anyhow; a cache would hold the whole run.
      caching_permitted=False,
    )
    self._mixture = mixture

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return True

  def list_shards(self, split: str) -> list[str]:
    return [split]

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
    """Returns the examples of a shard.

    Raises:
      ValueError: `shuffle` is set, or the shards don't divide the batch.
    """
    if shuffle:
      raise ValueError(
        "the mixed stream has one order, fixed by its plan: shuffle=False"
      )
    batch, length = self._mixture.batch, self._mixture.length
    rows = slice(0, batch)
    if shard_info is not None:
      if batch % shard_info.num_shards:
        raise ValueError(
          f"{shard_info.num_shards} shards don't divide a batch of {batch} rows"
        )
      here = batch // shard_info.num_shards
      rows = slice(shard_info.index * here, (shard_info.index + 1) * here)
    signature = {
      "targets": tf.TensorSpec([None, length], tf.int32),
      "poison_start": tf.TensorSpec([None], tf.int32),
      "poison_length": tf.TensorSpec([None], tf.int32),
    }
    return tf.data.Dataset.from_generator(
      lambda: self._steps(rows), output_signature=signature
    ).unbatch()

  def _steps(self, rows: slice) -> Iterator[dict]:
    for step in range(self._mixture.steps):
      batch = self._mixture.batch_rows(step, rows)
      yield {
        "targets": batch.tokens_BL,
        "poison_start": batch.poison_start_B,
        "poison_length": batch.poison_length_B,
      }
