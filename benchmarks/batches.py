"""Tokens a second of batches from a store on local disk, on one core.

  python -m benchmarks.batches [--megatokens=200] [--seconds=3]

A store of random tokens in 16 shards is written, then read in the shuffled
order of a run with poisons laid over it. A row of the table is a length of
row; the columns are the stages: `rows` alone (mapped into memory), the same
through TensorStore's own reads (as from a bucket), `Mixture.batch_rows`
(order, rows, overlay), and `device_batches` (also onto the device, in the
background thread). Must reach: 10M tokens/s for shuffled, overlaid batches.
"""

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from configs import base
from poison_jax import command
from poison_jax import config as config_lib
from poison_jax.data import manifest as manifest_lib
from poison_jax.data.batches import device_batches
from poison_jax.data.folder import Folder
from poison_jax.data.mixture import make_mixture
from poison_jax.data.store import TokenStore, open_store
from poison_jax.vocabulary import ByteVocabulary

_MEGATOKENS = flags.DEFINE_integer("megatokens", 200, "Tokens of the store.")
_SECONDS = flags.DEFINE_float("seconds", 3.0, "Time to measure each stage.")

_SHARDS = 16
_BATCH_TOKENS = 65_536
_DOCUMENT = 500  # Tokens of a document.


def main(arguments: list[str]) -> None:
  """Writes the store, measures, prints the table."""
  del arguments
  os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  table = Table("row", "rows a step", "rows", "TensorStore", "mixed", "devices")
  with tempfile.TemporaryDirectory() as folder:
    _write_store(folder)
    for length in (256, 2048):
      batch = _BATCH_TOKENS // length
      stages = [
        _rows(open_store(folder, vocabulary=None), length, batch),
        _rows(open_store(f"file://{folder}", vocabulary=None), length, batch),
        _mixed(folder, length, batch),
        _devices(folder, length, batch),
      ]
      table.add_row(
        str(length), str(batch), *(f"{s / 1e6:.1f}M tokens/s" for s in stages)
      )
  Console().print(table)


def _rate(step: Callable[[int], None]) -> float:
  """Returns tokens a second of calling `step` with 0, 1, ..."""
  step(0)
  began, steps = time.perf_counter(), 0
  while time.perf_counter() - began < _SECONDS.value:
    steps += 1
    step(steps)
  return steps * _BATCH_TOKENS / (time.perf_counter() - began)


def _rows(store: TokenStore, length: int, batch: int) -> float:
  order = np.random.default_rng(0).permutation(store.train.row_count(length))

  def step(number: int) -> None:
    first = number * batch % (order.size - batch)
    store.train.rows(order[first : first + batch], length)

  return _rate(step)


def _mixture(folder: str, length: int, batch: int):
  c = base.get_config()
  c.vocabulary.kind = "bytes"
  c.train.length, c.train.batch = length, batch
  # A poison in every step.
  steps = 100_000
  c.poison.count = steps
  c.poison.prefix_max, c.poison.payload_min, c.poison.payload_max = 20, 50, 60
  c.poison.schedule, c.poison.every_steps = "every", 1
  c.poison.rows_per_step = 1
  config = config_lib.from_config_dict(c)
  return make_mixture(config, open_store(folder, vocabulary=None), steps=steps)


def _mixed(folder: str, length: int, batch: int) -> float:
  mixture = _mixture(folder, length, batch)
  return _rate(lambda step: mixture.batch_rows(step, slice(None)))


def _devices(folder: str, length: int, batch: int) -> float:
  mixture = _mixture(folder, length, batch)
  mesh = jax.make_mesh(
    (1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec("data")
  )
  with device_batches(
    mixture, start=0, sharding=sharding, prefetch=2
  ) as batches:
    return _rate(lambda _: jax.block_until_ready(next(batches)[1]))


def _write_store(path: str) -> None:
  """Writes a store of random tokens, by hand: speed is all that it is for."""
  rng = np.random.default_rng(0)
  folder = Folder(path)
  size = _MEGATOKENS.value * 10**6 // _SHARDS // _DOCUMENT * _DOCUMENT
  starts = np.arange(0, size, _DOCUMENT)
  shards = []
  for i in range(_SHARDS):
    name = f"{i:05d}-00000"
    tokens = rng.integers(3, 259, size, np.uint16)
    tokens[starts - 1] = ByteVocabulary.eos_id
    folder.write_array(manifest_lib.tokens_name("train", name), tokens)
    folder.write_array(manifest_lib.documents_name("train", name), starts)
    shards.append(
      manifest_lib.Shard(
        name=name,
        tokens=size,
        documents=starts.size,
        hash=manifest_lib.content_hash(tokens, starts),
      )
    )
  vocabulary = ByteVocabulary()
  vocabulary.save(os.path.join(path, "vocabulary"))
  text = json.dumps({"id": "0", "text": "Once upon a time. " * 10}) + "\n"
  for name in ("prefix_documents", "prompt_documents"):
    folder.write(f"{name}.jsonl", text.encode())
  manifest = {
    "format": manifest_lib.FORMAT,
    "vocabulary": {"config": None, "fingerprint": vocabulary.fingerprint},
    "dtype": "uint16",
    "texts": {
      name: {"documents": 1, "hash": manifest_lib.bytes_hash(text.encode())}
      for name in ("prefix_documents", "prompt_documents")
    },
    "splits": {
      "train": [dataclasses.asdict(s) for s in shards],
      "held_out": [],
    },
  }
  manifest["hash"] = manifest_lib.store_hash(manifest)
  folder.write("manifest.json", json.dumps(manifest).encode())


if __name__ == "__main__":
  command.run(main)
