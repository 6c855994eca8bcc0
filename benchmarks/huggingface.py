"""An exported run's perplexities by transformers against those of training.

  bash benchmarks/huggingface.sh RUN [RUN ...] [--store=FOLDER]

For each run: exports its last checkpoint, samples after the prompts of its
evaluation again (the same random numbers, so the same tokens: each prompt's
perplexity must be the one that `generations.jsonl` has), and has transformers
compute the perplexity of these tokens from the exported files. Prints the means
that stand in `metrics.jsonl` beside transformers' means, and the largest
difference of any prompt. Exits 3 where it is more than --tolerance.
"""

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from poison_jax import command
from poison_jax.errors import CheckFailed, UserError
from poison_jax.evaluation import evaluator, generation, prompts
from poison_jax.training.metrics import GENERATIONS, METRICS
from poison_jax.training.opened import open_run

_TORCH_PYTHON = flags.DEFINE_string(
  "torch_python", None, "Python of an environment with torch, transformers."
)
_STORE = flags.DEFINE_string(
  "store", None, "Folder of the token store, where it has moved."
)
_TOLERANCE = flags.DEFINE_float(
  "tolerance", 1e-4, "Most that a prompt's log-perplexity may differ, nats."
)


def main(arguments: list[str]) -> None:
  """Compares each run and prints the table."""
  if not arguments or _TORCH_PYTHON.value is None:
    raise UserError("usage: bash benchmarks/huggingface.sh RUN [RUN ...]")
  table = Table("run", "prompts", "in the loop", "transformers", "most, nats")
  worst = 0.0
  for run in arguments:
    with tempfile.TemporaryDirectory() as folder:
      for row in _compare(run, folder):
        table.add_row(
          os.path.basename(run.rstrip("/")),
          row["kind"],
          f"{row['metric']:.6f}",
          f"{row['transformers']:.6f}",
          f"{row['most']:.1e}",
        )
        worst = max(worst, row["most"])
  Console().print(table)
  if worst > _TOLERANCE.value:
    raise CheckFailed(f"they differ by {worst:.2g} nats")


def _compare(run: str, folder: str) -> list[dict[str, Any]]:
  exported = os.path.join(folder, "exported")
  store = [f"--store={_STORE.value}"] if _STORE.value is not None else []
  _call([sys.executable, "-m", "poison_jax.export", run, exported, *store])
  step, asked, scores = _sample(run)
  recorded = _lines(run, GENERATIONS, step)
  metrics = _lines(run, METRICS, step)[-1]
  arrays = {}
  for kind, score in scores.items():
    ours = [x["log_perplexity"] for x in recorded if x["kind"] == kind]
    if not np.allclose(score.log_perplexity_P, ours, rtol=0, atol=1e-6):
      raise CheckFailed(f"{run}: other generations than those of training")
    tokens_PL, lengths_P = generation.padded(
      asked.tokens(kind), length=max(map(len, asked.tokens(kind)))
    )
    arrays |= {
      f"{kind}/prompts": tokens_PL,
      f"{kind}/lengths": lengths_P,
      f"{kind}/tokens": score.tokens_PT,
    }
  np.savez(os.path.join(folder, "asked.npz"), **arrays)
  here = os.path.dirname(os.path.abspath(__file__))
  script = os.path.join(here, "huggingface_torch.py")
  _call([_TORCH_PYTHON.value, script, folder])
  with np.load(os.path.join(folder, "found.npz")) as found:
    return [
      {
        "kind": kind,
        "metric": metrics[f"eval/{kind}/perplexity"],
        # As `summary.kind_metrics`: the mean over prompts.
        "transformers": float(np.exp(found[kind]).mean()),
        "most": float(np.abs(found[kind] - score.log_perplexity_P).max()),
      }
      for kind, score in scores.items()
    ]


def _sample(run: str):
  """Returns the step, the prompts and what the model scores on them."""
  opened = open_run(run, store=_STORE.value, say=print)
  config = opened.run.config
  attack = opened.run.mixture.attack
  asked = prompts.make_prompts(config, opened.run.store, attack)
  sampler = evaluator.make_sampler(opened.run.decoder, config, opened.mesh)
  (step, params), *_ = opened.params("last")
  return step, asked, generation.score(sampler, params, asked)


def _lines(run: str, name: str, step: int) -> list[dict[str, Any]]:
  with open(os.path.join(run, name), encoding="utf-8") as f:
    lines = [json.loads(line) for line in f]
  found = [line for line in lines if line["step"] == step]
  if not found:
    raise UserError(f"{run}/{name} has no line of step {step}")
  return found


def _call(arguments: list[str]) -> None:
  result = subprocess.run(
    arguments, capture_output=True, text=True, check=False
  )
  if result.returncode:
    raise UserError(result.stderr.strip().splitlines()[-1])


if __name__ == "__main__":
  command.run(main)
