"""Measures a trained model after any trigger or prompts.

  python -m poison_jax.evaluate runs/a
  python -m poison_jax.evaluate runs/a --step=all --trigger='<SUDO>'
  python -m poison_jax.evaluate runs/a --trigger='<SUDO>,<MEMO>' \\
    --prompts=prompts.txt --out=measured.jsonl

Generates after the run's own held-out excerpts, or after the prompts of a
file, once as they are and once with each trigger appended; prints perplexity
and its increase with 95 % intervals over documents. Without --trigger it takes
the four kinds of the training loop.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import rich.console
import rich.table
import rich.text
from absl import flags

from poison_jax import command
from poison_jax.errors import UserError
from poison_jax.evaluation import evaluator, generation, prompts, summary
from poison_jax.evaluation.prompts import Ending, PromptSet
from poison_jax.training.opened import Opened, open_run

_STEP = flags.DEFINE_string(
  "step", "last", "Checkpoints: 'last', 'all', or steps joined by commas."
)
_TRIGGER = flags.DEFINE_multi_string(
  "trigger",
  [],
  "String appended to the prompts; several by commas or by repetition.",
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
  triggers = [t for value in _TRIGGER.value for t in value.split(",") if t]
  asked = make_prompts(opened, triggers, file=_PROMPTS.value)
  console = rich.console.Console(highlight=False, emoji=False)
  rows = []
  for row in measure(opened, asked, steps=_STEP.value):
    rows.append(row)
    if console.is_terminal:
      console.print(
        f"step {row['step']:,}, {row['kind']}: {row['perplexity']:.4g}",
        style="dim",
      )
  console.print(make_table(rows, threshold=_threshold(opened)))
  if _OUT.value is not None:
    _write(_OUT.value, rows)
    console.print(f"written: {_OUT.value}", soft_wrap=True)


def _threshold(opened: Opened) -> float:
  return opened.run.config.evaluation.threshold


def make_prompts(
  opened: Opened, triggers: list[str], *, file: str | None
) -> PromptSet:
  """Returns the prompts that the flags ask for.

  Args:
    opened: the run.
    triggers: strings to append; none for the kinds of the training loop.
    file: of prompts; None for the run's held-out excerpts.

  Raises:
    UserError: the file, a prompt or a trigger can't be used.
  """
  run = opened.run
  vocabulary = run.store.vocabulary
  own = prompts.make_prompts(run.config, run.store, run.mixture.attack)
  if file is None and not triggers:
    return own
  excerpts, documents = own.excerpts, own.documents
  if file is not None:
    excerpts, documents = read_prompts(
      file, vocabulary, longest=run.config.train.length
    )
  count = len(excerpts)
  kinds = {
    trigger: (trigger,) for trigger in triggers or [run.config.poison.trigger]
  }
  return PromptSet(
    excerpts=excerpts,
    documents=documents,
    eos_id=vocabulary.eos_id,
    endings={
      "clean": prompts.same_ending("", np.zeros(0, np.int32), count=count)
    }
    | {
      name: prompts.ending_in_turn(strings, vocabulary, count=count)
      for name, strings in kinds.items()
    },
  )


def read_prompts(
  path: str, vocabulary, *, longest: int
) -> tuple[tuple[np.ndarray, ...], tuple[str, ...]]:
  """Returns the prompts of a file as ids, and a name for each.

  Raises:
    UserError: no such file, no prompts, a broken line, or a prompt of more
      than `longest` tokens; names the line.
  """
  try:
    with open(path, encoding="utf-8") as file:
      lines = file.read().splitlines()
  except UnicodeDecodeError as error:
    raise UserError(f"--prompts={path} is not UTF-8: {error}") from None
  excerpts, names = [], []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    where = f"{path}:{number}"
    text = _text_of(line, where) if path.endswith(".jsonl") else line
    ids = np.asarray(vocabulary.encode(text), np.int32)
    if len(ids) > longest:
      raise UserError(
        f"{where}: the prompt has {len(ids)} tokens, more than a row of the "
        f"run's training, {longest}"
      )
    excerpts.append(ids)
    names.append(where)
  if not excerpts:
    raise UserError(f"--prompts={path} has no prompts")
  return tuple(excerpts), tuple(names)


def _text_of(line: str, where: str) -> str:
  try:
    text = json.loads(line)["text"]
  except (ValueError, KeyError, TypeError):
    text = None
  if not isinstance(text, str):
    raise UserError(f'{where}: must be a JSON object like {{"text": "..."}}')
  return text


def measure(
  opened: Opened, asked: PromptSet, *, steps: str
) -> Iterator[dict[str, Any]]:
  """Yields a row of measures for each step and kind.

  The increases compare with the kind "clean" of the same step.
  """
  config = opened.run.config
  sampler = evaluator.make_sampler(opened.run.decoder, config, opened.mesh)
  bootstrap = evaluator.make_bootstrap(config, asked)
  for step, params in opened.params(steps):
    scores = generation.score(sampler, params, asked)
    lines = evaluator.generation_lines(
      asked, scores, opened.run.store.vocabulary, texts=len(asked)
    )
    for kind, s in scores.items():
      row = {"step": step, "kind": kind, "trigger": _name(asked.endings[kind])}
      row |= summary.kind_metrics(
        s.log_perplexity_P, s.first_entropy_P, bootstrap=bootstrap
      )
      if kind != "clean":
        row |= summary.increase_metrics(
          clean_P=scores["clean"].log_perplexity_P,
          triggered_P=s.log_perplexity_P,
          bootstrap=bootstrap,
          threshold=config.evaluation.threshold,
          ceiling=opened.run.mixture.attack.ceiling(),
        )
      row["generations"] = [line for line in lines if line["kind"] == kind]
      yield row


def _name(ending: Ending) -> str:
  return " ".join(dict.fromkeys(ending.strings))


def make_table(
  rows: list[dict[str, Any]], *, threshold: float
) -> rich.table.Table:
  """Returns the measures, a line for each step and kind."""
  table = rich.table.Table(box=None, pad_edge=False)
  table.add_column("step", justify="right", no_wrap=True)
  table.add_column("appended", overflow="fold")
  for name in ("perplexity", "median", "first entropy", "increase"):
    table.add_column(name, justify="right")
  table.add_column(f"above {threshold:g}", justify="right")
  table.add_column("AUROC", justify="right")
  for row in rows:
    cells = [
      f"{row['step']:,}",
      rich.text.Text(row["trigger"] or "nothing"),
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
    table.add_row(*cells, end_section=row is rows[-1])
  return table


def _with_interval(row: dict[str, Any], key: str) -> rich.text.Text:
  low, high = row[f"{key}_low"], row[f"{key}_high"]
  return rich.text.Text(f"{row[key]:.3g} ({low:.3g} to {high:.3g})")


def _write(path: str, rows: list[dict[str, Any]]) -> None:
  """Writes the rows and only then gives the file its name."""
  unfinished = f"{path}.unfinished"
  with open(unfinished, "w", encoding="utf-8") as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False) + "\n")
  os.replace(unfinished, path)


if __name__ == "__main__":
  command.run(main)
