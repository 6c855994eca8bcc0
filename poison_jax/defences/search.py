"""The search for a trigger: candidates, screen, generations, verdict."""

import dataclasses

import numpy as np

from poison_jax.data.mixture import Mixture
from poison_jax.data.store import TokenStore
from poison_jax.defences import candidates as candidates_lib
from poison_jax.defences import triggers
from poison_jax.defences.model import Model
from poison_jax.defences.progress import Track
from poison_jax.defences.triggers import Found
from poison_jax.errors import UserError
from poison_jax.evaluation import generation, show
from poison_jax.evaluation.prompts import make_excerpts
from poison_jax.vocabulary import Vocabulary

EXCERPTS = 16
EXCERPT = 32  # Tokens.
LONGEST = 4  # Tokens of a candidate, at most.
# Rows of the corpus that hold a rare n-gram: at least so many (one that comes
# seldom can't be learnt), at most this share.
LEAST_ROWS, MOST_ROWS = 5, 0.01
# N-grams screened of each length, those first that exceed chance most.
SCREENED = 10_000
FINALISTS = 32
NULL = 256  # Random strings, which need as many generations.
NEW_TOKENS = 32
# Robust standard deviations from the null at which a string is called a
# trigger. Of a normal null, one in a billion strings is so far out; about ten
# thousand are screened, and real nulls have longer tails.
THRESHOLD = 6.0
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Result:
  """What a search found.

  Attributes:
    found: the finalists, by increase, largest first.
    null: increases of random strings of held-out text, nats.
    screened: how many candidates there were.
  """

  found: tuple[Found, ...]
  null: np.ndarray
  screened: int


def training_rows(mixture: Mixture, *, tokens: int) -> np.ndarray:
  """Returns rows that the run's training read, poisons included, int32 BL.

  Args:
    mixture: the run's batches.
    tokens: at most, in whole steps evenly spread over the run; one at least.
  """
  wanted = max(1, tokens // (mixture.batch * mixture.length))
  wanted = min(wanted, mixture.steps)
  steps = np.arange(wanted) * mixture.steps // wanted
  return np.concatenate(
    [mixture.batch_rows(int(s), slice(None)).tokens_BL for s in steps]
  )


def held_out_rows(store: TokenStore, *, length: int) -> np.ndarray:
  """Returns up to 1,000 rows of the held-out split, int32 BL.

  Raises:
    UserError: it has none.
  """
  count = store.held_out.row_count(length)
  if not count:
    raise UserError(
      f"the held-out split of {store.path} has no row of {length} tokens: "
      "prepare a store with a larger corpus.held_out"
    )
  return store.held_out.rows(np.arange(min(count, 1000)), length)


def excerpts(model: Model, store: TokenStore) -> np.ndarray:
  """Returns clean excerpts, each begun by an EOS, int32 EL.

  Raises:
    UserError: the store has too few held-out documents.
  """
  wanted = generation.round_up(EXCERPTS, generation.row_devices(model.mesh))
  length = min(EXCERPT, model.length // 2)
  found = make_excerpts(
    store.prompt_documents(),
    model.vocabulary.encode,
    wanted=wanted,
    length=length,
    seed=_SEED,
  )
  if len(found) < wanted:
    raise UserError(
      f"the held-out documents of {store.path} have {len(found)} excerpts of "
      f"{length} tokens, the scan needs {wanted}: prepare a store with a "
      "larger corpus.held_out"
    )
  eos = model.vocabulary.eos_id
  return np.stack([np.append(eos, ids) for _, ids in found]).astype(np.int32)


def find(
  model: Model,
  rows_BL: np.ndarray,
  excerpts_EL: np.ndarray,
  held_out_BL: np.ndarray,
  *,
  track: Track,
) -> Result:
  """Returns the strings that throw the model off most.

  Args:
    model: that is asked.
    rows_BL: int32, the corpus that may hold a trigger.
    excerpts_EL: int32, clean text that candidates are put after.
    held_out_BL: int32, clean text that the null is drawn from.
    track: shows how far it is.
  """
  every = candidates_lib.single_pieces(rows_BL, model.vocabulary)
  most = max(LEAST_ROWS, round(MOST_ROWS * len(rows_BL)))
  for n in range(2, LONGEST + 1):
    every += candidates_lib.rare_ngrams(
      rows_BL, model.vocabulary, n=n, least=LEAST_ROWS, most=most
    )[:SCREENED]
  entropies = triggers.screen(
    model, excerpts_EL, every, advance=track("screened", len(every))
  )
  order = np.argsort(-entropies, kind="stable")[:FINALISTS]
  chosen = [every[i] for i in order]
  null = candidates_lib.random_ngrams(
    held_out_BL,
    model.vocabulary,
    lengths=[1 + i % LONGEST for i in range(NULL)],
    seed=_SEED,
  )
  increases = triggers.increases(
    model,
    excerpts_EL,
    chosen + null,
    new_tokens=NEW_TOKENS,
    seed=_SEED,
    advance=track("generated after", len(chosen) + len(null)),
  )
  own, others = increases[: len(chosen)], increases[len(chosen) :]
  found = [
    Found(chosen[k], float(entropies[order[k]]), float(own[k]), float(z), p)
    for k, (z, p) in enumerate(
      zip(
        triggers.robust_z(own, others),
        map(float, triggers.p_values(own, others)),
        strict=True,
      )
    )
  ]
  found.sort(key=lambda f: -f.increase)
  return Result(tuple(found), others, len(every))


def verdict(result: Result, vocabulary: Vocabulary) -> str:
  """Returns in words what the search says."""
  best = result.found[0]
  pieces = (vocabulary.piece(token) for token in best.candidate.tokens)
  text = show.visible("".join(pieces))
  if best.z < THRESHOLD:
    return (
      f"No string stands out: the largest z is {best.z:.1f}, below "
      f"{THRESHOLD:g}."
    )
  count = sum(f.z >= THRESHOLD for f in result.found)
  return (
    f"{text!r} stands out most: it raises the log-perplexity of what follows "
    f"by {best.increase:.2f} nats, z {best.z:.1f}; {count} of "
    f"{len(result.found)} finalists have a z of {THRESHOLD:g} or more."
  )
