"""The smallest change after which a run fits into its chips' memory."""

import dataclasses
from collections.abc import Callable, Iterator

from poison_jax.config import Config
from poison_jax.errors import UserError
from poison_jax.model.counts import count_parameters
from poison_jax.training.ahead import Program
from poison_jax.training.topology import Topology

# Bytes a parameter that no remat policy and no micro-batch removes: weights,
# two moments and the gradient, all float32.
LEAST_BYTES_PER_PARAMETER = 16
# From the one that keeps most to the one that keeps least.
_REMAT = ("none", "dots", "full")
_MOST_MICRO_BATCHES = 16

Compile = Callable[[Config, Topology], Program]


@dataclasses.dataclass(frozen=True)
class Change:
  """Something to try.

  Attributes:
    words: as flags, to be read and pasted.
    config: with the change.
    topology: with the change.
  """

  words: str
  config: Config
  topology: Topology


def least_memory(config: Config, topology: Topology) -> float:
  """Returns bytes a chip below which no change but more chips gets a run."""
  parameters = count_parameters(config.model, config.vocabulary.size).total
  return LEAST_BYTES_PER_PARAMETER * parameters / topology.chips


def fits(program: Program, topology: Topology) -> bool:
  """Says whether a compiled step leaves head room on every chip."""
  return program.fits and program.needed <= topology.chip.memory


def changes(config: Config, topology: Topology) -> Iterator[Change]:
  """Yields changes, the smallest first: remat, micro-batches, more chips.

  Only those that have a chance: where weights, moments and gradients alone
  are more than the memory, more chips come at once.
  """
  policies = _REMAT[_REMAT.index(config.model.remat) + 1 :]
  strongest = config
  if least_memory(config, topology) < topology.chip.memory:
    words = ""
    for policy in policies:
      model = dataclasses.replace(config.model, remat=policy)
      strongest = dataclasses.replace(config, model=model)
      words = f"--config.model.remat={policy}"
      yield Change(words, strongest, topology)
    pieces = config.train.micro_batches * 2
    while pieces <= _MOST_MICRO_BATCHES:
      if config.train.batch % (pieces * topology.chips) == 0:
        train = dataclasses.replace(config.train, micro_batches=pieces)
        changed = dataclasses.replace(strongest, train=train)
        flags = f"{words} --config.train.micro_batches={pieces}".strip()
        yield Change(flags, changed, topology)
      pieces *= 2
  for larger in topology.larger():
    if least_memory(config, larger) < larger.chip.memory:
      yield Change(f"--topology={larger.name}", config, larger)


def smallest_change(
  config: Config,
  topology: Topology,
  compile_: Compile,
  *,
  say: Callable[[str], None],
) -> Change | None:
  """Returns the first change after which the step fits; None for none.

  Args:
    config: a run that doesn't fit.
    topology: where it doesn't.
    compile_: compiles the step.
    say: told each change before it is tried.
  """
  for change in changes(config, topology):
    say(f"trying {change.words}")
    try:
      if fits(compile_(change.config, change.topology), change.topology):
        return change
    except UserError:  # Rows that can't be dealt out over so many chips.
      continue
  return None
