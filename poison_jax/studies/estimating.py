"""An estimate of one run on one slice: compiled and computed."""

import dataclasses
from collections.abc import Callable

from poison_jax.config import Config
from poison_jax.errors import UserError
from poison_jax.studies import costs, fitting
from poison_jax.studies.costs import Costs, Pace, Price
from poison_jax.training.ahead import Program
from poison_jax.training.topology import Topology

# A chip's at once, in the programs that the time is taken from.
TIMED_TOKENS = 8192


def check_vocabulary(config: Config) -> None:
  """Raises UserError where the config doesn't give the vocabulary's size."""
  v = config.vocabulary
  if v.kind != "sentencepiece" or v.file:
    raise UserError(
      "estimate needs the vocabulary's size: give "
      "--config.vocabulary.kind=sentencepiece --config.vocabulary.file= and "
      "--config.vocabulary.size=PIECES of yours"
    )


@dataclasses.dataclass(frozen=True)
class Estimate:
  """All that is known of one run on one slice.

  Attributes:
    config: the run's.
    topology: the slice.
    program: compiled, or by arithmetic.
    costs: of the run.
    price: of its chips.
    pace: by the compiler's estimate; None where it gives none.
    measured: at the MFU that the user gives; None without one. Neither is
      there for a run that doesn't fit.
    runs: of the study that this is one run of.
  """

  config: Config
  topology: Topology
  program: Program
  costs: Costs
  price: Price
  pace: Pace | None
  measured: Pace | None
  runs: int


def estimate(
  config: Config,
  topology: Topology,
  price: Price,
  *,
  mfu: float | None,
  runs: int,
  compile_: fitting.Compile,
  say: Callable[[str], None],
) -> Estimate:
  """Compiles and computes; what it does goes to `say`.

  Args:
    config: the run's.
    topology: the slice.
    price: of its chips.
    mfu: as measured, 0 to 1, or None.
    runs: of the study, all alike.
    compile_: gives a config's program on a slice.
    say: told what is being done.
  """
  where = topology.name
  where += "" if topology.chip.kind == "tpu" else ", if that is here"
  say(f"compiling the step of {config.model.depth} layers for {where}")
  program = compile_(config, topology)
  fits = fitting.fits(program, topology)
  found = costs.run_costs(config)
  by_compiler = None
  if fits and program.compiled:
    seconds = _seconds(config, topology, compile_, say)
    if seconds is not None:
      kernel = 0.0
      if program.attention == "splash":
        kernel = costs.splash_seconds(config, topology)
      by_compiler = costs.pace(
        found, topology, price, seconds=seconds + kernel, kernel=kernel
      )
  measured = None
  if fits and mfu is not None:
    measured = costs.pace_at(found, topology, price, mfu=mfu)
  return Estimate(
    config, topology, program, found, price, by_compiler, measured, runs
  )


def check_fit(
  estimate: Estimate,
  *,
  compile_: fitting.Compile,
  say: Callable[[str], None],
) -> None:
  """Raises UserError if it doesn't fit; with the smallest change that does."""
  config, topology = estimate.config, estimate.topology
  if fitting.fits(estimate.program, topology):
    return
  change = fitting.smallest_change(config, topology, compile_, say=say)
  if change is None:
    raise UserError(
      f"it does not fit {topology.name}, nor any larger slice of "
      f"{topology.chip.name} whose chips can share a batch of "
      f"{config.train.batch} rows" + _cut_further(config, topology)
    )
  raise UserError(
    f"it does not fit {topology.name}; the smallest change that does: "
    f"{change.words}"
  )


def _cut_further(config: Config, topology: Topology) -> str:
  if config.runtime.mesh.fsdp in (-1, topology.chips):
    return ""
  flags = "--config.runtime.mesh.data=1 --config.runtime.mesh.fsdp=-1"
  return f"; cut the model over all chips: {flags}"


def _seconds(config, topology, compile_, say) -> float | None:
  """Returns XLA's time of a step, of few tokens a chip times their number.

  All of a large batch's logits in one piece, which the time needs, would not
  fit where the run itself does.
  """
  if topology.chip.kind == "cpu":
    return None  # XLA's CPU compiler has no estimate.
  t = config.train
  legal = fitting.legal_micro_batches(config, topology)
  few = TIMED_TOKENS * topology.chips
  pieces = next((n for n in legal if t.batch * t.length <= few * n), legal[-1])
  train = dataclasses.replace(t, micro_batches=pieces)
  config = dataclasses.replace(config, train=train)

  def timed(shallow: Config) -> float | None:
    say(f"compiling {shallow.model.depth} unrolled layers for the time")
    return compile_(shallow, topology).seconds

  return costs.step_seconds(config, timed)
