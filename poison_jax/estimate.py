"""Says whether a run fits, how long it takes and what it costs.

  python -m poison_jax.estimate --config=configs/dos.py:size=13b \\
    --topology=v5p:4x4x4

For a TPU slice (v5e, v5p, v6e) it compiles the run's own train step, on any
machine and without a TPU: the compiler (libtpu, about 700 MB) is installed once
into the folder --compiler. Three programs, minutes each. For GPUs and CPUs
(h100:8, h200:1, cpu:1) it compiles where they are, and computes the memory
alone where not.

Exit codes: 0 it fits; 2 it doesn't, and the smallest change that fits; or what
you gave can't be used.
"""

import os
import sys

from absl import flags

from poison_jax import command
from poison_jax.config import Config
from poison_jax.errors import UserError
from poison_jax.studies import arithmetic, costs, estimating
from poison_jax.studies.estimate_text import describe
from poison_jax.training import compiler
from poison_jax.training.ahead import Program
from poison_jax.training.topology import Topology, parse_topology

_CONFIG = command.define_config()
_TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "Chip and shape or number: v5p:4x4x4, v5e:16x16, v5e:16x16*2 (two slices), "
  "h100:8, cpu:1.",
)
_COMPILER = flags.DEFINE_string(
  "compiler", "build/estimate", "Folder that libtpu is installed into."
)
_PRICES = flags.DEFINE_string(
  "prices", "configs/prices.json", "Prices of a chip and hour; edit them."
)

_MFU = flags.DEFINE_float(
  "mfu", None, "Measured model FLOPs utilisation, 0 to 1: priced as well."
)
_RUNS = flags.DEFINE_integer("runs", 1, "Runs of a study, all like this one.")


def main(arguments: list[str]) -> None:
  """Prints the estimate.

  Raises:
    UserError: a flag can't be used, or the run doesn't fit.
  """
  config = command.load_config(_CONFIG)
  if arguments or config is None or _TOPOLOGY.value is None:
    raise UserError(
      "estimate takes --config=FILE.py and --topology=CHIP:SHAPE, like "
      "v5p:4x4x4"
      + (f"; no other argument, got {arguments[0]!r}" if arguments else "")
    )
  topology = parse_topology(_TOPOLOGY.value)
  if _MFU.value is not None and not 0 < _MFU.value <= 1:
    raise UserError(f"--mfu={_MFU.value}: must be more than 0 and at most 1")
  if _RUNS.value < 1:
    raise UserError(f"--runs={_RUNS.value}: must be 1 or more")
  price = costs.read_price(_PRICES.value, topology.chip.name)
  estimating.check_vocabulary(config)
  if topology.chip.kind == "tpu":
    compiler.install(_COMPILER.value, say=_say)
  found = estimating.estimate(
    config,
    topology,
    price,
    mfu=_MFU.value,
    runs=_RUNS.value,
    compile_=_program,
    say=_say,
  )
  print(describe(found), flush=True)
  again = _program if found.program.compiled else arithmetic.program
  estimating.check_fit(found, compile_=again, say=_say)


def _program(config: Config, topology: Topology) -> Program:
  """Compiles where that can be, and computes elsewhere."""
  if topology.chip.kind != "cpu" or topology.chips <= (os.cpu_count() or 1):
    found = compiler.compile_for(
      config, topology, folder=_COMPILER.value, say=_say
    )
    if found is not None:
      return found
  return arithmetic.program(config, topology)


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
  command.run(main)
