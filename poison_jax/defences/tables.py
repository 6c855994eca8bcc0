"""What a scan prints: tables in 80 columns."""

from collections.abc import Mapping, Sequence

import numpy as np
import rich.table
import rich.text

from poison_jax.defences import roc
from poison_jax.defences.corpus import Quality
from poison_jax.defences.roc import AtRate
from poison_jax.defences.triggers import Found
from poison_jax.evaluation import show
from poison_jax.studies.statistics.proportions import Share
from poison_jax.vocabulary import Vocabulary

SHOWN = 10  # Documents or candidates.


def quality_table(found: Mapping[str, Quality]) -> rich.table.Table:
  """Returns a line for each score: AUROC, and recall at each rate."""
  table = _table("score", "AUROC")
  for rate in roc.RATES:
    table.add_column(f"found at\n{rate:.1%} FP", justify="right", no_wrap=True)
    table.add_column("left", justify="right", no_wrap=True)
  for name, quality in found.items():
    cells = [name, f"{quality.auroc:.3f}"]
    for at in quality.at:
      cells += [_percent(at.recall), f"{at.left:,}"]
    table.add_row(*cells)
  return table


def rule_lines(found: Mapping[str, Quality]) -> list[str]:
  """Returns a line for each rule with a threshold of its own."""
  return [_rule_line(name, q.own) for name, q in found.items() if q.own]


def _rule_line(name: str, at: AtRate) -> str:
  wrong = at.false_positives
  return (
    f"{name} as it stands drops {_percent(at.recall)} of the poisons "
    f"({at.left} left) and {_percent(wrong)} of the clean "
    f"({wrong.successes:,} of {wrong.runs:,})"
  )


def _percent(share: Share) -> str:
  low, high = share.interval.low, share.interval.high
  return f"{share.value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def ranked_table(
  ids: Sequence[str],
  scores: Mapping[str, np.ndarray],
  order: np.ndarray,
) -> rich.table.Table:
  """Returns the most suspicious documents, with the filters that say so."""
  table = _table("document", "mean rank")
  table.add_column("highest in", overflow="fold")
  places = {
    name: (values[:, None] < values[None, order[:SHOWN]]).mean(axis=0)
    for name, values in scores.items()
    if name != "mean_rank"
  }
  for k, i in enumerate(order[:SHOWN]):
    high = sorted(places, key=lambda name: -places[name][k])[:3]
    table.add_row(
      rich.text.Text(show.visible(ids[i])),
      f"{scores['mean_rank'][i]:.3f}",
      ", ".join(f"{n} {scores[n][i]:.3g}" for n in high),
    )
  return table


def trigger_table(
  found: Sequence[Found], vocabulary: Vocabulary
) -> rich.table.Table:
  """Returns the candidates that throw the model off most."""
  table = _table("string", "pieces", "rows", "entropy", "increase", "z", "p")
  for f in found[:SHOWN]:
    table.add_row(
      rich.text.Text(as_text(f, vocabulary)),
      f"{len(f.candidate.tokens)}",
      f"{f.candidate.rows:,}",
      f"{f.entropy:.2f}",
      f"{f.increase:+.2f}",
      f"{f.z:.1f}",
      f"{f.p:.3f}",
    )
  return table


def as_text(found: Found, vocabulary: Vocabulary) -> str:
  """Returns a candidate as its pieces, printable."""
  pieces = (vocabulary.piece(token) for token in found.candidate.tokens)
  return show.visible("".join(pieces))


def _table(first: str, *others: str) -> rich.table.Table:
  table = rich.table.Table(box=None, padding=(0, 1, 0, 0))
  table.add_column(first, overflow="fold")
  for name in others:
    table.add_column(name, justify="right", no_wrap=True)
  return table
