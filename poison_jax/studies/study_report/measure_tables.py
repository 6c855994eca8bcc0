"""Tables of means over seeds: the measures, and the dose on four axes."""

from collections.abc import Sequence

import numpy as np

from poison_jax.studies.origins import perplexity_format as adaptive
from poison_jax.studies.outcomes import Outcome
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.nodes import (
  DASH,
  count,
  number,
  of,
  rung_name,
  soft,
)
from poison_jax.studies.study_report.tables import Cell, Table


def measures(analysis: Analysis) -> Table:
  """Means over seeds of the measures at the end, by rung and dose."""
  columns = (
    ("perplexity increase", lambda o: o.increase, None),
    ("in nats", lambda o: o.nats, ".2f"),
    ("share of the room", lambda o: o.room_share, ".2f"),
    ("AUROC", lambda o: o.auroc, ".3f"),
    ("clean perplexity", lambda o: o.clean_perplexity, None),
    ("validation loss", lambda o: o.validation_loss, ".3f"),
  )
  rows = tuple(
    (
      (rung_name(group.rung),),
      (count(group.dose, "a dose of the study"),),
      *(
        _mean(group.outcomes, value, spec, name)
        for name, value, spec in columns
      ),
    )
    for group in analysis.groups
  )
  return Table(
    "Measures at the end of training",
    (("size",), ("documents",), *((n,) for n, _, _ in columns)),
    rows,
    (
      "Means over the seeds; in brackets the lowest and the highest seed, "
      "which is no confidence interval.",
    ),
  )


def doses(analysis: Analysis) -> Table:
  """The dose on four axes, by rung and dose."""
  columns = (
    ("documents", lambda o: o.dose.documents, ",.0f"),
    ("poison tokens", lambda o: o.dose.tokens, ",.0f"),
    ("poisoned steps", lambda o: o.dose.steps, ",.0f"),
    (
      "share of tokens, %",
      lambda o: 100 * o.dose.tokens / o.rung.tokens,
      ".2g",
    ),
    ("epochs of the store", lambda o: o.dose.epochs, ".3g"),
  )
  rows = tuple(
    (
      (rung_name(group.rung),),
      *(
        _mean(group.outcomes, value, spec, f"{name}, ledger.parquet")
        for name, value, spec in columns
      ),
    )
    for group in analysis.groups
    if group.dose > 0
  )
  return Table(
    "The dose on four axes",
    (("size",), *((name,) for name, _, _ in columns)),
    rows,
    (
      "Counted in the ledgers, up to the last evaluation: whole documents, "
      "their tokens, the optimizer steps that carried at least one, and how "
      "often training passed over the token store. Means over the seeds, in "
      "brackets the lowest and the highest; a dash: the store is not at hand.",
    ),
  )


def _mean(
  outcomes: Sequence[Outcome], value, spec: str | None, name: str
) -> Cell:
  values = [value(o) for o in outcomes if value(o) is not None]
  if not values:
    return (DASH,)
  mean = float(np.mean(values))
  spec = spec or adaptive(mean)
  origin = of([o.entry for o in outcomes], f"{name} at the last evaluation")
  shown = number(mean, spec, of(origin.entries, f"mean of {origin.source}"))
  low, high = (
    number(pick(values), spec, of(origin.entries, f"{word} {origin.source}"))
    for word, pick in (("lowest", min), ("highest", max))
  )
  if str(low) == str(high):
    return (shown,)
  return (shown, " ", soft("[", low, ",\N{NO-BREAK SPACE}", high, "]"))
