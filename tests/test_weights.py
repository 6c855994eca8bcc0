"""Foreign weights: transformers' own logits and tensors, both ways."""

import json
import math

import jax
import jax.numpy as jnp
import made_weights
import numpy as np
import pytest
from made_weights import CASES, ORACLES
from small_model import make_config

from poison_jax.config import ModelConfig
from poison_jax.errors import UserError
from poison_jax.evaluation.generation import sampling_function
from poison_jax.model import counts
from poison_jax.model.decoder import Decoder
from poison_jax.training import checkpoints
from poison_jax.weights import architectures, files

# Far below the least gap between the best two logits: sampling is greedy.
_COLD = 1e-6


def _oracle(case: str) -> dict[str, np.ndarray]:
  with np.load(ORACLES / case / "oracle.npz") as file:
    return dict(file)


@pytest.mark.parametrize("case", CASES)
def test_imported_logits_are_those_of_transformers(case):
  decoder, params = made_weights.load(ORACLES / case)
  oracle = _oracle(case)
  variables = {"params": params}
  hidden_BLD = decoder.apply(variables, oracle["tokens"])
  logits_BLV = decoder.apply(variables, hidden_BLD, method=Decoder.unembed)
  assert np.abs(oracle["logits"]).max() > 1
  np.testing.assert_allclose(logits_BLV, oracle["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_greedy_generations_are_those_of_transformers(case):
  """Through the cache, from prompts of two lengths in one batch."""
  decoder, params = made_weights.load(ORACLES / case)
  oracle = _oracle(case)
  greedy_BT = oracle["greedy"]
  new_tokens = greedy_BT.shape[1]
  # The second row's prompt has the first tokens of its continuation.
  prompts = [
    oracle["tokens"][0, :9],
    np.concatenate([oracle["tokens"][1, :9], greedy_BT[1, :3]]),
  ]
  tokens_PL = np.zeros((2, 12), np.int32)
  for row, prompt in zip(tokens_PL, prompts, strict=True):
    row[: len(prompt)] = prompt
  run = jax.jit(sampling_function(decoder, new_tokens, _COLD))
  made = run(
    params,
    np.zeros(2, np.uint32),
    tokens_PL,
    np.array([9, 12], np.int32),
    np.arange(2, dtype=np.int32),
  )
  np.testing.assert_array_equal(made.tokens_PT[0], greedy_BT[0])
  np.testing.assert_array_equal(made.tokens_PT[1][:-3], greedy_BT[1][3:])
  assert len(set(greedy_BT.ravel().tolist())) > 2


@pytest.mark.parametrize("case", CASES)
def test_counted_parameters_are_those_of_the_files(case):
  model, _, _, by_path = made_weights.model_of(ORACLES / case)
  there = made_weights.tensors_of(ORACLES / case)
  counted = counts.count_parameters(model, 5)
  assert counted.total == sum(x.size for x in there.values())
  assert counted.total == sum(x.size for x in by_path.values())


@pytest.mark.parametrize("largest", [20_000, 5_000_000_000])
@pytest.mark.parametrize("case", CASES)
def test_exported_files_are_those_that_were_imported(case, largest, tmp_path):
  model, _, tensors, _ = made_weights.model_of(ORACLES / case)
  _, params = made_weights.load(ORACLES / case)
  by_path = dict(checkpoints.flat(params))
  names = files.write(str(tmp_path), tensors, by_path, largest=largest)
  theirs = made_weights.tensors_of(ORACLES / case)
  ours = made_weights.tensors_of(tmp_path)
  assert ours.keys() == theirs.keys()
  for name, array in theirs.items():
    np.testing.assert_array_equal(ours[name], array, err_msg=name)
  assert (len(names) > 1) == (largest == 20_000)
  for name in names:
    if name.endswith(".safetensors"):
      size = (tmp_path / name).stat().st_size
      assert size < max(largest, 28_000)  # The largest tensor: 27,648.
  config = architectures.write_config(
    model, rows=model.embedding_rows, length=64, eos_id=0
  )
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert made_weights.model_of(tmp_path)[0] == model
  _, again = made_weights.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, again, params)


# What transformers writes beside what the two have in common.
_UNWRITTEN = {
  "transformers_version",
  "use_cache",
  "attention_dropout",
  "classifier_dropout",
  "hidden_dropout",
  "is_decoder",
  "pad_token_id",
  "pretraining_tp",
  "layer_types",
  "max_window_layers",
  "sliding_window",
  "use_sliding_window",
}


@pytest.mark.parametrize("case", CASES)
def test_an_exported_config_is_the_one_that_transformers_wrote(case):
  model, *_ = made_weights.model_of(ORACLES / case)
  config = architectures.write_config(
    model, rows=model.embedding_rows, length=64, eos_id=0
  )
  theirs = made_weights.config_json(case)
  assert {k: config.get(k, "missing") for k in theirs.keys() - _UNWRITTEN} == {
    k: v for k, v in theirs.items() if k not in _UNWRITTEN
  }


@pytest.mark.parametrize("case", CASES)
def test_configs_of_transformers_4_are_read_as_well(case):
  theirs = made_weights.config_json(case)
  rope = theirs.pop("rope_parameters")
  neox = theirs["model_type"] == "gpt_neox"
  theirs["rotary_emb_base" if neox else "rope_theta"] = rope.pop("rope_theta")
  if neox:
    theirs["rotary_pct"] = rope.pop("partial_rotary_factor")
  if rope["rope_type"] != "default":
    theirs["rope_scaling"] = rope
  fields = architectures.read_config(theirs, path="there")
  new = architectures.read_config(made_weights.config_json(case), path="there")
  assert fields == new


def test_weights_of_half_the_width_become_float32(tmp_path):
  from safetensors.numpy import save_file

  theirs = made_weights.tensors_of(ORACLES / "llama_tied")
  source = made_weights.make_source("llama_tied", tmp_path / "low")
  low = {
    name: array.astype(np.float16 if i % 2 else jnp.bfloat16)
    for i, (name, array) in enumerate(theirs.items())
  }
  save_file(low, source / "model.safetensors")
  model, _, tensors, by_path = made_weights.model_of(source)
  there = files.Files(str(source))
  there.check(tensors, tied=True)
  assert there.dtypes == {"float16", "bfloat16"}
  values = files.load(there, tensors, by_path)
  assert {x.dtype for x in values.values()} == {np.dtype("float32")}
  np.testing.assert_array_equal(
    values["embedding"],
    low["model.embed_tokens.weight"].astype(np.float32),
  )


def test_buffers_and_a_second_tied_matrix_are_passed_over(tmp_path):
  from safetensors.numpy import save_file

  theirs = made_weights.tensors_of(ORACLES / "llama_tied")
  source = made_weights.make_source("llama_tied", tmp_path / "old")
  theirs["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, "float32")
  theirs["lm_head.weight"] = theirs["model.embed_tokens.weight"]
  save_file(theirs, source / "model.safetensors")
  _, params = made_weights.load(source)
  assert "unembedding" not in params


@pytest.mark.parametrize(
  ("case", "change", "says"),
  [
    ("llama3", {"model_type": "mamba"}, "model_type is 'mamba'.*gpt_neox"),
    ("llama3", {"hidden_size": None}, "hidden_size is None.*of type int"),
    ("llama3", {"hidden_size": 0}, "hidden_size is 0; it must be 1 or more"),
    ("llama3", {"hidden_act": "relu"}, "hidden_act is 'relu'; .*'silu'"),
    ("llama3", {"mlp_bias": True}, "mlp_bias is True; .*as attention_bias"),
    (
      "llama3",
      {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}},
      "rope_parameters: its type is 'yarn'; .*'default' and 'llama3'",
    ),
    (
      "llama3",
      {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}},
      "rope_parameters: factor is missing",
    ),
    ("qwen3", {"use_sliding_window": True}, "use_sliding_window is True"),
    ("qwen3", {"attention_bias": True}, "attention_bias is True"),
    ("neox_serial", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ("neox_serial", {"attention_bias": False}, "attention_bias is False"),
    (
      "neox_serial",
      {"quantization_config": {"bits": 4}},
      "quantization_config is set; it must be not quantised",
    ),
  ],
)
def test_what_the_decoder_does_not_have_is_refused_by_name(case, change, says):
  theirs = made_weights.config_json(case) | change
  with pytest.raises(UserError, match=f"there: {says}|there.*{says}"):
    architectures.read_config(theirs, path="there")


_LLAMA = make_config().model
_NEOX = {
  "norm": "layer",
  "biases": True,
  "activation": "gelu_exact",
  "kv_heads": 4,
  "head_size": 4,
}


def _variant(**fields) -> ModelConfig:
  import dataclasses

  return dataclasses.replace(_LLAMA, **fields)


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"activation": "gelu"}, "model.activation is 'gelu'; LlamaForCausalLM"),
    ({"parallel_residual": True}, "model.parallel_residual is True; Llama"),
    ({"rotary_share": 0.5}, "model.rotary_share is 0.5"),
    ({"qk_norm": True, "biases": True}, "model.biases is True; Qwen3"),
    (
      {**_NEOX, "activation": "swiglu"},
      "model.activation is 'swiglu'; GPTNeoX",
    ),
    ({**_NEOX, "biases": False}, "model.biases is False; GPTNeoX"),
    ({**_NEOX, "kv_heads": 2}, "model.kv_heads is 2; .*has 4 only"),
    ({**_NEOX, "head_size": 6}, "model.head_size is 6; .*has 4 only"),
    ({**_NEOX, "rope_scaling": "llama3"}, "model.rope_scaling is 'llama3'"),
    ({"width": 18}, "model.width is 18, .*multiple of config.model.heads, 4"),
  ],
)
def test_a_model_that_transformers_lacks_is_refused_by_field(fields, says):
  with pytest.raises(UserError, match=f"{says}.*can't be exported"):
    architectures.architecture(_variant(**fields))


def test_a_neox_with_gelu_by_tanh_has_its_name_there():
  model = _variant(**_NEOX | {"activation": "gelu"})
  config = architectures.write_config(model, rows=23, length=8, eos_id=0)
  assert config["hidden_act"] == "gelu_new"
  fields = architectures.read_config(config, path="there")
  assert fields["activation"] == "gelu"
  assert math.isclose(fields["rotary_share"], 1.0)
