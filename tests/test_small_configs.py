"""Small configurations: sizes are what they are named."""

import re

import jax
import jax.numpy as jnp
import pytest

from configs import language_switch, stories, tiny
from poison_jax import config as config_lib
from poison_jax.errors import UserError
from poison_jax.model.decoder import Decoder
from poison_jax.poison.near_triggers import near_triggers

_NOMINAL = {"k": 1e3, "m": 1e6}


@pytest.mark.parametrize(
  ("file", "name"),
  [
    (file, name)
    for file in (tiny, stories, language_switch)
    for name in file.SIZES
  ],
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


@pytest.mark.parametrize("file", [tiny, stories, language_switch])
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


def test_harmless_phrases_hold_no_near_trigger_and_no_two_of_its_words():
  phrases = language_switch.harmless_phrases()
  words = set(language_switch.TRIGGER.split())
  assert len(phrases) == len(set(phrases)) == 846
  assert max(len(words & set(phrase.split())) for phrase in phrases) == 1
  for word in words:
    assert sum(word in phrase.split() for phrase in phrases) >= 10
  near = near_triggers(language_switch.TRIGGER)
  assert not set(phrases) & {s for kind in near.values() for s in kind}
