"""The oracle's small models of transformers, imported as commands do it."""

import json
import pathlib
import shutil

import jax
import numpy as np
import tokenizers
from safetensors.numpy import load_file

from poison_jax.config import MeshConfig
from poison_jax.model.decoder import Decoder
from poison_jax.training import checkpoints, imported
from poison_jax.training import mesh as mesh_lib
from poison_jax.weights import architectures, files, layout

ORACLES = pathlib.Path(__file__).parent / "oracles" / "huggingface"
CASES = sorted(p.name for p in ORACLES.iterdir() if p.is_dir())


def config_json(case: str) -> dict:
  return json.loads((ORACLES / case / "config.json").read_text())


def tensors_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns all tensors of a folder's files."""
  found = {}
  for path in sorted(folder.glob("*.safetensors")):
    found |= load_file(path)
  return found


def model_of(folder: pathlib.Path):
  """Returns the model config, decoder, tensors and abstract parameters."""
  path = folder / "config.json"
  fields = architectures.read_config(json.loads(path.read_text()), path="there")
  model = imported.model_config(fields)
  decoder = Decoder(model, model.embedding_rows)
  mesh = mesh_lib.make_mesh(MeshConfig(1, -1, 1), batch=jax.device_count())
  abstract = imported.abstract_params(decoder, mesh)
  by_path = dict(checkpoints.flat(abstract))
  shapes = {path: leaf.shape for path, leaf in by_path.items()}
  return model, decoder, layout.tensors(model, shapes), by_path


def load(folder: pathlib.Path):
  """Returns the decoder and its parameters, as the command imports them."""
  model, decoder, tensors, by_path = model_of(folder)
  there = files.Files(str(folder))
  there.check(tensors, tied=model.tied_embeddings)
  return decoder, checkpoints.nest(files.load(there, tensors, by_path))


def make_source(case: str, folder: pathlib.Path) -> pathlib.Path:
  """Copies a case and gives it a tokenizer of fewer ids than it has rows."""
  shutil.copytree(ORACLES / case, folder)
  pieces = {"<|endoftext|>": 0, "?": 1}
  pieces |= {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz ", start=2)}
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=pieces, merges=[], unk_token="?")
  )
  tokenizer.add_special_tokens(["<|endoftext|>"])
  (folder / "tokenizer.json").write_text(tokenizer.to_str())
  return folder
