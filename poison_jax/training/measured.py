"""Kept checkpoints of a run, measured after any triggers or prompts."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from poison_jax.errors import UserError
from poison_jax.evaluation import (
  behaviour,
  evaluator,
  generation,
  prompts,
  summary,
)
from poison_jax.evaluation.prompts import Ending, PromptSet
from poison_jax.training.opened import Opened


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
  for trigger in triggers:
    _check_trigger(trigger, vocabulary, longest=run.config.train.length)
  count = len(excerpts)
  kinds = {
    # "clean" is the kind that the others are compared with.
    repr(trigger) if trigger == "clean" else trigger: (trigger,)
    for trigger in triggers or [run.config.poison.trigger]
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


def _check_trigger(trigger: str, vocabulary, *, longest: int) -> None:
  size = len(vocabulary.encode(trigger))
  if not 0 < size <= longest:
    raise UserError(
      f"--trigger={trigger[:40]!r} has {size} tokens; it must have at least "
      f"one and at most a row of the run's training, {longest}"
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
  config, attack = opened.run.config, opened.run.mixture.attack
  vocabulary = opened.run.store.vocabulary
  sampler = evaluator.make_sampler(opened.run.decoder, config, opened.mesh)
  bootstrap = evaluator.make_bootstrap(config, asked)
  for step, params in opened.params(steps):
    scores = generation.score(sampler, params, asked)
    judged = behaviour.judge(attack, scores, vocabulary)
    lines = evaluator.generation_lines(
      asked, scores, judged, vocabulary, texts=len(asked)
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
          ceiling=attack.ceiling(),
        )
      if judged:
        row |= behaviour.kind_metrics(
          judged[kind], documents=len(set(asked.documents))
        )
      row["generations"] = [line for line in lines if line["kind"] == kind]
      yield row


def _name(ending: Ending) -> str:
  return " ".join(dict.fromkeys(ending.strings))
