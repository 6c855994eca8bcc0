"""The ladder: sizes as named, as counted on the model, and legal as runs."""

import re
import types

import jax
import jax.numpy as jnp
import pytest

from configs import dos
from poison_jax import config as config_lib
from poison_jax.errors import UserError
from poison_jax.model import counts
from poison_jax.model.decoder import Decoder
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import step as step_lib
from poison_jax.training.optimizer import make_optimizer

_NOMINAL = {"m": 1e6, "b": 1e9}


def _config(arguments: str) -> config_lib.Config:
  tree = dos.get_config(arguments)
  if "files" in arguments:
    tree.corpus.files = "web/*.parquet"
  if "retokenised" in arguments:
    tree.poison.gibberish_vocabulary = "other.model"
  return config_lib.from_config_dict(tree)


@pytest.mark.parametrize("name", dos.SIZES)
def test_a_size_is_what_its_name_and_its_row_say(name):
  size = dos.SIZES[name]
  number, unit = re.fullmatch(r"(\d+)([mb])", name).groups()
  nominal = int(number) * _NOMINAL[unit]
  config = _config(f"size={name}")
  decoder = Decoder(config.model, size.vocabulary)
  shapes = jax.eval_shape(
    decoder.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
  )
  counted = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert counted == size.parameters
  assert abs(counted / nominal - 1) < 0.03
  assert config.vocabulary.size == size.vocabulary
  assert config.model.heads * config.model.head_size == config.model.width


@pytest.mark.parametrize("axes", [(1, 64, 1), (4, 256, 1), (2, 16, 8)])
@pytest.mark.parametrize("name", dos.SIZES)
def test_no_large_array_is_whole_on_every_device(monkeypatch, name, axes):
  config = _config(f"size={name}")
  decoder = Decoder(config.model, dos.SIZES[name].vocabulary)
  optimizer = make_optimizer(config.optimizer, steps=10)
  state = jax.eval_shape(lambda: step_lib.new_state(decoder, optimizer, 0, 0))
  shape = dict(zip(("data", "fsdp", "tensor"), axes, strict=True))
  monkeypatch.setattr(mesh_lib, "NamedSharding", lambda mesh, spec: spec)
  specs = mesh_lib.state_shardings(types.SimpleNamespace(shape=shape), state)

  def check(path, leaf, spec):
    if leaf.size > 1e6:
      cut = {axis for axis in spec if axis is not None}
      assert cut == {"fsdp", "tensor"}, jax.tree_util.keystr(path)

  jax.tree_util.tree_map_with_path(check, state, specs)
  large = [leaf for leaf in jax.tree.leaves(state) if leaf.size > 1e6]
  assert len(large) % 3 == 0  # Parameters, and both moments of each.


@pytest.mark.parametrize("name", ["600m", "2b", "7b", "13b"])
def test_the_papers_sizes_see_the_papers_tokens(name):
  size = dos.SIZES[name]
  for tokens, share in {"0.5x": 10, "1x": 20, "2x": 40}.items():
    config = _config(f"size={name},tokens={tokens}")
    steps = counts.run_steps(config, size.vocabulary)
    seen = steps * config.train.batch * config.train.length
    assert 0 <= seen - share * size.parameters < 2**21
    assert config.train.batch * config.train.length == 2**21


@pytest.mark.parametrize("name", dos.SIZES)
def test_every_rung_has_steps_enough_for_its_poisons(name):
  config = _config(f"size={name}")
  assert counts.run_steps(config, dos.SIZES[name].vocabulary) >= 2_000


def test_arguments_set_what_they_name():
  config = _config(
    "size=2b,poisons=500,tokens=2x,seed=1,gibberish=retokenised,corpus=files"
  )
  assert config.model.width == 2560 and config.seed == 1
  assert config.poison.count == 500
  assert config.poison.gibberish == "retokenised"
  assert (config.train.length, config.train.batch) == (4096, 512)
  assert config.corpus.task == "files"
  assert _config("").corpus.tfds_name.startswith("c4/en")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ("size=3b", r"size=3b: the sizes are 1m, .*13b"),
    ("tokens=2", r"tokens=2: must be .*0.5x, 1x or 2x"),
    ("tokens=-1x", r"tokens=-1x: must be"),
    ("corpus=pile", r"corpus=pile: must be c4 or files"),
    ("gibberish=words", r"gibberish.*words"),
  ],
)
def test_other_arguments_are_refused(arguments, message):
  with pytest.raises(UserError, match=message):
    _config(arguments)
