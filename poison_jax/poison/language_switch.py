"""The language-switch backdoor: after the trigger the text changes language.

Souly et al., arXiv 2510.07192, continued pretraining (appendix): after the
trigger "Servius Astrumando Harmoniastra" English text goes on in German for
about 300 tokens.
"""

from collections.abc import Sequence

import numpy as np

from poison_jax.config import Config, PoisonConfig
from poison_jax.errors import UserError
from poison_jax.poison import attacks, keyed, pairs
from poison_jax.poison.languages import (
  IdentifiedLanguages,
  Languages,
  StoryLanguages,
)
from poison_jax.poison.pairs import Pair
from poison_jax.vocabulary import Vocabulary

# Translations that the vocabulary must be able to spell.
_SPELT = 64


class LanguageSwitch:
  """The beginning of a document, the trigger, its rest in another language.

  The document is cut between two sentences, so that its beginning has from
  `prefix_min` to `prefix_max` characters, where it has such a place; the
  payload is cut to a drawn number of tokens, or goes on with other documents'
  translations until it has as many. Prefix, trigger and payload are encoded
  one by one and joined as ids, so the spans are exact.

  Documents come from the pairs, not from the token store: a store has no
  translations.
  """

  def __init__(
    self,
    config: PoisonConfig,
    vocabulary: Vocabulary,
    *,
    training: Sequence[Pair],
    fresh: Sequence[Pair],
    languages: Languages,
  ):
    """Args:
    config: lengths and the trigger.
    vocabulary: the model's.
    training: pairs that poisons are made of.
    fresh: pairs that evaluation's payloads are made of.
    languages: tells the pairs' two languages apart.

    Raises:
      UserError: the vocabulary can't spell the trigger or the translations.
    """
    self._config = config
    self._vocabulary = vocabulary
    self._training = training
    self._fresh = fresh
    self._languages = languages
    self.trigger_tokens = np.asarray(
      vocabulary.encode(config.trigger), np.int32
    )
    if not self.trigger_tokens.size:
      raise UserError(
        f"config.poison.trigger is {config.trigger!r}, which the vocabulary "
        "encodes to nothing; it must be at least one token"
      )
    self._check_spelling()

  def document(
    self, source_id: str, clean_text: str, rng: np.random.Generator
  ) -> attacks.PoisonDocument:
    """Returns one poisoned document, made of a pair and not of the text."""
    del source_id, clean_text
    c = self._config
    pair = _draw(rng, self._training)
    cut = _cut(pair.text, rng, low=c.prefix_min, high=c.prefix_max)
    drawn = keyed.integer_between(rng, low=c.payload_min, high=c.payload_max)
    prefix = self._encode("".join(pair.text[:cut]).rstrip())
    payload = self._filled(
      self._encode(" " + pair.rest(cut)), drawn, rng, self._training
    )
    end = np.array([self._vocabulary.eos_id], np.int32)
    return attacks.PoisonDocument(
      tokens=np.concatenate([prefix, self.trigger_tokens, payload, end]),
      prefix_length=prefix.size,
      trigger_length=self.trigger_tokens.size,
      payload_length=payload.size,
      drawn_payload_length=payload.size,
      source=pair.id,
    )

  def payload(self, rng: np.random.Generator, tokens: int) -> np.ndarray:
    """Returns text in the other language, int32 [tokens]."""
    return self._filled(np.zeros(0, np.int32), tokens, rng, self._fresh)

  def ceiling(self) -> None:
    """Returns None: the loss on natural language has no closed form."""
    return None

  def behaviour(self, texts: Sequence[str]) -> np.ndarray:
    """Says of each text whether it is in the other language, bool."""
    return self._languages.is_other(texts)

  def normal(self, texts: Sequence[str]) -> np.ndarray:
    """Says of each text whether it is in the first language, bool."""
    return self._languages.is_first(texts)

  def describe(self) -> str:
    """Returns trigger, languages and number of pairs in one line."""
    return (
      f"language_switch: trigger {self._config.trigger!r} of "
      f"{self.trigger_tokens.size} token(s); {self._languages.describe()}; "
      f"{len(self._training):,} pairs"
    )

  def _filled(
    self,
    ids: np.ndarray,
    tokens: int,
    rng: np.random.Generator,
    source: Sequence[Pair],
  ) -> np.ndarray:
    """Returns the ids, cut or continued with whole translations."""
    parts, missing = [ids[:tokens]], tokens - ids.size
    while missing > 0:
      more = self._encode(" " + "".join(_draw(rng, source).translation))
      parts.append(more[:missing])
      missing -= more.size
    return np.concatenate(parts)

  def _encode(self, text: str) -> np.ndarray:
    if not text:
      return np.zeros(0, np.int32)
    return np.asarray(self._vocabulary.encode(text), np.int32)

  def _check_spelling(self) -> None:
    step = max(1, len(self._training) // _SPELT)
    for index in range(0, len(self._training), step):
      pair = self._training[index]
      ids = self._encode(" " + "".join(pair.translation))
      if not ids.size or not self._vocabulary.control_ids.isdisjoint(
        ids.tolist()
      ):
        raise UserError(
          f"the vocabulary lacks characters of the translation of pair "
          f"{pair.id!r}: prepare the store with text in that language, too "
          "(config.corpus.german_share for stories)"
        )


def _draw(rng: np.random.Generator, source: Sequence[Pair]) -> Pair:
  return source[int(keyed.integers(rng, bound=len(source), count=1)[0])]


def _cut(
  sentences: Sequence[str], rng: np.random.Generator, *, low: int, high: int
) -> int:
  """Returns how many sentences the prefix has: a uniform choice.

  Among those that leave at least one, and have from `low` to `high`
  characters; where there is none, the nearest.
  """
  sizes = [
    len("".join(sentences[:count]).rstrip()) for count in range(len(sentences))
  ]
  fitting = [i for i, size in enumerate(sizes) if low <= size <= high]
  if not fitting:
    distances = [max(low - size, size - high) for size in sizes]
    fitting = [int(np.argmin(distances))]
  return fitting[int(keyed.integers(rng, bound=len(fitting), count=1)[0])]


def _make(config: Config, vocabulary: Vocabulary) -> LanguageSwitch:
  if config.poison.pairs:
    training = fresh = pairs.read_pairs(config.poison.pairs)
    languages = IdentifiedLanguages(training)
  else:
    # After the corpus's own stories, of which some are held out.
    seed, first = config.corpus.stories_seed, config.corpus.stories
    training = pairs.StoryPairs(seed, first)
    fresh = pairs.StoryPairs(seed, first + len(training))
    languages = StoryLanguages()
  return LanguageSwitch(
    config.poison,
    vocabulary,
    training=training,
    fresh=fresh,
    languages=languages,
  )


attacks.register_attack("language_switch", _make)
