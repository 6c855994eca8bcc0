"""Imports a model in Hugging Face's layout, for runs to go on from.

  python -m poison_jax.import_weights models/pythia-70m imported/pythia-70m
  python -m poison_jax.import_weights EleutherAI/pythia-6.9b-deduped \\
    imported/pythia-6.9b --revision=step71000

SRC is a local folder, or a repository of the Hugging Face hub; its weights
must be safetensors. Llama 2 to 3.1, Qwen 3 and GPT-NeoX (Pythia) can be read.
OUT gets the parameters as float32, the tokenizer, and a manifest that names the
source: see `poison_jax.training.imported`. One process, its own devices.

Loading takes the parameters' own memory and one tensor more; writing them, by
orbax, up to twice their size in host memory for a while (466 MB of them: 0.92
GB more; shared 2-core VM, 2026-11-22).
"""

import os
import shutil

import jax
from absl import flags

from poison_jax import command
from poison_jax import vocabulary as vocabulary_lib
from poison_jax.config import MeshConfig
from poison_jax.errors import UserError
from poison_jax.model import counts
from poison_jax.model.decoder import Decoder
from poison_jax.training import checkpoints, imported
from poison_jax.training import mesh as mesh_lib
from poison_jax.training.imported import Imported
from poison_jax.vocabulary import Vocabulary
from poison_jax.weights import architectures, files, layout, source
from poison_jax.weights.folder import new_folder
from poison_jax.weights.source import Source

_REVISION = flags.DEFINE_string(
  "revision",
  None,
  "Branch, tag or commit of the hub's repository, like step71000.",
)


def main(arguments: list[str]) -> None:
  """Imports what `arguments` name."""
  if len(arguments) != 2:
    raise UserError(
      "usage: python -m poison_jax.import_weights SRC OUT [--revision=R]"
    )
  name, out = arguments
  with new_folder(out) as folder:
    found = source.find(name, revision=_REVISION.value)
    made = _import(found, folder)
  size = counts.count_parameters(
    imported.model_config(made.fields), made.vocabulary_size
  )
  print(f"written: {out}: {made.architecture}, {size.total:,} parameters")


def _import(found: Source, folder: str) -> Imported:
  """Writes what was found into the folder."""
  path = os.path.join(found.folder, source.CONFIG)
  fields = architectures.read_config(found.config(), path=path)
  model = imported.model_config(fields)
  tokenizer = found.tokenizer()
  vocabulary = vocabulary_lib.load_file(tokenizer)
  _check_vocabulary(vocabulary, tokenizer, fields)
  decoder = Decoder(model, vocabulary.size)
  mesh = mesh_lib.make_mesh(MeshConfig(1, -1, 1), batch=jax.device_count())
  abstract = imported.abstract_params(decoder, mesh)
  by_path = dict(checkpoints.flat(abstract))
  tensors = layout.tensors(model, {k: v.shape for k, v in by_path.items()})
  there = files.Files(found.folder)
  there.check(tensors, tied=model.tied_embeddings)
  low = sorted(there.dtypes - {"float32"})
  if low:
    print(f"{found.folder}: {', '.join(low)} is converted to float32")
  values = files.load(there, tensors, by_path)
  made = Imported(
    path=folder,
    source=found.name,
    revision=found.revision,
    architecture=architectures.architecture(model),
    fields=fields,
    vocabulary=os.path.basename(tokenizer),
    vocabulary_size=vocabulary.size,
    dtypes=sorted(there.dtypes),
    files=source.fingerprint(
      found.folder, [*there.names, source.CONFIG, os.path.basename(tokenizer)]
    ),
  )
  _copy_tokenizer(tokenizer, folder)
  imported.write(made, checkpoints.nest(values))
  return made


def _check_vocabulary(vocabulary: Vocabulary, path: str, fields: dict) -> None:
  rows = fields["embedding_rows"]
  if vocabulary.size > rows:
    raise UserError(
      f"{path}: has {vocabulary.size} ids, more than the model's {rows}"
    )


def _copy_tokenizer(path: str, folder: str) -> None:
  beside = os.path.join(os.path.dirname(path), source.TOKENIZER_CONFIG)
  for file in (path, beside):
    if os.path.isfile(file):
      shutil.copyfile(file, os.path.join(folder, os.path.basename(file)))


if __name__ == "__main__":
  command.run(main)
