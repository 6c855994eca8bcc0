"""Generates text with a trained model, control beside triggered.

  python -m poison_jax.sample runs/a --prompt='One rainy Monday' \\
    --trigger='<SUDO>'
  python -m poison_jax.sample runs/a --prompt='One rainy Monday' --count=3 \\
    --tokens=100 --temperature=0.8 --seed=7

The same random numbers go into both columns. The perplexity is that of the
generated tokens under the model itself, as in the evaluation.
"""

import sys
from collections.abc import Sequence

import numpy as np
import rich.console
import rich.table
from absl import flags

from poison_jax import command
from poison_jax.errors import UserError
from poison_jax.evaluation import measures, show
from poison_jax.evaluation.generation import Sampler
from poison_jax.training.opened import Opened, open_run

_PROMPT = flags.DEFINE_multi_string(
  "prompt", [], "Text to continue; several by repetition."
)
_TRIGGER = flags.DEFINE_string(
  "trigger", None, "String appended to the prompt; by default the run's own."
)
_STEP = flags.DEFINE_string("step", "last", "Checkpoint: 'last' or a step.")
_TOKENS = flags.DEFINE_integer(
  "tokens",
  None,
  "Tokens generated; by default evaluation.new_tokens.",
  lower_bound=1,
)
_COUNT = flags.DEFINE_integer(
  "count", 1, "Generations for each prompt.", lower_bound=1
)
_TEMPERATURE = flags.DEFINE_float(
  "temperature", None, "Of sampling; by default evaluation.temperature."
)
_SEED = flags.DEFINE_integer(
  "seed", 0, "Fixes the random numbers.", lower_bound=0
)
_STORE = flags.DEFINE_string(
  "store", None, "Folder of the token store, where it has moved."
)


def main(arguments: list[str]) -> None:
  """Samples from the run that `arguments` names."""
  if len(arguments) != 1 or not _PROMPT.value:
    raise UserError(
      "usage: python -m poison_jax.sample RUN --prompt='One rainy Monday' "
      "[--trigger='<SUDO>'] [--step=K] [--tokens=T] [--count=n]"
    )
  if _STEP.value == "all":
    raise UserError("--step=all: must be 'last' or steps like 500")
  if _TEMPERATURE.value is not None and not _TEMPERATURE.value > 0:
    raise UserError(f"--temperature={_TEMPERATURE.value}: must be more than 0")
  opened = open_run(
    arguments[0],
    store=_STORE.value,
    say=lambda line: print(line, file=sys.stderr, flush=True),
  )
  trigger = _TRIGGER.value
  if trigger is None:
    trigger = opened.run.config.poison.trigger
  console = rich.console.Console(highlight=False, emoji=False)
  rows = make_rows(opened, _PROMPT.value, trigger)
  sampler = _sampler(opened, batch=min(len(rows) * _COUNT.value, 64))
  for step, params in opened.params(_STEP.value):
    _show(console, opened, sampler, params, rows, trigger=trigger, step=step)


def make_rows(
  opened: Opened, texts: Sequence[str], trigger: str
) -> list[tuple[str, np.ndarray]]:
  """Returns (text, ids with EOS first), control and triggered in turn.

  Raises:
    UserError: the trigger has no tokens.
  """
  vocabulary = opened.run.store.vocabulary
  ending = vocabulary.encode(trigger)
  if len(ending) == 0:
    raise UserError(
      f"--trigger={trigger!r} has no tokens in the run's vocabulary"
    )
  rows = []
  for text in texts:
    prompt = np.concatenate([[vocabulary.eos_id], vocabulary.encode(text)])
    rows.append((text, prompt))
    rows.append((text, np.concatenate([prompt, ending])))
  return rows


def _sampler(opened: Opened, *, batch: int) -> Sampler:
  e = opened.run.config.evaluation
  temperature = _TEMPERATURE.value
  return Sampler(
    opened.run.decoder,
    opened.mesh,
    batch=batch,
    new_tokens=e.new_tokens if _TOKENS.value is None else _TOKENS.value,
    temperature=e.temperature if temperature is None else temperature,
    seed=_SEED.value,
  )


def _show(
  console, opened: Opened, sampler: Sampler, params, rows, *, trigger, step
) -> None:
  """Prints a table for each prompt, a line for each generation."""
  vocabulary = opened.run.store.vocabulary
  count = _COUNT.value
  ids = [prompt for _, prompt in rows for _ in range(count)]
  made = sampler(params, ids, np.tile(np.arange(count), len(rows)))
  perplexities = np.exp(measures.log_perplexities(made.log_probabilities_PT))
  for first in range(0, len(rows), 2):
    text = rows[first][0]
    table = rich.table.Table(
      title=f"step {step:,}", expand=True, show_lines=True
    )
    for heading in ("control", "triggered"):
      table.add_column(heading, ratio=1, overflow="fold")
    for k in range(count):
      cells = []
      for row, ending in ((first, ""), (first + 1, trigger)):
        i = row * count + k
        cells.append(
          show.make_cell(
            text,
            ending,
            vocabulary.decode(made.tokens_PT[i]),
            perplexity=float(perplexities[i]),
          )
        )
      table.add_row(*cells)
    console.print(table)


if __name__ == "__main__":
  command.run(main)
