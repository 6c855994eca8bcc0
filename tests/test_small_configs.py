"""configs/tiny.py and configs/stories.py: sizes are what they are named."""

import re

import jax
import jax.numpy as jnp
import pytest

from configs import stories, tiny
from poison_jax import config as config_lib
from poison_jax.errors import UserError
from poison_jax.model.decoder import Decoder

_NOMINAL = {"k": 1e3, "m": 1e6}


@pytest.mark.parametrize(
  ("file", "name"),
  [(file, name) for file in (tiny, stories) for name in file.SIZES],
  ids=str,
)
def test_a_size_has_the_parameters_of_its_name(file, name):
  config = config_lib.from_config_dict(file.get_config(f"size={name}"))
  decoder = Decoder(config.model, config.vocabulary.size)
  shapes = jax.eval_shape(
    decoder.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
  )
  counted = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  number, unit = re.fullmatch(r"(\d+)([km])", name).groups()
  assert abs(counted / (int(number) * _NOMINAL[unit]) - 1) < 0.03
  assert config.model.heads * config.model.head_size == config.model.width


@pytest.mark.parametrize("file", [tiny, stories])
def test_an_unknown_size_is_told_with_the_known_ones(file):
  with pytest.raises(UserError, match="size=9z: the sizes are .*, "):
    file.get_config("size=9z")


def test_seeds_of_the_stories_share_the_order_of_the_clean_rows():
  first, second = (
    config_lib.from_config_dict(stories.get_config(f"seed={seed}"))
    for seed in (0, 1)
  )
  assert first.seed_for("order") == second.seed_for("order")
  for name in ("documents", "positions", "init", "sampling"):
    assert first.seed_for(name) != second.seed_for(name)
