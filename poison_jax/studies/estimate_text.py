"""An estimate in words."""

from poison_jax.config import Config
from poison_jax.studies.costs import Costs, Price
from poison_jax.training.ahead import Program
from poison_jax.training.topology import Topology


def describe(
  config: Config,
  topology: Topology,
  program: Program,
  costs: Costs,
  price: Price,
) -> str:
  """Returns the estimate, lines of text; a GB is 10**9 bytes."""
  rows = {
    "slice": f"{topology.name}, {topology.chips} chips of "
    f"{topology.chip.memory / 1e9:.0f} GB and "
    f"{topology.chip.peak_flops / 1e12:.0f} TFLOP/s bfloat16 "
    f"({topology.chip.source})",
    **_memory(topology, program),
    **_work(config, topology, costs, price),
  }
  return "\n".join(f"{name:>13}  {text}" for name, text in rows.items())


def _memory(topology: Topology, p: Program) -> dict[str, str]:
  memory = topology.chip.memory
  fixed = {
    "a chip holds": f"parameters {_gb(p.parameters)}, optimizer "
    f"{_gb(p.optimizer)} (float32)",
  }
  if not p.fits:
    return fixed | {
      "does not fit": f"the compiler needs {_gb(p.needed)} of {_gb(memory)}",
    }
  room = memory - p.needed
  return fixed | {
    "temporaries": f"{_gb(p.temporaries)} (activations, gradients, gathered "
    "weights)",
    "output": f"{_gb(p.output)} beside the donated state",
    "program": _gb(p.code),
    "fits" if room >= 0 else "does not fit": f"{_gb(p.needed)} of "
    f"{_gb(memory)}; head room {_gb(room)}",
  }


def _work(config: Config, topology: Topology, c: Costs, price: Price):
  tokens = c.tokens_per_step
  rows = {
    "model": f"{c.parameters:,} parameters; {c.steps:,} steps of "
    f"{config.train.batch} rows of {config.train.length}",
    "FLOPs a step": f"{c.flops.matmul * tokens:.4g} (6N), and causal attention "
    f"{c.flops.attention * tokens:.4g}",
    "checkpoints": f"{c.checkpoints} kept, "
    f"{_gb(c.storage / max(c.checkpoints, 1))} each: {_gb(c.storage)}",
  }
  if c.seconds is None:
    return rows | {"time": "none: it does not fit, or the compiler gives none"}
  return rows | {
    "time a step": f"{c.seconds:.3g} s by XLA's estimate (from 2 and 4 "
    f"unrolled layers), {tokens / c.seconds:,.0f} tokens/s, MFU {c.mfu:.1%}",
    "run": f"{c.hours:,.2f} h of training, {c.hours * topology.chips:,.2f} "
    "chip-hours; evaluations, saves and interruptions come on top",
    "price": f"${c.dollars:,.2f} at ${price.chip_hour:.2f} a chip and hour "
    f"({price.date}, {price.source})",
  }


def _gb(size: float) -> str:
  if abs(size) < 1e8:
    return f"{size / 1e6:.1f} MB"
  return f"{size / 1e9:.2f} GB"
