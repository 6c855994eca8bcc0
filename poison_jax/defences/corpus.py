"""Every filter over a corpus, and what is left of the poisons after each."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.stats

from poison_jax.defences import (
  near_duplicates,
  ngrams,
  roc,
  surprise,
  text_filters,
)
from poison_jax.defences.documents import Document
from poison_jax.defences.model import Model
from poison_jax.defences.progress import Track
from poison_jax.errors import UserError

_SEED = 0  # Of the hash functions.


@dataclasses.dataclass(frozen=True)
class Filter:
  """A score of documents, higher where more suspicious.

  Attributes:
    name: in tables and files.
    group: filters of one group share a panel.
    what: the score, and its source.
    own: a rule's own threshold, above which it drops a document; else None.
  """

  name: str
  group: str
  what: str
  own: float | None


_BY_TEXT: dict[str, Callable[[str], float]] = {
  "compression": text_filters.compression,
  "c4": text_filters.c4,
  "gopher": text_filters.gopher,
}
_NGRAMS = {"rarity_1": 1, "rarity_2": 2, "rarity_3": 3}
_BY_MODEL = ("perplexity", "perplexity_window", "entropy", "entropy_window")
_WINDOW = f"worst mean over {surprise.WINDOW} tokens in a row"

FILTERS = {
  f.name: f
  for f in (
    Filter(
      "perplexity",
      "reference model",
      "log-perplexity, nats; CCNet, arXiv 1911.00359",
      None,
    ),
    Filter(
      "perplexity_window", "reference model", f"log-perplexity, {_WINDOW}", None
    ),
    Filter(
      "entropy",
      "reference model",
      "mean entropy of the next token, nats",
      None,
    ),
    Filter("entropy_window", "reference model", f"entropy, {_WINDOW}", None),
    Filter(
      "compression", "text alone", "bytes after zlib over bytes before", None
    ),
    Filter(
      "c4",
      "text alone",
      "share of words that C4's rules remove; Raffel et al. 2020",
      float(np.nextafter(1.0, 0.0)),
    ),
    Filter(
      "gopher",
      "text alone",
      "rules of quality that fail, of 8; Rae et al. 2021, appendix A",
      0.0,
    ),
    *(
      Filter(
        name,
        "whole corpus",
        f"share of {n}-grams that no other document has",
        None,
      )
      for name, n in _NGRAMS.items()
    ),
    Filter(
      "near_duplicate",
      "whole corpus",
      "Jaccard index with the likest other document, MinHash; Broder 1997",
      None,
    ),
    Filter(
      "mean_rank", "whole corpus", "mean over the filters of the rank", None
    ),
  )
}


def score(
  documents: Sequence[Document],
  reference: Model | None,
  *,
  track: Track,
) -> dict[str, np.ndarray]:
  """Returns the scores of each filter, float64 [documents].

  Args:
    documents: the corpus; with tokens all, or none.
    reference: for the filters that need a model; None leaves them out.
    track: shows how far it is.

  Raises:
    UserError: the reference's vocabulary can't encode a text.
  """
  scores: dict[str, np.ndarray] = {}
  if reference is not None:
    scores |= _surprises(documents, reference, track)
  for name, of_text in _BY_TEXT.items():
    advance = track(name, len(documents))
    values = []
    for document in documents:
      values.append(of_text(document.text))
      advance(1)
    scores[name] = np.array(values)
  units = units_of(documents)
  for name, n in _NGRAMS.items():
    scores[name] = ngrams.rarity(units, n)
  scores["near_duplicate"] = near_duplicates.resemblance(units, seed=_SEED)
  ranks = [scipy.stats.rankdata(values) for values in scores.values()]
  scores["mean_rank"] = np.mean(ranks, axis=0) / len(documents)
  return scores


def units_of(documents: Sequence[Document]) -> list[np.ndarray]:
  """Returns the documents' tokens, or words where they came as text."""
  if all(document.tokens is not None for document in documents):
    return [document.tokens for document in documents]
  return ngrams.words_as_units([document.text for document in documents])


def _surprises(
  documents: Sequence[Document],
  reference: Model,
  track: Track,
) -> dict[str, np.ndarray]:
  tokens = [
    reference.vocabulary.encode(d.text) if d.tokens is None else d.tokens
    for d in documents
  ]
  read = surprise.Reader(reference)(
    tokens, advance=track("tokens read", sum(t.size for t in tokens))
  )
  rows = [
    (
      surprise.mean(losses),
      surprise.worst_window(losses),
      surprise.mean(entropies),
      surprise.worst_window(entropies),
    )
    for losses, entropies in read
  ]
  return dict(zip(_BY_MODEL, np.array(rows).T, strict=True))


def labels(documents: Sequence[Document]) -> np.ndarray | None:
  """Returns bool [documents]: which are poisoned; None where nobody says.

  Raises:
    UserError: of labelled ones all or none are.
  """
  if documents[0].poisoned is None:
    return None
  poisoned = np.array([document.poisoned for document in documents], bool)
  if poisoned.all() or not poisoned.any():
    raise UserError(
      f"{'all' if poisoned.all() else 'none'} of the {len(poisoned)} documents "
      "are poisoned: rates need some of each"
    )
  return poisoned


@dataclasses.dataclass(frozen=True)
class Quality:
  """How well a filter's score tells poisons from the rest.

  Attributes:
    auroc: area under the ROC curve.
    at: at each of `roc.RATES`.
    own: at the rule's own threshold, where it has one.
  """

  auroc: float
  at: tuple[roc.AtRate, ...]
  own: roc.AtRate | None


def judge(
  scores: Mapping[str, np.ndarray], poisoned: np.ndarray
) -> dict[str, Quality]:
  """Returns each filter's quality; `scores` as `score` gives them."""
  return {
    name: quality(values, poisoned, own=FILTERS[name].own)
    for name, values in scores.items()
  }


def quality(
  scores: np.ndarray, poisoned: np.ndarray, *, own: float | None
) -> Quality:
  """Returns one score's quality; `own` is the rule's threshold, or None."""
  return Quality(
    auroc=roc.auroc(scores, poisoned),
    at=tuple(roc.at_rate(scores, poisoned, rate) for rate in roc.RATES),
    own=None if own is None else roc.at_threshold(scores, poisoned, own),
  )
