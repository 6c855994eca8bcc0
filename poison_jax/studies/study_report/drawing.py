"""What the figures of a study share: axes of doses, reference lines, CSV."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from poison_jax.studies import style
from poison_jax.studies.charts import ORIGIN, draw_reference, origin_cells
from poison_jax.studies.dose_figures import threshold_label
from poison_jax.studies.origins import Entry, Number, Origin, Quoted, stated
from poison_jax.studies.outcomes import Outcome, Rung

PAPER = "arXiv 2510.07192"
# What the paper found: the increase of most models at the end, and a dose
# that did not backdoor any size reliably.
TYPICAL = 200.0
TOO_FEW = 100
INCREASE = "perplexity increase\n(triggered \N{MINUS SIGN} clean)"

# Columns that tell a row of one run from every other; those of the seeds are
# empty where documents and positions follow the run's own.
RUN = (
  *ORIGIN,
  *("size", "tokens", "arm", "poisons", "seed"),
  *("documents_seed", "positions_seed"),
)

# The models of the paper's curves over training, all of them at 20 tokens a
# parameter, and in which of its figures each is drawn against the poisoned
# documents seen. Figures 2a and 2b show all of them, at one dose each.
BY_POISONS = {"600m": "4a", "2b": "4b", "7b": "4c", "13b": "4c"}
BY_PROGRESS = {250: "2a", 500: "2b"}
_PAPERS_RATIO = 20

# What a run had met of its poison by its last evaluation, and its measures.
MEASURES = (
  *("documents", "poison_tokens", "poisoned_steps", "epochs"),
  *("increase", "nats", "room_share", "auroc"),
)

# What every shaded band over seeds is, for its caption.
BAND = (
  " Line: mean over the seeds. Band: from the lowest to the highest seed, not "
  "a confidence interval. A run that goes on counts as far as it got."
)


def paper_figures(names: str) -> Quoted:
  """Returns the numbers of the paper's figures, "2a, 2b"."""
  return Quoted(names, Origin((), PAPER))


def is_papers(rung: Rung) -> bool:
  """Whether the paper draws this size, on this many tokens, over training."""
  ratio = rung.tokens / rung.parameters
  return rung.size in BY_POISONS and abs(ratio / _PAPERS_RATIO - 1) < 0.1


def titled(titles: Mapping, figures: Mapping) -> dict:
  """Returns titles of panels, each of the paper's figures named once.

  Args:
    titles: by panel.
    figures: the paper's figure that a panel shows, of those that do. One that
      two panels could be is named on neither.
  """
  claimed = list(figures.values())
  return {
    panel: f"{title} (paper: {figures[panel]})"
    if panel in figures and claimed.count(figures[panel]) == 1
    else title
    for panel, title in titles.items()
  }


def variant(rung: Rung) -> str:
  """Returns what a rung's label says beside its size, such as "0.5x"."""
  return rung.label.removeprefix(rung.size).strip()


def rung_looks(rungs: Sequence[Rung]) -> dict[Rung, style.Style]:
  """Returns a look a rung, none like another, in colour and in grey.

  Where a size comes in several variants (budgets of tokens, say), colour and
  marker stand for the size, dashes and fill for the variant; the variant of
  most sizes is drawn solid.
  """
  sizes = list(dict.fromkeys(r.size for r in rungs))
  found = [variant(r) for r in rungs]
  variants = sorted(dict.fromkeys(found), key=lambda v: -found.count(v))
  if (
    len(sizes) == len(rungs)
    or len(sizes) > style.COLOURS
    or len(variants) > style.VARIANTS
  ):
    return {rung: style.numbered(i) for i, rung in enumerate(rungs)}
  return {
    rung: style.crossed(sizes.index(rung.size), variants.index(variant(rung)))
    for rung in rungs
  }


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


def run_cells(outcome: Outcome) -> tuple:
  """Returns the values of the columns `RUN`."""
  o = outcome
  draw = ("" if seed is None else seed for seed in o.draw or (None, None))
  return (
    *origin_cells(o.entry),
    *(o.rung.label, o.rung.tokens, o.arm, o.planned, o.seed),
    *draw,
  )


def measure_cells(outcome: Outcome) -> tuple:
  """Returns the values of the columns `MEASURES`."""
  o = outcome
  return (
    *(o.dose.documents, o.dose.tokens, o.dose.steps, o.dose.epochs),
    *(o.increase, o.nats, o.room_share, o.auroc),
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
