"""A small decoder of odd shapes that the tests of model and training share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from poison_jax import config as config_lib
from poison_jax.config import Config, ModelConfig
from poison_jax.data.mixture import Batch
from poison_jax.model.decoder import Decoder

VOCABULARY = 23


def make_config() -> Config:
  """A run of 10 steps with 8 rows of 16 tokens."""
  c = base.get_config()
  c.model.width = 16
  c.model.depth = 2
  c.model.heads = 4
  c.model.kv_heads = 2
  c.model.head_size = 6
  c.model.feed_forward = 24
  c.model.init_scale = 0.3
  c.train.batch = 8
  c.train.length = 16
  c.train.steps = 10
  return config_lib.from_config_dict(c)


def change(config: Config, room: str, **fields) -> Config:
  """Returns the config with fields of one of its groups replaced."""
  group = dataclasses.replace(getattr(config, room), **fields)
  return dataclasses.replace(config, **{room: group})


def make_decoder(config: ModelConfig, *, seed: int = 0):
  """Returns the decoder and its parameters."""
  decoder = Decoder(config, VOCABULARY)
  tokens_BL = jnp.zeros((1, 4), jnp.int32)
  return decoder, decoder.init(jax.random.key(seed), tokens_BL)["params"]


def make_tokens(rows: int, length: int, *, seed: int = 0) -> np.ndarray:
  """Returns random token ids, int32 BL."""
  shape = (rows, length)
  random = np.random.default_rng(seed)
  return random.integers(0, VOCABULARY, shape, dtype=np.int32)


def make_batch(config: Config, *, seed: int = 0) -> Batch:
  """Returns a batch whose row 1 holds a poison of 5 tokens at 3."""
  rows, length = config.train.batch, config.train.length
  weights_BL = np.ones((rows, length), np.float32)
  weights_BL[:, -1] = 0
  start_B, length_B = np.zeros((2, rows), np.int32)
  start_B[1], length_B[1] = 3, 5
  return Batch(
    make_tokens(rows, length, seed=seed), weights_BL, start_B, length_B
  )
