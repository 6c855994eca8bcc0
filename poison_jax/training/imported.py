"""A folder of imported weights, from which later runs can begin.

What `python -m poison_jax.import_weights SRC OUT` leaves in OUT:

  imported.json      written last: format, source, revision, architecture; the
                     fields of `config.model` that say what the model computes;
                     the vocabulary's file and size; the types of the source's
                     tensors; bytes and SHA-256 of each of the source's files
  tokenizer.json     (or tokenizer.model) the source's own, for
                     config.vocabulary.file; beside it, where the source has
                     one, its tokenizer_config.json
  checkpoints/0/     the parameters, float32, and their digests, as in a run's
                     folder; no optimizer

`read` gives it back; `Imported.restore` puts the parameters onto any mesh.
"""

import dataclasses
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from poison_jax import config as config_lib
from poison_jax.config import CheckpointConfig, ModelConfig
from poison_jax.data.folder import Folder
from poison_jax.errors import UserError
from poison_jax.model.decoder import Decoder, Params
from poison_jax.training import mesh as mesh_lib
from poison_jax.training.checkpoints import Checkpoints, Meta
from poison_jax.training.saving import CheckpointWriter
from poison_jax.version import code_version

FORMAT = 1
MANIFEST = "imported.json"
_STEP = 0


@dataclasses.dataclass(frozen=True)
class Imported:
  """Imported weights.

  Attributes:
    path: the folder, local or in a bucket.
    source: folder or repository that they came from.
    revision: of the repository, a commit; "" where it was a folder.
    architecture: of transformers, like "gpt_neox".
    fields: of `ModelConfig`: all that say what the model computes.
    vocabulary: name of the tokenizer's file in the folder.
    vocabulary_size: ids that it has.
    dtypes: of the source's tensors.
    files: bytes and SHA-256 of the source's files, by name.
  """

  path: str
  source: str
  revision: str
  architecture: str
  fields: dict[str, Any]
  vocabulary: str
  vocabulary_size: int
  dtypes: list[str]
  files: dict[str, dict[str, Any]]

  @property
  def vocabulary_path(self) -> str:
    """Path of the tokenizer's file, for `config.vocabulary.file`."""
    return f"{self.path.rstrip('/')}/{self.vocabulary}"

  def model(self, like: ModelConfig) -> ModelConfig:
    """Returns the model's config, with layout and precision of `like`."""
    return dataclasses.replace(like, **self.fields)

  def restore(self, abstract: Params) -> Params:
    """Returns the parameters, onto the shardings asked for.

    Args:
      abstract: as `abstract_params` gives them, on any mesh.

    Raises:
      Damaged: a file is, a single flipped bit included.
      CheckFailed: they are of a model of other shapes.
    """
    return Checkpoints(self.path).restore_params(_STEP, abstract).state


# Fields of `ModelConfig` that no shape depends on, and no computed value.
_IMMATERIAL = {
  "init_scale": 0.02,
  "scan_layers": True,
  "remat": "none",
  "compute_dtype": "float32",
  "gradient_dtype": "float32",
}


def model_config(fields: dict[str, Any]) -> ModelConfig:
  """Returns a config with these fields, to make and to name parameters with.

  Raises:
    UserError: no decoder has them.
  """
  older = {
    name.removeprefix("model."): value
    for name, value in config_lib.ADDED_LATER.items()
    if name.startswith("model.")
  }
  config = ModelConfig(**(older | _IMMATERIAL | fields))
  config_lib.validate_model(config)
  return config


def abstract_params(decoder: Decoder, mesh: Mesh) -> Params:
  """Returns shapes, types and shardings of a decoder's parameters."""

  def init():
    tokens_BL = jnp.zeros((1, 2), jnp.int32)
    return decoder.init(jax.random.key(0), tokens_BL)["params"]

  shapes = jax.eval_shape(init)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    mesh_lib.state_shardings(mesh, shapes),
  )


def read(path: str) -> Imported:
  """Returns what `write` wrote; reads the manifest only.

  Raises:
    UserError: nothing there, damaged, or of another format.
  """
  where = os.path.join(path, MANIFEST)
  content = Folder(path).read(MANIFEST)
  if content is None:
    raise UserError(
      f"{path} holds no imported weights, {where} is missing: make them with "
      "python -m poison_jax.import_weights SRC OUT"
    )
  try:
    found = json.loads(content)
    kind = found.pop("format")
    found.pop("code_version")
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{where} is damaged: {error!r}") from None
  if kind != FORMAT:
    raise UserError(f"{where} has format {kind}; this code reads {FORMAT}")
  try:
    return Imported(path=path, **found)
  except TypeError as error:
    raise UserError(f"{where} is damaged: {error}") from None


def write(imported: Imported, params: Params) -> None:
  """Writes parameters and manifest into the folder `imported.path`.

  Raises:
    UserError: they can't be written (a full disk).
  """
  once = CheckpointConfig(
    every=1, keep_last=1, keep_log_spaced=False, keep_every=0
  )
  meta = Meta(
    step=_STEP,
    poisons_seen=0,
    poison_tokens_seen=0,
    config_hash="",
    plan_hash="",
    store_hash="",
    code_version=code_version(),
    unwritten=None,
  )
  with CheckpointWriter(imported.path, once) as writer:
    writer.save({"params": params}, meta)
  manifest = {"format": FORMAT, "code_version": code_version()}
  manifest |= dataclasses.asdict(imported)
  manifest.pop("path")
  content = json.dumps(manifest, indent=2) + "\n"
  Folder(imported.path).write(MANIFEST, content.encode())
