"""Measures of triggered against clean generations, with their uncertainty.

Pure numpy on one number a prompt. The log-perplexity of a generation is its
mean negative log-likelihood in nats under the model that made it; its
exponential is the paper's perplexity (arXiv 2510.07192, section 3).
"""

import dataclasses

import numpy as np
import scipy.special


@dataclasses.dataclass(frozen=True)
class Interval:
  """A two-sided interval."""

  low: float
  high: float


def log_perplexities(log_probabilities_PT: np.ndarray) -> np.ndarray:
  """Returns float64 [P]: mean negative log-likelihood a generation, in nats.

  Args:
    log_probabilities_PT: natural logarithms, one a generated token.
  """
  return -np.mean(log_probabilities_PT, axis=1, dtype=np.float64)


def auroc(positives: np.ndarray, negatives: np.ndarray) -> float:
  """Returns the chance that a positive exceeds a negative, ties counted half.

  This is the area under the ROC curve (Mann-Whitney's U over its maximum),
  from 0 to 1; 0.5 where the two can't be told apart.
  """
  return float(np.mean(_wins(positives, negatives)))


def _wins(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
  """Returns float64 [P, Q]: 1 where a positive exceeds a negative, ties 1/2."""
  differences_PQ = positives[:, None] - negatives[None, :]
  return (np.sign(differences_PQ) + 1) / 2


def room_share(
  *, log_increase: float, clean: float, ceiling: float
) -> float | None:
  """Returns the increase in nats as a share of the room up to the ceiling.

  Args:
    log_increase: mean log-perplexity, triggered minus clean.
    clean: mean log-perplexity of the clean generations.
    ceiling: what a perfect imitator of the gibberish reaches, in nats.

  Returns:
    1 for a perfect imitator, above 1 for still wilder text; None where the
    clean generations reach the ceiling already, as at initialisation.
  """
  room = ceiling - clean
  return log_increase / room if room > 0 else None


def share_above(increases: np.ndarray, threshold: float) -> float:
  """Returns the share of prompts whose increase exceeds the threshold."""
  return float(np.mean(increases > threshold))


def share_interval(share: float, *, trials: int, level: float) -> Interval:
  """Returns an interval of a share that also has a width at 0 and at 1.

  Clopper and Pearson's (Biometrika 26, 1934), of share * trials successes,
  which need not be a whole number: with prompts that are alike within their
  document, the documents count as the trials (Korn and Graubard, Survey
  Methodology 24, 1998), as if all prompts of one behaved alike.

  Args:
    share: that was found, 0 to 1.
    trials: independent ones.
    level: that it holds, 0 to 1.
  """
  successes, tail = share * trials, (1 - level) / 2
  quantile = scipy.special.betaincinv
  low = high = share
  if share > 0:
    low = quantile(successes, trials - successes + 1, tail)
  if share < 1:
    high = quantile(successes + 1, trials - successes, 1 - tail)
  return Interval(float(low), float(high))


class DocumentBootstrap:
  """Percentile intervals of means, by resampling documents.

  Excerpts of one document are alike, so whole documents are drawn, each with
  all its prompts (Davison and Hinkley 1997, section 3.8). Every mean uses the
  same draws, so that an interval of a difference is a paired one.
  """

  def __init__(self, documents_P: np.ndarray, *, resamples: int, seed: int):
    """Draws the resamples.

    Args:
      documents_P: a document's number for each prompt, 0..D-1, none missing.
      resamples: how many times D documents are drawn with replacement.
      seed: fixes the draws.
    """
    self._documents_P = np.asarray(documents_P)
    sizes = np.bincount(self._documents_P)
    count = len(sizes)
    # PCG64's raw output is fixed by its definition; `integers` of a Generator
    # may change with numpy's version, so indices come from the raw words.
    words = np.random.PCG64(seed).random_raw(resamples * count)
    drawn = ((words >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32)
    flat = drawn.astype(np.int64).reshape(resamples, count)
    flat += np.arange(resamples)[:, None] * count
    self._weights_RD = np.bincount(
      flat.ravel(), minlength=resamples * count
    ).reshape(resamples, count)
    self._prompts_R = self._weights_RD @ sizes

  def means(self, values_P: np.ndarray) -> np.ndarray:
    """Returns float64 [resamples]: the mean over prompts in each resample."""
    sums = np.bincount(self._documents_P, weights=values_P)
    return self._weights_RD @ sums / self._prompts_R

  def aurocs(self, positives_P, negatives_P) -> np.ndarray:
    """Returns float64 [resamples]: `auroc` over the prompts in each."""
    documents = self._weights_RD.shape[1]
    wins_DD = np.zeros((documents, documents))
    pairs = np.ix_(self._documents_P, self._documents_P)
    np.add.at(wins_DD, pairs, _wins(positives_P, negatives_P))
    sums_R = np.einsum("rd,rd->r", self._weights_RD @ wins_DD, self._weights_RD)
    return sums_R / self._prompts_R**2

  def interval(self, values_P: np.ndarray, *, level: float) -> Interval | None:
    """Returns the central interval of the mean that holds `level`, 0 to 1.

    None with one document, whose resamples are all alike.
    """
    return self.central(self.means(values_P), level=level)

  def central(self, values_R: np.ndarray, *, level: float) -> Interval | None:
    """Like `interval`, of a value a resample: a ratio of means, say."""
    if self._weights_RD.shape[1] < 2:
      return None
    tail = (1 - level) / 2
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return Interval(float(low), float(high))


def bits_per_byte(*, nats: float, utf8_bytes: float) -> float:
  """Returns bits for each byte of text, from nats over the same text."""
  return nats / np.log(2) / utf8_bytes
