"""What a study costs before it runs: a table of its configurations."""

import dataclasses
from collections.abc import Sequence

from rich import box
from rich.table import Table

from poison_jax.studies import costs
from poison_jax.studies.costs import Price
from poison_jax.studies.grid.axes import REPLICATES
from poison_jax.studies.grid.study import Cell
from poison_jax.training.topology import Topology


@dataclasses.dataclass(frozen=True)
class Total:
  """Cells together: number, model FLOPs, hours on one slice, US dollars."""

  cells: int
  flops: float
  hours: float
  dollars: float


def total(
  cells: Sequence[Cell], topology: Topology, price: Price, *, mfu: float
) -> Total:
  """Returns what cells cost, one after another on such a slice."""
  hours = dollars = flops = 0.0
  for cell in cells:
    pace = costs.pace_at(costs.run_costs(cell.config), topology, price, mfu=mfu)
    hours, dollars = hours + pace.hours, dollars + pace.dollars
    flops += cell.flops
  return Total(len(cells), flops, hours, dollars)


def configurations(cells: Sequence[Cell]) -> dict[tuple, list[Cell]]:
  """Returns the cells by what they share beside their seeds, in order."""
  found: dict[tuple, list[Cell]] = {}
  for cell in cells:
    key = tuple((k, v) for k, v in cell.settings.items() if k not in REPLICATES)
    found.setdefault(key, []).append(cell)
  return found


def table(
  cells: Sequence[Cell], topology: Topology, price: Price, *, mfu: float
) -> Table:
  """Returns the table of a plan: a configuration a row, and the sum."""
  rows = configurations(cells)
  axes = list(dict.fromkeys(name for key in rows for name, _ in key))
  made = Table(box=box.SIMPLE_HEAD)
  columns = ("runs", "parameters", "tokens", "FLOPs", "hours", "price")
  for name in (*axes, *columns):
    made.add_column(name, justify="right", no_wrap=True)

  def sums(name: str, of: Sequence[Cell]) -> list[str]:
    cost = total(of, topology, price, mfu=mfu)
    blanks = [""] * (len(axes) - 1)
    return [name, *blanks, str(cost.cells), "", "", *_money(cost)]

  for key, group in rows.items():
    settings = dict(key)
    first = group[0]
    tokens = first.steps * first.config.train.batch * first.config.train.length
    cost = total(group, topology, price, mfu=mfu)
    made.add_row(
      *(str(settings.get(name, "")) for name in axes),
      str(cost.cells),
      short(first.parameters),
      short(tokens),
      *_money(cost),
    )
  made.add_section()
  arms = dict.fromkeys(cell.config.poison.arm for cell in cells)
  for arm in arms if len(arms) > 1 else ():
    of_arm = [cell for cell in cells if cell.config.poison.arm == arm]
    made.add_row(*sums(f"all {arm}", of_arm))
  made.add_row(*sums("all", cells))
  return made


def _money(cost: Total) -> tuple[str, str, str]:
  dollars = f"${cost.dollars:,.2f}" if cost.dollars < 10 else ""
  return (
    f"{cost.flops:.3g}",
    f"{cost.hours:,.2f}" if cost.hours < 100 else f"{cost.hours:,.0f}",
    dollars or f"${cost.dollars:,.0f}",
  )


def short(number: float) -> str:
  """Returns "608M", "6.08B" or "33.1k"."""
  for power, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
    if number >= power:
      return f"{number / power:.3g}{letter}"
  return f"{number:g}"
