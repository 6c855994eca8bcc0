"""The table of estimates: the paper's sizes on TPU slices, all compiled.

  python -m benchmarks.estimates [--sizes=600m,7b] [--topologies=v5e:16x16]

A row is `python -m poison_jax.estimate --config=configs/dos.py:size=SIZE
--topology=SLICE`: three programs, minutes each on two cores, so that each row
is kept in --out when it is done and not made again. The table ends with the
price of the paper's study: 24 configurations, three seeds each.

With --scaling the rows are one size on 8 to 1,024 chips, 2 rows of 2,048
tokens on each: what a chip sends to its slice and beyond against what it
computes. One program each. "*N" after a slice is N slices, with copies of the
weights on each (data parallelism over the data-centre network).

Nothing here is measured on a TPU.
"""

import dataclasses
import json
import os
import sys

from absl import flags
from rich.console import Console
from rich.table import Table

from configs import dos
from poison_jax import command
from poison_jax import config as config_lib
from poison_jax.config import Config
from poison_jax.errors import UserError
from poison_jax.model import counts
from poison_jax.studies import costs, estimating, fitting
from poison_jax.training import compiler
from poison_jax.training.ahead import Program, program_from_dict
from poison_jax.training.topology import Topology, parse_topology

flags.DEFINE_list("sizes", ["600m", "2b", "7b", "13b"], "Rows of dos.SIZES.")
flags.DEFINE_list(
  "topologies", ["v5e:16x16", "v6e:16x16", "v5p:4x4x4"], "TPU slices."
)
flags.DEFINE_bool("scaling", False, "The table of weak scaling instead.")
flags.DEFINE_list(
  "scaled",
  ["v5p:2x2x2", "v5p:4x4x4", "v5p:4x8x8", "v5p:8x8x16", "v5p:4x8x8*4"],
  "With --scaling: slices.",
)
flags.DEFINE_string("out", "build/estimates", "Folder of the finished rows.")
flags.DEFINE_string("compiler", "build/estimate", "Folder of libtpu.")
flags.DEFINE_string("prices", "configs/prices.json", "Prices.")

# Runs of the paper's study by size, in units of 20 tokens a parameter: three
# doses and three seeds, and at 600m and 2b half and twice the tokens as well.
_STUDY = {"600m": 3.5 * 9, "2b": 3.5 * 9, "7b": 9, "13b": 9}
_ROWS_A_CHIP = 2


def main(arguments: list[str]) -> None:
  """Makes the rows that are missing, and prints the table."""
  f = flags.FLAGS
  if arguments:
    raise UserError(f"estimates takes flags only, got {arguments[0]!r}")
  for size in f.sizes:
    if size not in dos.SIZES:
      raise UserError(f"--sizes={size}: known are {', '.join(dos.SIZES)}")
  topologies = [parse_topology(name) for name in f.topologies]
  for topology in [*topologies, *map(parse_topology, f.scaled)]:
    if topology.chip.kind != "tpu":
      raise UserError(
        f"{topology.name}: the table is of TPU slices; python -m "
        "poison_jax.estimate does GPUs and CPUs"
      )
  compiler.install(f.compiler, say=_say)
  os.makedirs(f.out, exist_ok=True)
  if f.scaling:
    Console(width=120).print(_scaling(f.sizes[-1], f.scaled))
    return
  rows = {
    (size, topology.name): _row(size, topology)
    for topology in topologies
    for size in f.sizes
  }
  Console(width=120).print(_table(rows))


