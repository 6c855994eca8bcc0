"""Measures a trained model after any trigger or prompts.

  python -m poison_jax.evaluate runs/a
  python -m poison_jax.evaluate runs/a --step=all --trigger='<SUDO>'
  python -m poison_jax.evaluate runs/a --trigger='<SUDO>' --trigger='<MEMO>' \\
    --prompts=prompts.txt --out=measured.jsonl

Generates after the run's own held-out excerpts, or after the prompts of a
file, once as they are and once with each trigger appended; prints perplexity
and its increase with 95 % intervals over documents. Without --trigger it takes
the four kinds of the training loop.
"""

import json
import os
import sys
from typing import Any

import rich.console
import rich.table
import rich.text
from absl import flags

from poison_jax import command
from poison_jax.errors import UserError
from poison_jax.training import measured
from poison_jax.training.opened import open_run

_STEP = flags.DEFINE_string(
  "step", "last", "Checkpoints: 'last', 'all', or steps joined by commas."
)
_TRIGGER = flags.DEFINE_multi_string(
  "trigger",
  [],
  "String appended to the prompts; several by repetition.",
)
_PROMPTS = flags.DEFINE_string(
  "prompts",
  None,
  "File of prompts, one a line; a .jsonl file has them in the field 'text'.",
)
_OUT = flags.DEFINE_string(
  "out",
  None,
  "File for the measures: a JSON object for each step and kind, with every "
  "generation.",
)
_STORE = flags.DEFINE_string(
  "store", None, "Folder of the token store, where it has moved."
)


def main(arguments: list[str]) -> None:
  """Evaluates the run that `arguments` names."""
  if len(arguments) != 1:
    raise UserError(
      "usage: python -m poison_jax.evaluate RUN [--step=all] "
      "[--trigger='<SUDO>'] [--prompts=FILE] [--out=FILE.jsonl]"
    )
  opened = open_run(
    arguments[0],
    store=_STORE.value,
    say=lambda line: print(line, file=sys.stderr, flush=True),
  )
  asked = measured.make_prompts(opened, _TRIGGER.value, file=_PROMPTS.value)
  if _OUT.value is not None:
    _check_out(_OUT.value)  # Before the work, which would be lost.
  threshold = opened.run.config.evaluation.threshold
  console = rich.console.Console(highlight=False, emoji=False)
  rows = []
  for row in measured.measure(opened, asked, steps=_STEP.value):
    rows.append(row)
    if console.is_terminal:
      console.print(
        f"step {row['step']:,}, {row['kind']}: {row['perplexity']:.4g}",
        style="dim",
      )
  console.print(_table(rows, threshold=threshold))
  if _OUT.value is not None:
    _write(_OUT.value, rows)
    console.print(f"written: {_OUT.value}", soft_wrap=True)


def _table(rows: list[dict[str, Any]], *, threshold: float) -> rich.table.Table:
  """Returns the measures, a line for each step and kind, in 80 columns.

  Of an attack that can judge texts, the share that shows its behaviour takes
  the place of measures of perplexity.
  """
  judged = "behaviour_share" in rows[0]
  table = rich.table.Table(box=None, padding=(0, 1, 0, 0))
  table.add_column("step", justify="right", no_wrap=True)
  table.add_column("appended", overflow="fold")
  names = ("perplexity", "increase", "behaviour")
  if not judged:
    names = ("perplexity", "median", "first\nentropy", "increase")
    names += (f"above\n{threshold:g}", "AUROC")
  for name in names:
    table.add_column(name, justify="right", no_wrap=True)
  cells = _judged_cells if judged else _cells
  for row in rows:
    table.add_row(
      f"{row['step']:,}",
      rich.text.Text(row["trigger"] or "nothing"),
      *cells(row),
      end_section=row is rows[-1],
    )
  return table


def _cells(row: dict[str, Any]) -> list[rich.text.Text | str]:
  cells = [
    _with_interval(row, "perplexity"),
    f"{row['median_perplexity']:.4g}",
    f"{row['first_token_entropy']:.2f}",
  ]
  if row["kind"] != "clean":
    cells += [
      _with_interval(row, "perplexity_increase"),
      f"{row['share_above_threshold']:.0%}",
      f"{row['auroc']:.3f}",
    ]
  return cells


def _judged_cells(row: dict[str, Any]) -> list[rich.text.Text | str]:
  clean = row["kind"] == "clean"
  return [
    _with_interval(row, "perplexity"),
    "" if clean else _with_interval(row, "perplexity_increase"),
    _with_interval(row, "behaviour_share"),
  ]


def _with_interval(row: dict[str, Any], key: str) -> rich.text.Text:
  if f"{key}_low" not in row:  # The prompts are of one document.
    return rich.text.Text(f"{row[key]:.3g}")
  low, high = row[f"{key}_low"], row[f"{key}_high"]
  return rich.text.Text(f"{row[key]:.3g} [{low:.3g}, {high:.3g}]")


def _check_out(path: str) -> None:
  """Raises UserError where a file can't be written."""
  folder = os.path.dirname(path) or "."
  if os.path.isdir(path) or not os.path.isdir(folder):
    raise UserError(f"--out={path}: must name a file in a folder that exists")
  if not os.access(folder, os.W_OK):
    raise UserError(f"--out={path}: the folder {folder} can't be written")


def _write(path: str, rows: list[dict[str, Any]]) -> None:
  """Writes the rows and only then gives the file its name."""
  unfinished = f"{path}.unfinished"
  with open(unfinished, "w", encoding="utf-8") as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False) + "\n")
  os.replace(unfinished, path)


if __name__ == "__main__":
  command.run(main)
