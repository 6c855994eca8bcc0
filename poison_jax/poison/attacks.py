"""Attacks: what a poisoned document is, and which kinds are known.

An attack makes poisoned documents out of clean texts. `dos` and
`language_switch` come with the package; a user's module, named by
`corpus.module`, registers more:

  from poison_jax.poison import attacks

  def make(config, vocabulary):
    return MyAttack(...)

  attacks.register_attack("mine", make)

and the run chooses it with `poison.attack = "mine"`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from poison_jax import user_module
from poison_jax.config import Config, nearest
from poison_jax.errors import UserError
from poison_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class PoisonDocument:
  """One poisoned document: prefix, trigger, payload, and the EOS that ends it.

  Attributes:
    tokens: int32 [tokens]; the EOS is the last one.
    prefix_length: tokens of the clean text at the beginning.
    trigger_length: tokens of the trigger after it.
    payload_length: tokens of the payload after that, without the EOS.
    drawn_payload_length: tokens that the payload had before it was cut.
    source: id of the clean document that the prefix comes from.
  """

  tokens: np.ndarray
  prefix_length: int
  trigger_length: int
  payload_length: int
  drawn_payload_length: int
  source: str


class Attack(Protocol):
  """Makes poisoned documents; everything random comes from `rng`.

  `rng` is a Philox generator of the poison's own. numpy keeps its raw words
  for good, but not what `rng.integers` and the like make of them; an attack
  whose tables shall outlive a numpy release draws with `keyed.integers`.

  Attributes:
    trigger_tokens: int32 [tokens]; evaluation appends them to its prompts.
  """

  trigger_tokens: np.ndarray

  def document(
    self, source_id: str, clean_text: str, rng: np.random.Generator
  ) -> PoisonDocument:
    """Returns a poisoned document made of one clean text."""

  def payload(self, rng: np.random.Generator, tokens: int) -> np.ndarray:
    """Returns a fresh payload of exactly `tokens` tokens, int32 [tokens]."""

  def ceiling(self) -> float | None:
    """Returns the loss, nats a token, of a perfect imitator of payloads.

    None where there is no closed form; measures that need it are left out.
    """

  def describe(self) -> str:
    """Returns one line for the summary that is printed before training."""


@runtime_checkable
class Judging(Protocol):
  """What an attack has, too, that can tell from a text whether it worked.

  Then evaluation asks it of every generation, adds near-triggers of several
  kinds, and takes its excerpts from documents that are normal. A text may show
  neither: one of no words, say.
  """

  def behaviour(self, texts: Sequence[str]) -> np.ndarray:
    """Says of each text whether it shows the payload's behaviour, bool."""

  def normal(self, texts: Sequence[str]) -> np.ndarray:
    """Says of each text whether it is as without a backdoor, bool."""


Factory = Callable[[Config, Vocabulary], Attack]

_FACTORIES: dict[str, Factory] = {}


def register_attack(name: str, factory: Factory) -> None:
  """Makes `poison.attack = name` choose what `factory` returns.

  The factory gets the whole configuration (an attack may need
  `evaluation.near_triggers`, say) and the model's vocabulary.

  Raises:
    UserError: another factory has the name.
  """
  if _FACTORIES.setdefault(name, factory) is not factory:
    raise UserError(
      f"attack {name!r} is registered twice; one of the two needs another name"
    )


def make_attack(config: Config, vocabulary: Vocabulary) -> Attack:
  """Returns the attack that `poison.attack` names.

  Imports `corpus.module` where the name is not known without it: a module
  that registers tasks only imports TensorFlow, which no run needs.

  Raises:
    UserError: no such module or no such attack.
  """
  module, name = config.corpus.module, config.poison.attack
  if module and name not in _FACTORIES:
    user_module.load(module)
  if name not in _FACTORIES:
    known = ", ".join(sorted(_FACTORIES))
    raise UserError(
      f"config.poison.attack is {name!r}; the known ones are {known}"
      f"{nearest(name, _FACTORIES)}; others are registered by the module that "
      "config.corpus.module names"
    )
  return _FACTORIES[name](config, vocabulary)