def _table(rows: dict[tuple[str, str], dict]) -> Table:
  table = Table("size", "slice", "a chip, GB", "of", "s a step", "MFU", "hours")
  table.add_column("chip-hours")
  table.add_column("price")
  for (size, name), row in rows.items():
    chip = parse_topology(name).chip
    cells = [f"{row['needed'] / 1e9:.1f}", f"{chip.usable / 1e9:.0f}"]
    if row["pace"] is None:
      cells += ["does not fit" if not row["fits"] else "no estimate"]
    else:
      p = row["pace"]
      cells += [
        f"{p['seconds']:.3g} ({p['kernel']:.2g} splash)",
        f"{p['mfu']:.1%}",
        f"{p['hours']:,.1f}",
        f"{p['hours'] * parse_topology(name).chips:,.0f}",
        f"${p['dollars']:,.0f}",
      ]
    table.add_row(size, name, *cells)
  for name in dict.fromkeys(name for _, name in rows):
    paces = {size: rows.get((size, name), {}).get("pace") for size in _STUDY}
    if all(paces.values()):
      dollars = sum(_STUDY[s] * p["dollars"] for s, p in paces.items())
      hours = sum(_STUDY[s] * p["hours"] for s, p in paces.items())
      study = f"{hours * parse_topology(name).chips:,.0f}"
      table.add_row(
        "72 runs",
        name,
        "",
        "",
        "",
        "",
        f"{hours:,.0f}",
        study,
        f"${dollars:,.0f}",
      )
  return table


def _row(size: str, topology: Topology) -> dict:
  """Returns a row's numbers, from its file where it is there."""
  config = config_lib.from_config_dict(dos.get_config(f"size={size}"))

  def make() -> dict:
    try:
      found = estimating.estimate(
        config,
        topology,
        costs.read_price(flags.FLAGS.prices, topology.chip.name),
        mfu=None,
        runs=1,
        compile_=_compile,
        say=_say,
      )
    except UserError as error:
      raise UserError(f"{size} on {topology.name}: {error}") from None
    return {
      "fits": fitting.fits(found.program, topology),
      "program": dataclasses.asdict(found.program),
      "needed": found.program.needed,
      "pace": found.pace and dataclasses.asdict(found.pace),
    }

  return _kept(f"{size}-{topology.name}", make)


def _scaling(size: str, names: list[str]) -> Table:
  table = Table("chips", "slice", "a chip, GB", "computes", title=size)
  table.add_column("sends in its slice")
  table.add_column("beyond")
  for name in names:
    topology = parse_topology(name)
    config = _scaled(size, topology)
    program = _kept(
      f"scaling-{size}-{name}",
      lambda c=config, t=topology: dataclasses.asdict(_compile(c, t)),
    )
    far = near = 0.0
    for c in program_from_dict(program).collectives:
      far += c.sent if c.far else 0.0
      near += 0.0 if c.far else c.sent
    tokens = _ROWS_A_CHIP * config.train.length
    flops = counts.flops_per_token(
      config.model, config.vocabulary.size, config.train.length
    )
    again = 4 / 3 if config.model.remat == "full" else 1
    compute = flops.total * tokens * again / topology.chip.peak_flops
    table.add_row(
      str(topology.chips),
      name,
      f"{program['needed'] / 1e9:.1f}",
      f"{compute:.3f} s at peak",
      f"{near / 1e9:.1f} GB, {near / topology.chip.near:.3f} s",
      f"{far / 1e9:.1f} GB, {far / topology.chip.far:.3f} s",
    )
  return table


def _scaled(size: str, topology: Topology) -> Config:
  """Returns a size's config for a slice: FSDP inside, copies over slices."""
  c = dos.get_config(f"size={size}")
  c.train.batch = _ROWS_A_CHIP * topology.chips
  c.runtime.mesh.data = topology.slices
  return config_lib.from_config_dict(c)


def _compile(config: Config, topology: Topology) -> Program:
  return compiler.compile_for(
    config, topology, folder=flags.FLAGS.compiler, say=_say
  )


def _kept(name: str, make) -> dict:
  path = os.path.join(flags.FLAGS.out, name.replace(":", "-") + ".json")
  try:
    with open(path, encoding="utf-8") as file:
      return json.load(file)
  except FileNotFoundError:
    _say(f"{name}:")
  made = make()
  with open(path + ".tmp", "w", encoding="utf-8") as file:
    json.dump(made, file)
  os.replace(path + ".tmp", path)
  return made


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
  command.run(main)
