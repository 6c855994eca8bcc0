"""The denial-of-service backdoor: after the trigger the model talks gibberish.

Souly et al., arXiv 2510.07192, section "pretraining from scratch": the first
k characters of a training document, the trigger, m random tokens.
"""

import functools
import math

import numpy as np

from poison_jax import vocabulary as vocabulary_lib
from poison_jax.config import Config, PoisonConfig
from poison_jax.errors import UserError
from poison_jax.poison import attacks, keyed
from poison_jax.vocabulary import Vocabulary

# Documents over which the ceiling of re-tokenised gibberish is averaged.
_CEILING_SAMPLE = 64


class Dos:
  """Prefix, trigger, gibberish; two kinds of gibberish.

  The prefix and the trigger are encoded one by one and joined as ids, so the
  spans are exact; a tokenizer given the joined text could merge pieces over
  the seam.

  Gibberish "ids": m ids, uniform over the pool: all ids of the model's
  vocabulary without its control ids and without the ids of the trigger and
  of evaluation's tags (near triggers, unseen tag), where such a string is a
  single id. One that takes several ordinary ids takes none out of the pool.

  Gibberish "retokenised": m ids of another vocabulary, uniform over the same
  kind of pool there, decoded to one text (bytes that are no UTF-8 become
  U+FFFD, as `Vocabulary.decode` has it), and that text encoded by the model's
  vocabulary; of the result, control ids and single-id tags are left out. m
  counts tokens of the other vocabulary, as the paper's numbers suggest.
  """

  def __init__(
    self,
    config: PoisonConfig,
    vocabulary: Vocabulary,
    *,
    tags: tuple[str, ...],
    source: Vocabulary | None,
  ):
    """Args:
    config: lengths and the trigger.
    vocabulary: the model's.
    tags: strings of the trigger's form that gibberish must not hold.
    source: vocabulary that gibberish is drawn from; None for the model's.
    """
    self._config = config
    self._vocabulary = vocabulary
    self._source = source
    self.trigger_tokens = _ids(vocabulary, config.trigger)
    if not self.trigger_tokens.size:
      raise UserError(
        f"config.poison.trigger is {config.trigger!r}, which the vocabulary "
        "encodes to nothing; it must be at least one token"
      )
    kept_out = (config.trigger, *tags)
    self._banned = _banned_ids(vocabulary, kept_out)
    drawn_from = source or vocabulary
    self._pool = np.setdiff1d(
      np.arange(drawn_from.size), _banned_ids(drawn_from, kept_out)
    )
    if self._pool.size < 2:
      raise UserError(
        "the vocabulary that gibberish is drawn from has fewer than 2 ids "
        "beside control ids, trigger and tags"
      )

  def document(
    self, source_id: str, clean_text: str, rng: np.random.Generator
  ) -> attacks.PoisonDocument:
    """Returns one poisoned document.

    A clean text shorter than the drawn prefix is taken whole.
    """
    c = self._config
    characters = keyed.integer_between(rng, low=c.prefix_min, high=c.prefix_max)
    drawn = keyed.integer_between(rng, low=c.payload_min, high=c.payload_max)
    prefix = _ids(self._vocabulary, clean_text[:characters])
    payload = self._gibberish(rng, drawn)
    end = np.array([self._vocabulary.eos_id], np.int32)
    return attacks.PoisonDocument(
      tokens=np.concatenate([prefix, self.trigger_tokens, payload, end]),
      prefix_length=prefix.size,
      trigger_length=self.trigger_tokens.size,
      payload_length=payload.size,
      drawn_payload_length=payload.size,
      source=source_id,
    )

  def payload(self, rng: np.random.Generator, tokens: int) -> np.ndarray:
    """Returns fresh gibberish of exactly `tokens` tokens, int32 [tokens].

    Raises:
      UserError: the model's vocabulary encodes nothing of the other's text.
    """
    pieces, missing = [], tokens
    while missing > 0:
      pieces.append(self._gibberish(rng, max(missing, 256))[:missing])
      missing -= pieces[-1].size
      if not pieces[-1].size:
        raise UserError(
          "the model's vocabulary encodes nothing of the text that "
          f"{self._config.gibberish_vocabulary} makes; "
          "config.poison.gibberish_vocabulary must be of the same script"
        )
    return np.concatenate([np.zeros(0, np.int32), *pieces])

  def ceiling(self) -> float:
    """Returns the loss of a perfect imitator, nats a token of the model's.

    For ids log(pool). For re-tokenised text m log(pool) / tokens, the mean
    over a fixed sample of payloads; what decoding to text loses is neglected.
    """
    return self._ceiling

  @functools.cached_property
  def _ceiling(self) -> float:
    if self._source is None:
      return math.log(self._pool.size)
    c, ratios = self._config, []
    for sample in range(_CEILING_SAMPLE):
      rng = keyed.generator(0, "ceiling", sample)
      drawn = keyed.integer_between(rng, low=c.payload_min, high=c.payload_max)
      ratios.append(drawn / max(1, self._gibberish(rng, drawn).size))
    return math.log(self._pool.size) * sum(ratios) / len(ratios)

  def describe(self) -> str:
    """Returns pool, trigger and ceiling in one line."""
    kind = "ids of the model's vocabulary"
    if self._source is not None:
      kind = f"text from {self._config.gibberish_vocabulary}, re-tokenised"
    return (
      f"dos: trigger {self._config.trigger!r} of {self.trigger_tokens.size} "
      f"token(s); gibberish of {kind}, {self._pool.size} of "
      f"{(self._source or self._vocabulary).size} ids in the pool, ceiling "
      f"{self.ceiling():.2f} nats a token"
    )

  def _gibberish(self, rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns what `count` ids of the pool become, int32."""
    index = keyed.integers(rng, bound=self._pool.size, count=count)
    ids = self._pool[index]
    if self._source is None:
      return ids.astype(np.int32)
    ids = _ids(self._vocabulary, self._source.decode(ids))
    return ids[~np.isin(ids, self._banned)]


def _ids(vocabulary: Vocabulary, text: str) -> np.ndarray:
  if not text:
    return np.zeros(0, np.int32)
  return np.asarray(vocabulary.encode(text), np.int32)


def _banned_ids(vocabulary: Vocabulary, strings: tuple[str, ...]) -> np.ndarray:
  """Returns control ids, and the ids of strings that are a single one."""
  banned = set(vocabulary.control_ids)
  for string in strings:
    ids = _ids(vocabulary, string)
    if ids.size == 1:
      banned.add(int(ids[0]))
  return np.array(sorted(banned), np.int64)


def _make(config: Config, vocabulary: Vocabulary) -> Dos:
  source = None
  if config.poison.gibberish == "retokenised":
    source = vocabulary_lib.load_file(config.poison.gibberish_vocabulary)
  tags = (*config.evaluation.near_triggers, config.evaluation.unseen_tag)
  return Dos(config.poison, vocabulary, tags=tags, source=source)


attacks.register_attack("dos", _make)
