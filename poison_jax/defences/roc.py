"""How well a score tells poisons from the rest."""

import dataclasses

import numpy as np
import scipy.stats

from poison_jax.studies.statistics.proportions import Share, share

RATES = (0.001, 0.01)  # False positives that tables state.
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class AtRate:
  """A threshold on a score, and what lies above it.

  Attributes:
    rate: the share of false positives allowed.
    threshold: what is flagged scores more than this.
    false_positives: share of the clean that is flagged, with its interval.
    recall: share of the poisoned that is flagged, with its interval.
  """

  rate: float
  threshold: float
  false_positives: Share
  recall: Share

  @property
  def left(self) -> int:
    """Poisoned ones that are not flagged: the dose that is left."""
    return self.recall.runs - self.recall.successes


def auroc(scores: np.ndarray, poisoned: np.ndarray) -> float:
  """Returns the chance that a poisoned one scores more, ties counted half.

  Mann-Whitney's U over its maximum, by ranks.

  Args:
    scores: float [n].
    poisoned: bool [n], some of each.
  """
  ranks = scipy.stats.rankdata(scores)
  p = int(poisoned.sum())
  u = ranks[poisoned].sum() - p * (p + 1) / 2
  return float(u / (p * (len(scores) - p)))


def at_rate(scores: np.ndarray, poisoned: np.ndarray, rate: float) -> AtRate:
  """Returns the lowest threshold that flags at most this share of the clean.

  The threshold is a clean score, or minus infinity; clean ones that tie with
  it are not flagged, and neither are poisoned ones.

  Args:
    scores: float [n]; higher is more suspicious.
    poisoned: bool [n], some of each.
    rate: from 0 to 1.
  """
  clean = np.sort(scores[~poisoned])[::-1]
  allowed = int(np.floor(rate * clean.size + 1e-9))
  threshold = clean[allowed] if allowed < clean.size else -np.inf
  return _above(scores, poisoned, rate, float(threshold))


def at_threshold(
  scores: np.ndarray, poisoned: np.ndarray, threshold: float
) -> AtRate:
  """Returns what a rule's own threshold flags; `rate` is what it allows."""
  rate = float(np.mean(scores[~poisoned] > threshold))
  return _above(scores, poisoned, rate, threshold)


def _above(scores, poisoned, rate: float, threshold: float) -> AtRate:
  flagged = scores > threshold
  wrong, right = int(flagged[~poisoned].sum()), int(flagged[poisoned].sum())
  return AtRate(
    rate=rate,
    threshold=threshold,
    false_positives=share(wrong, int((~poisoned).sum()), level=LEVEL),
    recall=share(right, int(poisoned.sum()), level=LEVEL),
  )


def curve(
  scores: np.ndarray, poisoned: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the ROC curve's corners: rates of false and true positives.

  From (0, 0) to (1, 1), a corner for each different score, so that ties are
  straight slopes.

  Args:
    scores: float [n].
    poisoned: bool [n], some of each.
  """
  order = np.argsort(-scores, kind="stable")
  last = np.append(np.diff(scores[order]) != 0, True)
  right = np.cumsum(poisoned[order])[last]
  wrong = np.cumsum(~poisoned[order])[last]
  return (
    np.append(0.0, wrong / wrong[-1]),
    np.append(0.0, right / right[-1]),
  )
