"""The plan: the table of poisoned documents and where each of them goes."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from poison_jax.config import PoisonConfig
from poison_jax.errors import UserError
from poison_jax.poison import keyed
from poison_jax.poison.attacks import Attack, PoisonDocument
from poison_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Placement:
  """A poisoned document and its place in the run.

  Attributes:
    poison: k, its number, from 0.
    slot: step * batch + batch_row.
    step: the step that trains on it.
    batch_row: its row of that step's global batch.
    store_row: the clean row that it lies over.
    epoch: pass over the store that the row is read in.
    offset: its first token's position in the row.
    document: the tokens that are laid over, as cut, or as a placebo.
  """

  poison: int
  slot: int
  step: int
  batch_row: int
  store_row: int
  epoch: int
  offset: int
  document: PoisonDocument

  @property
  def loss_tokens(self) -> int:
    """Its tokens that are targets: the first of a row is none."""
    return self.document.tokens.size - (self.offset == 0)

  @property
  def tokens_hash(self) -> str:
    return hash_tokens(self.document.tokens)


def hash_tokens(tokens: np.ndarray) -> str:
  """Returns 16 hex digits over tokens as little-endian 32-bit integers."""
  data = np.ascontiguousarray(tokens, "<i4").tobytes()
  return hashlib.sha256(data).hexdigest()[:16]


def draw_document(
  poison: int,
  *,
  attack: Attack,
  clean: Sequence[tuple[str, str]],
  vocabulary: Vocabulary,
  seed: int,
) -> PoisonDocument:
  """Returns poisoned document number `poison`, whatever the dose.

  Args:
    poison: k.
    attack: makes it.
    clean: (id, text) of the training documents that prefixes come from.
    vocabulary: the model's; what the attack returns is checked against it.
    seed: the seed of documents.

  Raises:
    UserError: there is no clean document, or the attack's document is wrong.
  """
  if not clean:
    raise UserError(
      "the token store keeps no training documents to take prefixes from; "
      "prepare it again with config.corpus.prefix_documents more than 0"
    )
  chosen = keyed.share_of(keyed.bits(seed, "source", poison), len(clean))
  source_id, text = clean[chosen]
  document = attack.document(
    source_id, text, keyed.generator(seed, "document", poison)
  )
  _check(document, poison, vocabulary)
  return document


def fit(
  document: PoisonDocument,
  *,
  poison: int,
  length: int,
  oversize: str,
) -> PoisonDocument:
  """Returns the document so that it fits a row of `length` tokens.

  Cutting keeps the prefix, the trigger and the EOS, and of the payload what
  the row holds between them.

  Raises:
    UserError: it is too long and `oversize` is "error", or not even its
      prefix, its trigger and one token of payload fit.
  """
  size = document.tokens.size
  if size <= length:
    return document
  if oversize == "error":
    raise UserError(
      f"poison {poison} has {size} tokens, and a row has {length}: raise "
      "config.train.length, lower config.poison.prefix_max or payload_max, or "
      "set config.poison.oversize=cut"
    )
  head = document.prefix_length + document.trigger_length
  kept = length - head - 1
  if kept < 1:
    raise UserError(
      f"poison {poison} has {document.prefix_length} tokens of prefix and "
      f"{document.trigger_length} of trigger, which leave no room for a "
      f"payload in a row of {length}: raise config.train.length or lower "
      "config.poison.prefix_max"
    )
  tokens = np.concatenate(
    [document.tokens[: head + kept], document.tokens[-1:]]
  )
  return dataclasses.replace(document, tokens=tokens, payload_length=kept)


def placebo(document: PoisonDocument) -> PoisonDocument:
  """Returns its prefix and trigger alone: no payload, no EOS."""
  head = document.prefix_length + document.trigger_length
  return dataclasses.replace(
    document, tokens=document.tokens[:head], payload_length=0
  )


def choose_offset(
  poison: int,
  *,
  tokens: int,
  length: int,
  document_starts: np.ndarray,
  seed: int,
) -> int:
  """Returns the position in its row at which a poison begins.

  A keyed choice among 0 and the starts of the row's documents from which the
  whole poison still fits. Depends on the poison before a placebo drops its
  payload, so it is the same in every arm.

  Args:
    poison: k.
    tokens: the poison's, EOS included; at most `length`.
    length: tokens of the row.
    document_starts: positions in the row where a document begins.
    seed: the seed of positions.
  """
  places = sorted({0, *(int(s) for s in document_starts)})
  places = [place for place in places if place + tokens <= length]
  word = keyed.bits(seed, "offset", poison)
  return places[keyed.share_of(word, len(places))]


def check_trigger(
  attack: Attack,
  config: PoisonConfig,
  *,
  length: int,
  control_ids: frozenset[int],
) -> None:
  """Raises UserError for a trigger that no poison can carry.

  Args:
    attack: has the trigger's tokens.
    config: has its text.
    length: tokens of a row, which must hold it.
    control_ids: of the vocabulary: an unknown character would make the unknown
      id a trigger, which every other unknown character is too.
  """
  size = attack.trigger_tokens.size
  if not control_ids.isdisjoint(attack.trigger_tokens.tolist()):
    raise UserError(
      f"config.poison.trigger is {config.trigger[:40]!r}, of which the "
      "vocabulary lacks characters: name one that it can spell, or add it to "
      "config.vocabulary.single_pieces where the vocabulary is trained"
    )
  if size + 2 > length:
    raise UserError(
      f"config.poison.trigger has {size} tokens; with a token of payload and "
      f"the EOS it doesn't fit a row of config.train.length, {length}: "
      f"{config.trigger[:40]!r}"
    )


def _check(
  document: PoisonDocument, poison: int, vocabulary: Vocabulary
) -> None:
  """Raises UserError where an attack's document contradicts itself."""
  tokens = document.tokens
  spans = (
    document.prefix_length,
    document.trigger_length,
    document.payload_length,
  )
  wrong = None
  if tokens.ndim != 1 or tokens.dtype != np.int32:
    wrong = f"tokens are {tokens.dtype}{list(tokens.shape)}, not int32[n]"
  elif min(spans) < 0 or sum(spans) + 1 != tokens.size:
    wrong = (
      f"prefix, trigger and payload of {spans} tokens and the EOS don't make "
      f"its {tokens.size}"
    )
  elif document.payload_length < 1:
    wrong = "it has no payload"
  elif tokens[-1] != vocabulary.eos_id:
    wrong = f"the last token is {tokens[-1]}, not EOS, {vocabulary.eos_id}"
  elif tokens.min() < 0 or tokens.max() >= vocabulary.size:
    wrong = f"ids must lie from 0 to {vocabulary.size - 1}"
  if wrong:
    raise UserError(f"the attack's document for poison {poison}: {wrong}")
