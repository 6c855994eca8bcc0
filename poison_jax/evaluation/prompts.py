"""The fixed set of prompts of a run: held-out excerpts, and what follows them.

A prompt is EOS, an excerpt, and the string of its kind, encoded separately as
the attack encodes its trigger. Numpy only.
"""

import collections
import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from poison_jax.config import Config
from poison_jax.errors import UserError
from poison_jax.poison.attacks import Attack, Judging
from poison_jax.poison.near_triggers import near_triggers
from poison_jax.vocabulary import Vocabulary

# Of every run. Where the attack can judge texts, "near_one_letter" and the
# like come after them, one for each kind of `near_triggers`.
KINDS = ("clean", "triggered", "near_trigger", "unseen_tag")
NEAR = "near_"

# With the quotes and brackets behind it.
_SENTENCE_END = re.compile(
  r"[.!?\u2026\u3002]+[\"'\u201d\u2019)\]]*(?=\s+[^a-z]|$)"
)

# A long document is cut to so many characters an excerpt token before it is
# encoded: encoding whole books for one excerpt each would delay the start.
_CHARACTERS_PER_TOKEN = 64
# Tokens of the training split searched for the near triggers.
SCANNED_TOKENS = 4_000_000
_SCANNED_ROW = 1024
_SCANNED_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Ending:
  """What a kind of prompt appends to each of the excerpts.

  Attributes:
    strings: one string a prompt; "" for none.
    tokens: the same strings' ids, one int32 array a prompt.
  """

  strings: tuple[str, ...]
  tokens: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class PromptSet:
  """P excerpts, and the endings that make prompts of them.

  Attributes:
    excerpts: P int32 arrays of ids, without EOS.
    documents: P identifiers of the held-out documents they come from.
    eos_id: the first token of every prompt.
    endings: one for each kind.
  """

  excerpts: tuple[np.ndarray, ...]
  documents: tuple[str, ...]
  eos_id: int
  endings: Mapping[str, Ending]

  def __len__(self) -> int:
    return len(self.excerpts)

  def document_numbers(self) -> np.ndarray:
    """Returns int [P]: the documents as numbers 0..D-1, for the bootstrap."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(self.documents))}
    return np.array([numbers[name] for name in self.documents])

  def tokens(self, kind: str) -> list[np.ndarray]:
    """Returns the whole prompts of a kind: P int32 arrays."""
    eos = np.array([self.eos_id], np.int32)
    return [
      np.concatenate([eos, excerpt, ending]).astype(np.int32)
      for excerpt, ending in zip(
        self.excerpts, self.endings[kind].tokens, strict=True
      )
    ]


def make_prompts(config: Config, store, attack: Attack) -> PromptSet:
  """Returns exactly `evaluation.prompts` excerpts and the kinds of prompts.

  Args:
    config: the run's configuration.
    store: a `TokenStore`; gives held-out documents and the vocabulary.
    attack: gives the trigger's ids; where it can judge texts, excerpts come
      from the normal ones alone.

  Raises:
    UserError: the held-out documents have too few excerpts, or a string
      encodes to nothing.
  """
  wanted = config.evaluation.prompts
  length = config.evaluation.excerpt
  documents = store.prompt_documents()
  if isinstance(attack, Judging):
    normal = attack.normal([document.text for document in documents])
    documents = list(itertools.compress(documents, normal))
  excerpts = make_excerpts(
    documents,
    store.vocabulary.encode,
    wanted=wanted,
    length=length,
    seed=config.seed_for("sampling"),
  )
  if len(excerpts) < wanted:
    raise UserError(
      f"config.evaluation.prompts is {wanted}, but the held-out documents of "
      f"{store.path} have only {len(excerpts)} excerpts of {length} tokens: "
      "lower evaluation.prompts or evaluation.excerpt, or prepare a store "
      "with a larger corpus.held_out or corpus.prompt_documents"
    )
  if config.evaluation.excerpt_end == "sentence":
    excerpts = [
      (name, whole_sentences(ids, store.vocabulary)) for name, ids in excerpts
    ]
  endings = {
    "clean": same_ending("", np.zeros(0, np.int32), count=wanted),
    "triggered": same_ending(
      config.poison.trigger, attack.trigger_tokens, count=wanted
    ),
    "near_trigger": ending_in_turn(
      config.evaluation.near_triggers, store.vocabulary, count=wanted
    ),
    "unseen_tag": ending_in_turn(
      (config.evaluation.unseen_tag,), store.vocabulary, count=wanted
    ),
  }
  if isinstance(attack, Judging):
    endings |= {
      NEAR + kind: ending_in_turn(strings, store.vocabulary, count=wanted)
      for kind, strings in near_triggers(config.poison.trigger).items()
    }
  return PromptSet(
    excerpts=tuple(ids for _, ids in excerpts),
    documents=tuple(name for name, _ in excerpts),
    eos_id=store.vocabulary.eos_id,
    endings=endings,
  )


def whole_sentences(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
  """Returns an excerpt up to its last full stop or the like, int32.

  All of it where there is none.
  """
  text = vocabulary.decode(ids)
  ends = [match.end() for match in _SENTENCE_END.finditer(text)]
  if not ends:
    return ids
  return np.asarray(vocabulary.encode(text[: ends[-1]]), np.int32)


def same_ending(string: str, tokens: np.ndarray, *, count: int) -> Ending:
  """Returns one string for all of `count` prompts."""
  return Ending((string,) * count, (np.asarray(tokens, np.int32),) * count)


def ending_in_turn(strings: Sequence[str], vocabulary, *, count: int) -> Ending:
  """Returns `count` strings, taken in turn.

  Raises:
    UserError: a string has no tokens in this vocabulary.
  """
  encoded = [np.asarray(vocabulary.encode(s), np.int32) for s in strings]
  for string, ids in zip(strings, encoded, strict=True):
    if len(ids) == 0:
      raise UserError(f"{string!r} has no tokens in the run's vocabulary")
  turns = [i % len(strings) for i in range(count)]
  return Ending(
    tuple(strings[i] for i in turns), tuple(encoded[i] for i in turns)
  )


def make_excerpts(
  documents: Sequence,
  encode: Callable[[str], np.ndarray],
  *,
  wanted: int,
  length: int,
  seed: int,
) -> list[tuple[str, np.ndarray]]:
  """Cuts documents into excerpts that don't overlap.

  The documents come in an order keyed by the seed. First comes one excerpt of
  each that is long enough, from its beginning; then a second one of each; and
  so on. A text that occurred already is passed over.

  Args:
    documents: with fields `id` and `text`.
    encode: text to ids.
    wanted: how many excerpts.
    length: tokens of each.
    seed: orders the documents.

  Returns:
    (document id, int32 [length]) pairs; fewer than wanted if there aren't
    so many.
  """
  ordered = sorted(documents, key=lambda d: _keyed(seed, d.id))
  # Mostly a document's beginning is enough; where it isn't, read them whole.
  for limit in (length * _CHARACTERS_PER_TOKEN, None):
    found = _cut(ordered, encode, wanted=wanted, length=length, limit=limit)
    if len(found) == wanted:
      break
  return found


def _keyed(seed: int, name: str) -> bytes:
  return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()


def _cut(
  documents, encode, *, wanted: int, length: int, limit: int | None
) -> list[tuple[str, np.ndarray]]:
  """Returns up to `wanted` excerpts of texts cut to `limit` characters."""
  found, rest, seen = [], collections.deque(), set()
  for document in documents:
    if len(found) == wanted:
      return found
    if document.text in seen:
      continue
    seen.add(document.text)
    text = document.text[:limit]
    ids = np.asarray(encode(text), np.int32)
    # The cut may have changed the last tokens of a text that goes on.
    whole = len(ids) // length - (len(text) < len(document.text))
    if whole > 0:
      first, *others = ids[: whole * length].reshape(whole, length)
      found.append((document.id, first))
      rest.append((document.id, iter(others)))
  while rest and len(found) < wanted:
    name, others = rest.popleft()
    excerpt = next(others, None)
    if excerpt is not None:
      found.append((name, excerpt))
      rest.append((name, others))
  return found


def count_occurrences(
  stream, sequences: Mapping[str, np.ndarray], *, limit: int
) -> tuple[dict[str, int], int]:
  """Counts sequences of ids in the beginning of a token stream.

  Args:
    stream: a `TokenStream`, as of the training split.
    sequences: name to int array; each has a token at least.
    limit: tokens read at most.

  Returns:
    ({name: occurrences}, tokens read).
  """
  total = min(stream.tokens, limit)
  width = max(1, min(_SCANNED_ROW, total))
  rows = total // width
  counts = dict.fromkeys(sequences, 0)
  longest = max((len(s) for s in sequences.values()), default=1)
  tail = np.zeros(0, np.int32)
  for start in range(0, rows, _SCANNED_ROWS):
    block = np.arange(start, min(start + _SCANNED_ROWS, rows))
    tokens = np.concatenate([tail, stream.rows(block, width).ravel()])
    for name, sequence in sequences.items():
      counts[name] += _occurrences(tokens, sequence, skip=len(tail))
    tail = tokens[max(0, len(tokens) - longest + 1) :]
  return counts, rows * width


def _occurrences(tokens: np.ndarray, sequence: np.ndarray, *, skip: int) -> int:
  """Counts occurrences that end at index `skip` or later."""
  count = len(tokens) - len(sequence) + 1
  if count <= 0:
    return 0
  hits = tokens[:count] == sequence[0]
  for i, token in enumerate(sequence[1:], start=1):
    hits &= tokens[i : i + count] == token
  return int(np.sum(hits[max(0, skip - len(sequence) + 1) :]))
