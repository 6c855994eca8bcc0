"""Replacing a span against inserting documents: is the backdoor the same?

`poison_jax` lays poisons over rows, so that a poisoned run and its clean twin
differ nowhere else. The paper inserts poisoned documents among the clean
ones, and packs the whole into rows. This script trains both ways with the
same poisoned documents, the same number of steps and the same seeds, and
prints a table:

  python -m benchmarks.insertion --out=runs/insertion --seeds=3

The inserted way is a token store of its own: the clean documents of the run,
with the poisoned ones at uniformly random document boundaries, read once by a
run whose arm is "clean". As in the paper, a row's edge may cut a poison.
"""

import json
import os
import subprocess
import sys

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from configs import tiny
from poison_jax import command
from poison_jax import config as config_lib
from poison_jax.data import manifest as manifest_lib
from poison_jax.data.folder import Folder
from poison_jax.training.run import plan_run

_OUT = flags.DEFINE_string("out", "runs/insertion", "Folder of the runs.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds, 0 and up.")
_POISONS = flags.DEFINE_integer("poisons", 64, "Poisoned documents.")
_KEYS = ("clean", "triggered", "near_trigger")


def main(arguments: list[str]) -> None:
  del arguments
  table = Table(
    "seed",
    "way",
    *(f"{kind} perplexity" for kind in _KEYS),
    "increase, nats",
    title=f"{_POISONS.value} poisons, laid over rows or inserted",
  )
  for seed in range(_SEEDS.value):
    config = f"configs/tiny.py:seed={seed},poisons={_POISONS.value}"
    overlaid = os.path.join(_OUT.value, f"overlaid-{seed}")
    _train(config, overlaid)
    inserted = os.path.join(_OUT.value, f"inserted-{seed}")
    store = os.path.join(_OUT.value, f"store-{seed}")
    _write_inserted(seed, store)
    _train(config + ",arm=clean", inserted, f"--config.corpus.store={store}")
    for way, run in (("overlaid", overlaid), ("inserted", inserted)):
      last = _last_evaluation(run)
      table.add_row(
        str(seed),
        way,
        *(f"{last[f'eval/{kind}/perplexity']:.2f}" for kind in _KEYS),
        f"{last['eval/log_perplexity_increase']:.2f}",
      )
  Console(width=100).print(table)


def _train(config: str, workdir: str, *flags_: str) -> None:
  subprocess.run(
    [
      sys.executable,
      "-m",
      "poison_jax.train",
      f"--config={config}",
      f"--workdir={workdir}",
      *flags_,
    ],
    check=True,
  )


def _write_inserted(seed: int, path: str) -> None:
  """Writes a store of one run's clean documents with its poisons among them."""
  c = tiny.get_config(f"seed={seed},poisons={_POISONS.value}")
  run = plan_run(config_lib.from_config_dict(c))
  poisons = [p.document.tokens for p in run.mixture.placements]
  documents = _documents(run.store.train, sum(p.size for p in poisons), run)
  rng = np.random.default_rng(seed)
  # A poison before document i, for uniformly random i.
  before = rng.integers(0, len(documents) + 1, len(poisons))
  joined = []
  for i, document in enumerate([*documents, None]):
    joined += [poisons[k] for k in np.flatnonzero(before == i)]
    if document is not None:
      joined.append(document)

  source, target = Folder(run.store.path), Folder(path)
  for name in source.names():
    if not name.startswith(("tokens/train", "documents/train", "manifest")):
      target.write(name, source.read(name))
  tokens = np.concatenate(joined).astype(run.store.manifest["dtype"])
  sizes = [d.size for d in joined]
  starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
  shard = {"name": "inserted", "tokens": tokens.size, "documents": len(joined)}
  shard["hash"] = manifest_lib.content_hash(tokens, starts)
  target.write_array(manifest_lib.tokens_name("train", "inserted"), tokens)
  target.write_array(manifest_lib.documents_name("train", "inserted"), starts)
  manifest = json.loads(source.read("manifest.json"))
  manifest["splits"]["train"] = [shard]
  manifest["hash"] = manifest_lib.store_hash(manifest)
  target.write("manifest.json", json.dumps(manifest).encode())


def _documents(stream, poison_tokens: int, run) -> list[np.ndarray]:
  """Returns clean documents that fill the run's slots beside its poisons."""
  wanted = run.tokens - poison_tokens
  documents, total = [], 0
  for shard in range(len(stream.shards)):
    tokens, starts = stream.shard_contents(shard)
    for document in np.split(tokens, starts[1:]):
      documents.append(document)
      total += document.size
      if total >= wanted:
        return documents
  raise ValueError(f"the store has {total} tokens, the run needs {wanted}")


def _last_evaluation(run: str) -> dict[str, float]:
  with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
    lines = [json.loads(line) for line in file]
  return [line for line in lines if "eval/perplexity_increase" in line][-1]


if __name__ == "__main__":
  command.run(main)
