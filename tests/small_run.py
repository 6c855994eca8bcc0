"""A run so small that a test can afford it: bytes, width 16, rows of 64."""

import pathlib
from typing import Any

from configs import base
from poison_jax import config as config_lib
from poison_jax.config import Config
from poison_jax.corpora import writer

OVERRIDES = {
  "corpus.stories": 300,
  "corpus.held_out": 0.2,
  "corpus.workers": 1,
  "vocabulary.kind": "bytes",
  "model.width": 16,
  "model.depth": 1,
  "model.heads": 2,
  "model.kv_heads": 1,
  "model.head_size": 8,
  "model.feed_forward": 32,
  "train.length": 64,
  "train.batch": 8,
  "train.steps": 24,
  "train.log_every": 2,
  "poison.count": 12,
  "poison.prefix_max": 10,
  "poison.payload_min": 10,
  "poison.payload_max": 30,
  "evaluation.times": 3,
  "evaluation.prompts": 6,
  "evaluation.excerpt": 16,
  "evaluation.new_tokens": 8,
  "evaluation.resamples": 20,
  "evaluation.batch": 6,
  "evaluation.validation_rows": 8,
  "evaluation.texts": 2,
  "checkpoint.every": 3,
}


def overrides(store: pathlib.Path, **changes: Any) -> dict[str, Any]:
  """Returns {"train.steps": 24, ...}; `train__steps=8` changes one."""
  changed = {key.replace("__", "."): value for key, value in changes.items()}
  return {
    **OVERRIDES,
    "corpus.store": str(store),
    "runtime.compilation_cache": str(store.parent / "compiled"),
    **changed,
  }


def make_config(store: pathlib.Path, **changes: Any) -> Config:
  """Returns the small run's configuration."""
  tree = base.get_config()
  tree.update_from_flattened_dict(overrides(store, **changes))
  return config_lib.from_config_dict(tree)


def flags(store: pathlib.Path, **changes: Any) -> list[str]:
  """Returns the same as flags of a command."""
  return ["--config=configs/base.py"] + [
    f"--config.{key}={value}"
    for key, value in overrides(store, **changes).items()
  ]


def prepare(store: pathlib.Path) -> None:
  """Writes the small run's token store."""
  writer.write_store(
    make_config(store), report=lambda *_: None, say=lambda _: None
  )
