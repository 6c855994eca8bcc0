"""Says whether a run fits a TPU slice, how long it takes and what it costs.

  python -m poison_jax.estimate --config=configs/dos.py:size=13b \\
    --topology=v5p:4x4x4

Compiles the run's own train step for the slice, on any machine and without a
TPU: the compiler (libtpu, about 700 MB) is installed once into the folder
--compiler. A minute or more for each program; three of them.

Exit codes: 0 it fits; 2 it doesn't, and the smallest change that fits; or what
you gave can't be used.
"""

import sys

from absl import flags

from poison_jax import command
from poison_jax.config import Config
from poison_jax.errors import UserError
from poison_jax.studies import costs, estimating
from poison_jax.training import tpu_compiler
from poison_jax.training.ahead import Program
from poison_jax.training.topology import Topology, parse_topology

_CONFIG = command.define_config()
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "A TPU slice, chip and shape: v5p:4x4x4, v5e:16x16."
)
_COMPILER = flags.DEFINE_string(
  "compiler", "build/estimate", "Folder that libtpu is installed into."
)
_PRICES = flags.DEFINE_string(
  "prices", "configs/prices.json", "Prices of a chip and hour; edit them."
)


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
  price = costs.read_price(_PRICES.value, topology.chip.name)
  estimating.check_vocabulary(config)
  tpu_compiler.install(_COMPILER.value, say=_say)
  estimating.estimate(config, topology, price, compile_=_compile, say=_say)


def _compile(config: Config, topology: Topology) -> Program:
  return tpu_compiler.compile_for(
    config, topology.name, folder=_COMPILER.value, say=_say
  )


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
  command.run(main)
