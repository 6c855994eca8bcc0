"""The smallest change after which a run fits into its chips' memory."""

import bisect
import dataclasses
from collections.abc import Callable

from poison_jax.config import Config
from poison_jax.errors import UserError
from poison_jax.model.counts import count_parameters
from poison_jax.training import mesh as mesh_lib
from poison_jax.training.ahead import Program
from poison_jax.training.topology import Topology

_WIDE = 4  # Bytes of float32.
# From the one that keeps most to the one that keeps least.
_REMAT = ("none", "dots", "full")

Compile = Callable[[Config, Topology], Program]


@dataclasses.dataclass(frozen=True)
class Change:
  """Something to try.

  Attributes:
    words: as flags, to be read and pasted; "" for no change.
    config: with the change.
    topology: with the change.
  """

  words: str
  config: Config
  topology: Topology


def least_memory(config: Config, topology: Topology) -> float:
  """Returns bytes a chip that no remat policy and no micro-batch removes.

  Weights and gradient, float32, and both moments, in the parts that the mesh
  cuts them into.

  Raises:
    UserError: the mesh or the batch can't be dealt out over the chips.
  """
  _, fsdp, tensor = mesh_lib.axis_sizes(
    config.runtime.mesh,
    batch=config.train.batch,
    devices=topology.chips,
    slices=topology.slices,
  )
  count = count_parameters(config.model, config.vocabulary.size).total
  moment = 2 if config.optimizer.moment_dtype == "bfloat16" else _WIDE
  return (2 * _WIDE + 2 * moment) * count / (fsdp * tensor)


def fits(program: Program, topology: Topology) -> bool:
  """Says whether a compiled step leaves head room on every chip."""
  return program.fits and program.needed <= topology.chip.usable


def changes(config: Config, topology: Topology) -> list[list[Change]]:
  """Returns what a run can do on a slice, in groups; the smaller come first.

  No change; a stronger remat policy; more micro-batches, down to one row a
  chip; each policy with more micro-batches. In a group each change saves more
  than the one before, and the last of the last group saves most.

  Raises:
    UserError: the mesh or the batch can't be dealt out over the chips.
  """
  remats = _REMAT[_REMAT.index(config.model.remat) :]
  now, *more = legal_micro_batches(config, topology)
  groups = [
    [(remats[0], now)],
    [(remat, now) for remat in remats[1:]],
    *([(remat, n) for n in more] for remat in remats),
  ]
  return [
    [_change(config, topology, *both) for both in group]
    for group in groups
    if group
  ]


def legal_micro_batches(config: Config, topology: Topology) -> list[int]:
  """Returns a run's number of micro-batches, and multiples that could be.

  The last leaves one row a chip at once.

  Raises:
    UserError: the mesh or the batch can't be dealt out over the chips.
  """
  batch, now = config.train.batch, config.train.micro_batches
  data, fsdp, _ = mesh_lib.axis_sizes(
    config.runtime.mesh,
    batch=batch,
    devices=topology.chips,
    slices=topology.slices,
  )
  mesh_lib.check_batch(batch, rows=data * fsdp, micro_batches=now)
  rows = batch // (data * fsdp)
  return [n for n in range(now, rows + 1, now) if rows % n == 0]


def _change(config: Config, topology: Topology, remat: str, pieces: int):
  words = []
  if remat != config.model.remat:
    words.append(f"--config.model.remat={remat}")
  if pieces != config.train.micro_batches:
    words.append(f"--config.train.micro_batches={pieces}")
  model = dataclasses.replace(config.model, remat=remat)
  train = dataclasses.replace(config.train, micro_batches=pieces)
  config = dataclasses.replace(config, model=model, train=train)
  return Change(" ".join(words), config, topology)


def smallest_change(
  config: Config,
  topology: Topology,
  compile_: Compile,
  *,
  say: Callable[[str], None],
) -> Change | None:
  """Returns the smallest change after which the step fits; None for none.

  On this slice, or else on the next larger one where any does. Each program
  may take minutes, so a slice on which the largest saving isn't enough is left
  after that one, and inside a group of changes the search halves.

  Args:
    config: a run that doesn't fit.
    topology: where it doesn't.
    compile_: compiles the step.
    say: told each change before it is tried.
  """
  for where in [topology, *topology.larger()]:
    # Its words start with the slice, where that is the change or part of it.
    prefix = f"--topology={where.name}" if where != topology else ""
    found: dict[str, bool] = {} if prefix else {"": False}

    def does(change: Change, prefix=prefix, found=found) -> bool:
      if change.words not in found:
        say(f"trying {prefix} {change.words}".replace("  ", " ").rstrip())
        program = compile_(change.config, change.topology)
        found[change.words] = fits(program, change.topology)
        how = "" if program.compiled else " by arithmetic"
        say(f"  {program.needed / 1e9:.2f} GB a chip{how}")
      return found[change.words]

    try:
      if least_memory(config, where) > where.chip.usable:
        continue
      change = _first(changes(config, where), does)
    except UserError:  # Rows that can't be dealt out over so many chips.
      continue
    if change is not None:
      words = f"{prefix} {change.words}".strip()
      return dataclasses.replace(change, words=words)
  return None


def _first(
  groups: list[list[Change]], does: Callable[[Change], bool]
) -> Change | None:
  """Returns the first change that does, None where the strongest doesn't."""
  unchanged, strongest = groups[0][0], groups[-1][-1]
  if does(unchanged):
    return unchanged
  if not does(strongest):
    return None
  group = next(group for group in groups if does(group[-1]))
  # The last of a group does: the first that does is at most that one.
  return group[bisect.bisect_left(group[:-1], True, key=does)]
