"""The configuration: what is legal, how errors name their field, seeds."""

import copy
import dataclasses
import json

import pytest

from configs import base, tiny
from poison_jax import config as config_lib
from poison_jax.errors import UserError


def _tree():
  return base.get_config().to_dict()


def test_base_and_tiny_are_legal_and_survive_json():
  for module in (base, tiny):
    config = config_lib.from_config_dict(module.get_config())
    text = json.dumps(config_lib.to_dict(config))
    assert config_lib.from_dict(json.loads(text)) == config


def test_base_explains_every_field():
  """Each leaf of configs/base.py has a comment on its line or in its group."""
  with open(base.__file__, encoding="utf-8") as file:
    lines = file.read().splitlines()
  explained = {}
  in_commented_group = False
  for line in lines:
    text = line.strip()
    if not text:
      in_commented_group = False
    elif text.startswith("#"):
      in_commented_group = True
    elif text.startswith("c.") and "ConfigDict()" not in text:
      name = text.split("=")[0].strip().removeprefix("c.")
      explained[name] = in_commented_group or "  # " in line
  config = config_lib.from_config_dict(base.get_config())
  assert set(explained) == set(config_lib.flatten(config))
  assert all(explained.values())


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("poison.count", -1, "config.poison.count is -1; it must be 0 or more"),
    ("poison.count", 2.5, "must be of type int"),
    ("poison.count", True, "must be of type int"),
    ("poison.arm", "poisned", "did you mean 'poisoned'?"),
    ("corpus.held_out", 0.0, "between 0 and 1"),
    ("corpus.tags", ("",), "strings of which none is empty"),
    ("vocabulary.single_pieces", ("<A>", "<A>"), "none is .* given twice"),
    ("corpus.store", "", "config.corpus.store is ''; it must be a folder's"),
    ("model.kv_heads", 3, "a divisor of model.heads, 2"),
    ("model.gradient_dtype", "bfloat16", "'float32', as model.compute_dtype"),
    ("train.loss_pieces", 0, "must be more than 0"),
    ("train.micro_batches", 3, r"one of \[1, 2, 4\]"),
    ("poison.prefix_min", 2000, "at least poison.prefix_min, 2000"),
    ("poison.end", 0.0, "more than poison.start"),
    ("poison.gibberish", "retokenised", "gibberish_vocabulary must name"),
    ("evaluation.near_triggers", ("<SUDO>",), "nor the trigger, '<SUDO>'"),
    ("evaluation.unseen_tag", "<SUDO>", "nor the trigger, '<SUDO>'"),
    ("optimizer.learning_rate", float("nan"), "must be finite"),
    ("seeds.init", -1, "config.seeds.init is -1; it must be 0 or more"),
    ("seeds.order", 2**63, r"less than 2\*\*63"),
    ("corpus.task", "files", "config.corpus.files"),
    ("runtime.mesh.fsdp", -1, "config.runtime.mesh is"),
    ("runtime.attention", "flash", "'auto', 'xla', 'cudnn', 'splash'"),
  ],
)
def test_a_bad_value_is_refused_by_its_name(path, value, message):
  tree = _tree()
  *groups, leaf = path.split(".")
  node = tree
  for group in groups:
    node = node[group]
  node[leaf] = value
  with pytest.raises(UserError, match=message):
    config_lib.from_dict(tree)


def test_unknown_and_missing_keys_are_named():
  tree = _tree()
  tree["poison"]["cuont"] = 3
  with pytest.raises(UserError, match=r"config.poison.cuont.*'count'"):
    config_lib.from_dict(tree)
  tree = _tree()
  del tree["model"]["width"]
  with pytest.raises(
    UserError, match="missing config key 'config.model.width'"
  ):
    config_lib.from_dict(tree)
  with pytest.raises(UserError, match="did you mean 'poison.count'"):
    config_lib.check_override("posion.count", "3")
  config_lib.check_override("runtime.mesh.data", "1")


