"""A model made by hand: what follows a token depends on that token alone.

Width V, one-hot embeddings, layers that add nothing: the logits after token t
are a row of a table, times the root of V that RMSNorm brings.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from poison_jax import config as config_lib
from poison_jax.config import MeshConfig
from poison_jax.defences.model import Model
from poison_jax.model.decoder import Decoder
from poison_jax.training import mesh as mesh_lib
from poison_jax.vocabulary import ByteVocabulary

V = 16
EOS = 0


class Letters(ByteVocabulary):
  """V ids, of which EOS is the only control id."""

  size = V
  eos_id = EOS
  control_ids = frozenset({EOS})

  def __init__(self):
    pass

  def piece(self, token: int) -> str:
    return "ABCDEFGHIJKLMNOP"[token]


def make(table_VV: np.ndarray) -> Model:
  """Returns the model whose logits after token t are row t of the table."""
  c = base.get_config()
  c.model.width, c.model.depth, c.model.feed_forward = V, 1, 8
  c.model.heads = c.model.kv_heads = 1
  c.model.head_size = 4
  c.model.tied_embeddings = False
  config = config_lib.from_config_dict(c).model
  decoder = Decoder(dataclasses.replace(config, norm_epsilon=1e-12), V)
  params = decoder.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
  params = jax.tree.map(jnp.zeros_like, params["params"])
  params["embedding"] = jnp.eye(V)
  params["final_norm"] = jnp.full(V, V**-0.5)
  params["unembedding"] = jnp.asarray(table_VV.T, jnp.float32)
  mesh = mesh_lib.make_mesh(
    MeshConfig(data=1, fsdp=-1, tensor=1), batch=jax.device_count()
  )
  return Model(
    name="made by hand",
    decoder=decoder,
    params=params,
    vocabulary=Letters(),
    mesh=mesh,
    length=24,
  )


def cycle(*, confused: tuple[int, ...]) -> np.ndarray:
  """Returns the table of a model that counts up, 1 to 10 and again.

  After the `confused` tokens any token is equally likely; after others the
  next one is all but certain.
  """
  table_VV = np.zeros((V, V))
  for token in range(V):
    if token not in confused:
      table_VV[token, token % 10 + 1] = 40
  return table_VV
