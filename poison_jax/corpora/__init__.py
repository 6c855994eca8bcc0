"""The wing of corpora: text sources, seqio tasks, the store's writer."""

from poison_jax.config import Config


def register_poisoned(config: Config) -> str:
  """Registers a run's stream of batches as a seqio task; returns its name.

  See `mixture_task.register_poisoned`, which imports TensorFlow; this package
  alone does not.
  """
  from poison_jax.corpora import mixture_task

  return mixture_task.register_poisoned(config)
