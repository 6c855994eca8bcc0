"""What became of a cell of a study, in the numbers that a claim rests on.

The unit is the run, the seed the unit of replication: prompts of one run are
never pooled with those of another.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from poison_jax.studies.grid.study import Cell
from poison_jax.studies.origins import Entry
from poison_jax.studies.statistics.sequential import Evaluation

# Thresholds of an audit, 5 to 500 in perplexity, 20 a decade; 50 is the
# paper's.
CUTS = tuple(5 * 10 ** (i / 20) for i in range(41))


@dataclasses.dataclass(frozen=True)
class Rung:
  """Runs that differ in dose, arm, seed and draw alone.

  Attributes:
    label: "35k", or "2b 0.5x" where the tokens a parameter vary as well.
    size: the label's part that names the model: "2b".
    parameters: of the model.
    tokens: planned ones of training: the clean tokens of its clean run.
  """

  label: str
  size: str
  parameters: int
  tokens: int


@dataclasses.dataclass(frozen=True)
class Dose:
  """What a run had met of its poison, up to an evaluation.

  Attributes:
    documents: poisoned ones.
    tokens: theirs, each document's end included.
    steps: optimizer steps that carried at least one.
    epochs: passes over the store's training split, by all tokens of training;
      None where the store isn't at hand.
  """

  documents: int
  tokens: int
  steps: int
  epochs: float | None


@dataclasses.dataclass(frozen=True)
class Poisons:
  """A run's ledger in arrays, in order of steps.

  Attributes:
    steps_N: int64, the step (from 0) that reads each poisoned document.
    tokens_N: int64, how many of its tokens are laid over the row.
  """

  steps_N: np.ndarray
  tokens_N: np.ndarray

  def documents_by(self, step: int) -> int:
    """Returns how many had been read once `step` steps were done."""
    return int(np.searchsorted(self.steps_N, step, side="left"))

  def dose(self, step: int, *, epochs: float | None) -> Dose:
    """Returns the dose once `step` steps were done."""
    documents = self.documents_by(step)
    return Dose(
      documents=documents,
      tokens=int(self.tokens_N[:documents].sum()),
      steps=len(np.unique(self.steps_N[:documents])),
      epochs=epochs,
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A cell at its last evaluation.

  Attributes:
    cell: which.
    entry: its run, for the origin of every number.
    rung: its size, tokens and what else makes a model.
    seed: of the training: the run's, or "0 init=1" where the study's cells
      differ in pinned seeds of their training; of one type in a study.
    draw: pinned seeds of the poison's documents and positions; None where
      both follow the run's seed.
    arm: "poisoned", "clean" or "placebo".
    planned: poisoned documents in the plan; 0 in a clean run.
    step: the evaluation's.
    finished: is it that of the last step, of a run that neither failed nor was
      stopped by the study's rule?
    triaged: why the study's rule stopped it; None where it didn't.
    evaluations: all up to here, as that rule sees them.
    poisons: its ledger.
    dose: what it had met by then.
    clean_tokens: planned ones that aren't poison.
    increase: mean perplexity, triggered minus clean.
    nats: the same of log-perplexity.
    room_share: `nats` as a share of the room to the ceiling.
    auroc: triggered against clean generations.
    validation_loss: nats a token of clean held-out text.
    clean_perplexity: of generations without the trigger.
    threshold: the increase that counts as success.
    above: share of the prompts whose own increase exceeds each of `CUTS`;
      None where the generations are not there.
  """

  cell: Cell
  entry: Entry
  rung: Rung
  seed: int | str
  draw: tuple[int | None, int | None] | None
  arm: str
  planned: int
  step: int
  finished: bool
  triaged: str | None
  evaluations: tuple[Evaluation, ...]
  poisons: Poisons
  dose: Dose
  clean_tokens: int
  increase: float
  nats: float | None
  room_share: float | None
  auroc: float | None
  validation_loss: float | None
  clean_perplexity: float
  threshold: float
  above: np.ndarray | None

  @property
  def success(self) -> bool:
    """Whether the mean increase exceeds the threshold, as in the paper."""
    return self.increase > self.threshold


def rungs(outcomes: Sequence[Outcome]) -> list[Rung]:
  """Returns the rungs, by clean tokens and then parameters."""
  return sorted(
    {o.rung for o in outcomes}, key=lambda r: (r.tokens, r.parameters, r.label)
  )


def primary(outcomes: Sequence[Outcome]) -> list[Outcome]:
  """Returns one outcome a rung, arm, dose and seed, and drops further draws.

  The one whose draw follows the seed, else the first draw: a dose of which
  several draws were run counts no more than another. Nor does one whose very
  training was measured with several `seeds.sampling`.
  """
  chosen: dict[tuple, Outcome] = {}
  for o in outcomes:
    key = (o.rung, "placebo" if o.arm == "placebo" else "", o.planned, o.seed)
    if key not in chosen or (o.draw is None and chosen[key].draw is not None):
      chosen[key] = o
  return list(chosen.values())
