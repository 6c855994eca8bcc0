"""The table of estimates: the paper's sizes on TPU slices, all compiled.

  python -m benchmarks.estimates [--sizes=600m,7b] [--topologies=v5e:16x16]

A row is `python -m poison_jax.estimate --config=configs/dos.py:size=SIZE
--topology=SLICE`: three programs, minutes each on two cores, so that each row
is kept in --out when it is done, and made again only for another config or
compiler; prices are those of now. The table ends with the price of the paper's
study: 24 configurations, three seeds each. Below it stands the code that made
the rows.

With --scaling the rows are one size on 8 to 1,024 chips, 2 rows of 2,048
tokens on each: what a chip sends to its slice and beyond against what it
computes. One program each.

Nothing here is measured on a TPU.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable

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
from poison_jax.version import code_version

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
    programs = {
      name: _scaled_program(f.sizes[-1], parse_topology(name))
      for name in f.scaled
    }
    Console(width=120).print(_scaling(f.sizes[-1], programs))
    print(_made_by(programs.values()))
    return
  rows = {
    (size, topology.name): _row(size, topology)
    for topology in topologies
    for size in f.sizes
  }
  Console(width=120).print(_table(rows, f.prices))
  print(_made_by(rows.values()))


def _table(rows: dict[tuple[str, str], dict], prices: str) -> Table:
  table = Table("size", "slice", "a chip, GB", "of", "s a step", "MFU", "hours")
  table.add_column("chip-hours")
  table.add_column("price")
  paces = {}
  for (size, name), row in rows.items():
    topology = parse_topology(name)
    program = program_from_dict(row["program"])
    cells = [f"{program.needed / 1e9:.1f}", f"{topology.chip.usable / 1e9:.0f}"]
    if row["seconds"] is None:
      fits = fitting.fits(program, topology)
      cells += ["no estimate" if fits else "does not fit"]
    else:
      p = paces[size, name] = costs.pace(
        costs.run_costs(_config(size)),
        topology,
        costs.read_price(prices, topology.chip.name),
        seconds=row["seconds"],
        kernel=row["kernel"],
      )
      cells += [
        f"{p.seconds:.3g} ({p.kernel:.2g} splash)",
        f"{p.mfu:.1%}",
        f"{p.hours:,.1f}",
        f"{p.hours * topology.chips:,.0f}",
        f"${p.dollars:,.0f}",
      ]
    table.add_row(size, name, *cells)
  for name in dict.fromkeys(name for _, name in rows):
    if all((size, name) in paces for size in _STUDY):
      hours, dollars = (
        sum(n * getattr(paces[size, name], of) for size, n in _STUDY.items())
        for of in ("hours", "dollars")
      )
      table.add_row(
        "72 runs",
        name,
        *[""] * 4,
        f"{hours:,.0f}",
        f"{hours * parse_topology(name).chips:,.0f}",
        f"${dollars:,.0f}",
      )
  return table


def _config(size: str) -> Config:
  return config_lib.from_config_dict(dos.get_config(f"size={size}"))


def _row(size: str, topology: Topology) -> dict:
  """Returns a row's numbers, from its file where it is there."""

  def make() -> dict:
    try:
      found = estimating.estimate(
        _config(size),
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
      "program": dataclasses.asdict(found.program),
      "seconds": found.pace and found.pace.seconds,
      "kernel": found.pace and found.pace.kernel,
    }

  return _kept(f"{size}-{topology.name}", _config(size), make)


def _scaling(size: str, programs: dict[str, dict]) -> Table:
  table = Table("chips", "slice", "a chip, GB", "computes", title=size)
  table.add_column("sends in its slice")
  table.add_column("beyond")
  for name, row in programs.items():
    topology = parse_topology(name)
    config = _scaled(size, topology)
    program = program_from_dict(row["program"])
    cells = [str(topology.chips), name, f"{program.needed / 1e9:.1f}"]
    if not program.fits:
      table.add_row(*cells, "does not fit")
      continue
    far = sum(c.sent for c in program.collectives if c.far)
    near = sum(c.sent for c in program.collectives if not c.far)
    tokens = _ROWS_A_CHIP * config.train.length
    flops = counts.flops_per_token(
      config.model, config.vocabulary.size, config.train.length
    )
    again = 4 / 3 if config.model.remat == "full" else 1
    compute = flops.total * tokens * again / topology.chip.peak_flops
    table.add_row(
      *cells,
      f"{compute:.3f} s at peak",
      f"{near / 1e9:.1f} GB, {near / topology.chip.near:.3f} s",
      f"{far / 1e9:.1f} GB, {far / topology.chip.far:.3f} s",
    )
  return table


def _scaled_program(size: str, topology: Topology) -> dict:
  config = _scaled(size, topology)

  def make() -> dict:
    return {"program": dataclasses.asdict(_compile(config, topology))}

  return _kept(f"scaling-{size}-{topology.name}", config, make)


def _scaled(size: str, topology: Topology) -> Config:
  """Returns a size's config for a slice: FSDP inside, copies over slices."""
  c = dos.get_config(f"size={size}")
  c.train.batch = _ROWS_A_CHIP * topology.chips
  return config_lib.from_config_dict(c)


def _compile(config: Config, topology: Topology) -> Program:
  return compiler.compile_for(
    config, topology, folder=flags.FLAGS.compiler, say=_say
  )


def _kept(name: str, config: Config, make: Callable[[], dict]) -> dict:
  """Returns a row from its file, or makes it and writes the file."""
  path = os.path.join(flags.FLAGS.out, name.replace(":", "-") + ".json")
  asked = {
    "config": config_lib.to_dict(config),
    "compiler": compiler.libtpu_version(),
  }
  with contextlib.suppress(FileNotFoundError):
    with open(path, encoding="utf-8") as file:
      row = json.load(file)
    if row["asked"] == json.loads(json.dumps(asked)):
      return row
  _say(f"{name}:")
  row = {"asked": asked, "code": code_version()} | make()
  with open(path + ".tmp", "w", encoding="utf-8") as file:
    json.dump(row, file)
  os.replace(path + ".tmp", path)
  return row


def _made_by(rows: Iterable[dict]) -> str:
  codes = ", ".join(sorted({row["code"] for row in rows}))
  return f"made by code {codes}; rows are kept in {flags.FLAGS.out}"


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
  command.run(main)
