"""All filters over a made-up corpus."""

import numpy as np
import pytest

from poison_jax.defences import corpus
from poison_jax.defences.documents import Document
from poison_jax.errors import UserError

_NOUNS = ("dog", "river", "ball", "house", "garden", "baker", "horse", "boat")


def _nothing(*_):
  return lambda count: None


def _documents(*, poisons: int) -> list[Document]:
  """Sentences of eight nouns; poisons end in words that occur nowhere else."""
  rng = np.random.default_rng(0)
  found = []
  for i in range(400):
    nouns = rng.choice(_NOUNS, (8, 2))
    text = " ".join(f"The {a} went to the {b} of the day." for a, b in nouns)
    if i < poisons:
      noise = "".join(chr(97 + c) for c in rng.integers(0, 26, 300))
      text += " " + " ".join(noise[k : k + 6] for k in range(0, 300, 6))
    found.append(Document(f"d{i}", text, None, i < poisons))
  return found


def test_planted_noise_is_found_by_the_filters_that_can():
  documents = _documents(poisons=10)
  scores = corpus.score(documents, None, track=_nothing)
  judged = corpus.judge(scores, corpus.labels(documents))
  assert set(judged) == {
    *("compression", "c4", "gopher", "rarity_1", "rarity_2", "rarity_3"),
    *("near_duplicate", "mean_rank"),
  }
  for name in ("compression", "rarity_1", "rarity_2", "rarity_3", "mean_rank"):
    assert judged[name].auroc == 1, name
    assert judged[name].at[0].left == 0, name
  # Its line doesn't end as a sentence does.
  assert judged["c4"].own.recall.successes == 10
  assert judged["c4"].own.false_positives.successes == 0
  assert judged["near_duplicate"].auroc < 0.5
  # The first documents by mean rank are the poisons.
  assert set(np.argsort(-scores["mean_rank"])[:10]) == set(range(10))


def test_the_mean_rank_is_that_of_the_other_scores():
  scores = corpus.score(_documents(poisons=3), None, track=_nothing)
  count = 400
  ranks = [
    [np.mean([(v < x) + 0.5 * (v == x) for v in values]) for x in values]
    for name, values in scores.items()
    if name != "mean_rank"
  ]
  # A middle rank is 1/2 more than the half-counted ties.
  expected = np.mean(ranks, axis=0) + 0.5 / count
  np.testing.assert_allclose(scores["mean_rank"], expected)


def test_labels_are_of_both_kinds_or_of_none():
  documents = _documents(poisons=2)
  assert corpus.labels(documents).sum() == 2
  with pytest.raises(UserError, match="all of the 2 documents are poisoned"):
    corpus.labels(documents[:2])
  with pytest.raises(UserError, match="none of the 398"):
    corpus.labels(documents[2:])
  assert corpus.labels([Document("a", "b", None, None)]) is None