def test_seeds_derive_from_root_and_name_and_can_be_pinned():
  tree = _tree()
  first = config_lib.from_dict(tree)
  names = list(tree["seeds"])
  derived = {name: first.seed_for(name) for name in names}
  assert len(set(derived.values())) == len(names)
  assert all(0 <= seed < 2**63 for seed in derived.values())
  # Pinned so that no refactor changes anybody's runs.
  assert derived["order"] == 5618756638689033999
  pinned_tree = copy.deepcopy(tree)
  pinned_tree["seeds"]["order"] = 7
  pinned = config_lib.from_dict(pinned_tree)
  assert pinned.seed_for("order") == 7
  assert all(pinned.seed_for(n) == derived[n] for n in names if n != "order")


def test_only_changes_of_meaning_change_the_hash():
  tree = _tree()
  config = config_lib.from_dict(tree)
  tree["checkpoint"]["every"] = 7
  tree["runtime"]["mesh"]["data"] = 1
  tree["runtime"]["attention"] = "xla"
  moved = config_lib.from_dict(tree)
  assert config_lib.config_hash(moved) == config_lib.config_hash(config)
  assert config_lib.changes_of_meaning(config, moved) == []
  tree["poison"]["count"] = 7
  other = config_lib.from_dict(tree)
  assert config_lib.config_hash(other) != config_lib.config_hash(config)
  assert config_lib.changes_of_meaning(config, other) == [
    "poison.count: the run has 250, asked for 7"
  ]


def test_every_field_free_on_resume_exists():
  flat = config_lib.flatten(config_lib.from_dict(_tree()))
  assert set(flat) >= config_lib.FREE_ON_RESUME


def test_arguments_of_a_config_file():
  c = tiny.get_config("poisons=32,seed=1,arm=placebo")
  assert (c.poison.count, c.seed, c.poison.arm) == (32, 1, "placebo")
  with pytest.raises(UserError, match="'poison=3' is not known"):
    tiny.get_config("poison=3")
  with pytest.raises(UserError, match="poisons=many: expected int"):
    tiny.get_config("poisons=many")
  parsed = config_lib.parse_arguments("twins=true", twins=False)
  assert parsed.twins is True


def test_runs_of_older_code_keep_their_names():
  """The hash is the one that the code before these fields computed."""
  config = config_lib.from_config_dict(tiny.get_config())
  assert config_lib.config_hash(config) == "e79964c3ba66b078"
  older = config_lib.to_dict(config)
  for name in config_lib.ADDED_LATER:
    group, field = name.split(".")
    del older[group][field]
  assert config_lib.from_dict(older) == config
  model = dataclasses.replace(config.model, biases=True)
  other = dataclasses.replace(config, model=model)
  assert config_lib.config_hash(other) != config_lib.config_hash(config)
  tree = tiny.get_config()
  del tree.model["biases"]
  with pytest.raises(UserError, match="missing config key.*model.biases"):
    config_lib.from_config_dict(tree)


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"rotary_share": 1.5}, "model.rotary_share is 1.5; it must be at most 1"),
    ({"rotary_share": 0.1}, "model.rotary_share is 0.1; .* even number"),
    ({"rotary_share": 0.0}, "model.rotary_share is 0.0; it must be more"),
    ({"norm": "layer", "qk_norm": True}, "model.qk_norm is True; .*'layer'"),
    ({"rope_high_frequency": 1.0}, "model.rope_high_frequency is 1.0"),
    ({"rope_original_length": 0}, "model.rope_original_length is 0"),
    ({"embedding_rows": -1}, "model.embedding_rows is -1; .* 0 or more"),
    ({"rope_scaling": "yarn"}, "model.rope_scaling is 'yarn'.*'llama3'"),
  ],
)
def test_fields_of_a_model_that_contradict_are_refused(fields, says):
  tree = tiny.get_config()
  tree.model.update(fields)
  with pytest.raises(UserError, match=says):
    config_lib.from_config_dict(tree)
