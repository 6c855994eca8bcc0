"""Strings that may be a trigger: single pieces, rare n-grams of a corpus."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from poison_jax.defences import ngrams
from poison_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A string of tokens.

  Attributes:
    tokens: its ids.
    rows: rows of the corpus that hold it; 0 for a piece that none holds.
  """

  tokens: tuple[int, ...]
  rows: int


def single_pieces(
  rows_BL: np.ndarray, vocabulary: Vocabulary
) -> list[Candidate]:
  """Returns every piece of the vocabulary that stands for text.

  Args:
    rows_BL: the corpus.
    vocabulary: of its ids.
  """
  counts = np.zeros(vocabulary.size, np.int64)
  for row in rows_BL:
    counts[np.unique(row)] += 1
  return [
    Candidate((token,), int(counts[token]))
    for token in range(vocabulary.size)
    if token not in vocabulary.control_ids
  ]


def rare_ngrams(
  rows_BL: np.ndarray,
  vocabulary: Vocabulary,
  *,
  n: int,
  least: int,
  most: int,
) -> list[Candidate]:
  """Returns the n-grams that at least `least` and at most `most` rows hold.

  A trigger must come again to be learnt, and is rare in clean text, or the
  attack would show. In the order of how far they exceed what their pieces
  make likely, most first: the pieces of a trigger seldom meet elsewhere.

  Args:
    rows_BL: int32, the corpus.
    vocabulary: of its ids; n-grams with control ids are left out.
    n: tokens, at least 2.
    least: rows.
    most: rows.
  """
  length = rows_BL.shape[1]
  control = np.isin(rows_BL, list(vocabulary.control_ids))
  grams_BL = np.stack([ngrams.hashes(row, n) for row in rows_BL])
  usable_BL = ~np.any(
    [control[:, i : length - n + 1 + i] for i in range(n)], axis=0
  )
  places = np.flatnonzero(usable_BL)
  width = length - n + 1
  # Once a row: by n-gram and then by row, the first of each pair.
  order = np.lexsort((places // width, grams_BL.reshape(-1)[places]))
  places = places[order]
  grams, row = grams_BL.reshape(-1)[places], places // width
  new = np.append(True, (np.diff(grams) != 0) | (np.diff(row) != 0))
  places, grams = places[new], grams[new]
  _, first, rows = np.unique(grams, return_index=True, return_counts=True)
  rare = (rows >= least) & (rows <= most)
  chosen, rows = places[first[rare]], rows[rare]
  tokens_CN = np.stack(
    [rows_BL[chosen // width, chosen % width + i] for i in range(n)], axis=1
  )
  frequency = np.log(np.bincount(rows_BL.reshape(-1)) / rows_BL.size + 1e-12)
  excess = np.log(rows) - frequency[tokens_CN].sum(axis=1)
  return [
    Candidate(tuple(map(int, tokens_CN[i])), int(rows[i]))
    for i in np.argsort(-excess, kind="stable")
  ]


def random_ngrams(
  rows_BL: np.ndarray,
  vocabulary: Vocabulary,
  *,
  lengths: Sequence[int],
  seed: int,
) -> list[Candidate]:
  """Returns n-grams from random places of held-out text: the null.

  Args:
    rows_BL: int32, text that no poison touches.
    vocabulary: of its ids.
    lengths: the tokens of each.
    seed: chooses the places.
  """
  rng = np.random.default_rng(seed)
  control = list(vocabulary.control_ids)
  found = []
  for n in lengths:
    for _ in range(100):
      row = rows_BL[rng.integers(len(rows_BL))]
      start = rng.integers(row.size - n + 1)
      gram = row[start : start + n]
      if not np.isin(gram, control).any():
        found.append(Candidate(tuple(map(int, gram)), 0))
        break
  return found
