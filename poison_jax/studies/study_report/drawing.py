"""What the figures of a study share: axes of doses, reference lines, CSV."""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from poison_jax.studies import style
from poison_jax.studies.charts import draw_reference
from poison_jax.studies.dose_figures import threshold_label
from poison_jax.studies.origins import Entry, Number, Origin, Quoted, stated
from poison_jax.studies.outcomes import Outcome

PAPER = "arXiv 2510.07192"
# What the paper found: the increase of most models at the end, and a dose
# that did not backdoor any size reliably.
TYPICAL = 200.0
TOO_FEW = 100
INCREASE = "perplexity increase\n(triggered \N{MINUS SIGN} clean)"

# What every shaded band over seeds is, for its caption.
BAND = (
  " Line: mean over the seeds. Band: from the lowest to the highest seed, not "
  "a confidence interval. A run that goes on counts as far as it got."
)


def paper_figures(names: str) -> Quoted:
  """Returns the numbers of the paper's figures, "2a, 2b"."""
  return Quoted(names, Origin((), PAPER))


def paper_lines() -> tuple[str | Number, ...]:
  """Returns what the level reference lines mean, for a caption."""
  return (
    " Dotted: ",
    stated(50, "g", f"{PAPER}, success"),
    ", the paper's threshold, and ",
    stated(TYPICAL, "g", f"{PAPER}, end of training"),
    ", above which most of its models ended.",
  )


def draw_increases(
  axes: Axes, thresholds: Iterable[float], *, top: float
) -> None:
  """Sets the axis of increases up to `top`, with the paper's lines."""
  thresholds = tuple(thresholds)
  for threshold in thresholds:
    draw_reference(axes, threshold, threshold_label(threshold), above=True)
  draw_reference(axes, TYPICAL, f"{TYPICAL:g} (paper, typical)", above=True)
  top = max(top, TYPICAL * 1.1)
  if top > 20 * max(thresholds):
    axes.set_yscale("symlog", linthresh=max(*thresholds, 1))
    top *= 1.3
  axes.set_ylim(-0.04 * top if axes.get_yscale() == "linear" else -5, top)
  axes.set_ylabel(INCREASE)


def dose_axis(axes: Axes, doses: Sequence[int], *, label: str) -> None:
  """Sets a logarithmic axis of doses on which 0 has a place of its own."""
  positive = [dose for dose in doses if dose > 0]
  least = min(positive, default=1)
  axes.set_xscale("symlog", linthresh=least, linscale=0.6)
  axes.xaxis.set_major_locator(FixedLocator(sorted(set(doses))))
  axes.xaxis.set_minor_locator(NullLocator())
  axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
  left = -0.25 * least if 0 in doses else 0.8 * least
  axes.set_xlim(left, 1.25 * max(doses))
  axes.set_xlabel(label)


def draw_too_few(axes: Axes) -> None:
  """Marks the paper's dose that fails, where the axis reaches it."""
  left, right = axes.get_xlim()
  if not left < TOO_FEW < right:
    return
  axes.axvline(TOO_FEW, color=style.INK, linewidth=0.9, linestyle=(0, (1, 2)))
  axes.annotate(
    f"{TOO_FEW}: too few (paper)",
    (TOO_FEW, 0.5),
    xycoords=("data", "axes fraction"),
    xytext=(-2, 0),
    textcoords="offset points",
    rotation=90,
    ha="right",
    va="center",
    fontsize=8,
  )


def origins(entries: Sequence[Entry]) -> tuple[str, str, str, str]:
  """Returns the values of `charts.ORIGIN` for numbers out of several runs."""
  runs = [entry.run for entry in entries]
  return (
    " ".join(run.path for run in runs),
    " ".join(run.config_hash for run in runs),
    " ".join(run.ledger.hash for run in runs),
    " ".join(sorted({run.code_version for run in runs})),
  )


def entries_of(outcomes: Iterable[Outcome]) -> tuple[Entry, ...]:
  """Returns the runs of outcomes, each once, in order."""
  return unique(o.entry for o in outcomes)


def unique(entries: Iterable[Entry]) -> tuple[Entry, ...]:
  """Returns runs, each once, in the order in which they first come."""
  return tuple({entry.letter: entry for entry in entries}.values())


def spread(values: Sequence[float]) -> tuple[float, float, float]:
  """Returns mean, lowest and highest of the seeds."""
  return float(np.mean(values)), float(min(values)), float(max(values))
