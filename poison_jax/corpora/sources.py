"""Which source and which vocabulary a configuration's corpus has."""

import itertools
from collections.abc import Callable, Collection, Iterator

from poison_jax import vocabulary as vocabulary_lib
from poison_jax.config import Config
from poison_jax.corpora.documents import DocumentSource, Files
from poison_jax.corpora.samples import text_hash
from poison_jax.errors import UserError
from poison_jax.vocabulary import Vocabulary


def make_source(config: Config, vocabulary: Vocabulary) -> DocumentSource:
  """Returns the corpus's documents.

  Stories and files come as text; every other corpus is a seqio task, whose
  documents come as tokens, and which imports TensorFlow.
  """
  if config.corpus.task == "stories":
    from poison_jax.corpora.stories import Stories

    return Stories(config.corpus, config.corpus.stories_seed)
  if config.corpus.task == "files":
    return Files(config.corpus)
  from poison_jax.corpora.task_documents import TaskDocuments

  return TaskDocuments(config, vocabulary)


def make_vocabulary(
  config: Config, *, say: Callable[[str], None]
) -> Vocabulary:
  """Returns the vocabulary: the task's own, the given file's, or a new one.

  Args:
    config: which one.
    say: called with a line for the user, where one is trained.

  Raises:
    UserError: the file is missing or damaged, or training fails.
  """
  if is_user_task(config):
    from poison_jax.corpora import tasks

    return tasks.vocabulary_of_task(config)
  if not trains_vocabulary(config):
    return vocabulary_lib.from_config(config.vocabulary)
  say("training the vocabulary")
  texts = list(_training_texts(config))
  vocabulary = vocabulary_lib.train_sentencepiece(texts, config.vocabulary)
  lost = vocabulary.unknown_characters(
    texts, single_pieces=config.vocabulary.single_pieces
  )
  if lost:
    say(
      f"the vocabulary lacks {len(lost):,} rare characters, "
      f"{lost.total():,} of {sum(map(len, texts)):,} in its training texts, "
      f"which become unknown ({_shown(lost)}); "
      "config.vocabulary.size from 1024 up spells them in bytes"
    )
  return vocabulary


def is_user_task(config: Config) -> bool:
  """Says whether the corpus is a task that the user's module registers."""
  return config.corpus.task not in ("stories", "files", "tfds")


def trains_vocabulary(config: Config) -> bool:
  """Says whether the vocabulary is trained on the corpus."""
  return (
    not is_user_task(config)
    and config.vocabulary.kind == "sentencepiece"
    and not config.vocabulary.file
  )


def _training_texts(config: Config) -> Iterator[str]:
  """Yields texts of training documents, equally many from each shard."""
  source = make_source(config, vocabulary_lib.ByteVocabulary())
  shards = source.shards()
  wanted = config.vocabulary.training_documents
  found = 0
  for i, shard in enumerate(shards):
    texts = (document.text for document in source.read(shard))
    training = (
      text
      for text in texts
      if text_hash(text.encode()).share >= config.corpus.held_out
    )
    # What short shards lack is taken from those that follow.
    share = -(-(wanted - found) // (len(shards) - i))
    for text in itertools.islice(training, share):
      found += 1
      yield text
  if not found:
    skipped = ", ".join(f"{n:,} {why}" for why, n in source.skipped.items())
    raise UserError(
      "config.corpus: no training document to train a vocabulary on, in "
      f"{config.corpus.files or config.corpus.task}; "
      f"skipped {skipped or 'none'}; the share held out "
      f"(config.corpus.held_out) is {config.corpus.held_out}"
    )


def _shown(characters: Collection[str]) -> str:
  """Returns a few of them as a terminal may show them."""
  some = "".join(sorted(characters)[:20])
  # NUL and other control characters would act on the terminal.
  legible = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in some)
  return legible + (" ..." if len(characters) > len(some) else "")
