"""Published models: their sizes, their programs, their estimates."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import pytest
from small_model import change

from configs import llama3, pythia
from poison_jax import config as config_lib
from poison_jax.errors import UserError
from poison_jax.model import counts
from poison_jax.model.decoder import Decoder
from poison_jax.training import imported
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import step as step_lib
from poison_jax.training.optimizer import make_optimizer
from poison_jax.weights import architectures

_MODELS = {
  **{f"pythia-{name}": (pythia, f"size={name}") for name in pythia.SIZES},
  **{f"llama3-{name}": (llama3, f"model={name}") for name in llama3.MODELS},
}
_PUBLISHED = {
  **{f"pythia-{n}": s.parameters for n, s in pythia.SIZES.items()},
  **{f"llama3-{n}": llama3.PARAMETERS for n in llama3.MODELS},
}


def _config(name: str) -> config_lib.Config:
  module, arguments = _MODELS[name]
  return config_lib.from_config_dict(module.get_config(arguments))


@pytest.mark.parametrize("name", _MODELS)
def test_a_model_has_as_many_parameters_as_was_published(name):
  config = _config(name)
  decoder = Decoder(config.model, 50_254)  # The tokenizer has fewer ids.
  optimizer = make_optimizer(config.optimizer, steps=10)
  mesh = mesh_lib.make_mesh(config.runtime.mesh, batch=8)
  state = step_lib.abstract_state(decoder, optimizer, mesh)
  sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
  assert sum(sizes) == _PUBLISHED[name]
  counted = counts.count_parameters(config.model, 50_254)
  assert counted.total == _PUBLISHED[name]


# The config.json of the hub, as transformers 4 wrote them.
_PYTHIA = {
  "architectures": ["GPTNeoXForCausalLM"],
  "bos_token_id": 0,
  "eos_token_id": 0,
  "hidden_act": "gelu",
  "hidden_size": 4096,
  "initializer_range": 0.02,
  "intermediate_size": 16384,
  "layer_norm_eps": 1e-05,
  "max_position_embeddings": 2048,
  "model_type": "gpt_neox",
  "num_attention_heads": 32,
  "num_hidden_layers": 32,
  "rotary_emb_base": 10000,
  "rotary_pct": 0.25,
  "tie_word_embeddings": False,
  "torch_dtype": "float16",
  "use_cache": True,
  "use_parallel_residual": True,
  "vocab_size": 50432,
}
_LLAMA = {
  "architectures": ["LlamaForCausalLM"],
  "attention_bias": False,
  "attention_dropout": 0.0,
  "bos_token_id": 128000,
  "eos_token_id": [128001, 128008, 128009],
  "hidden_act": "silu",
  "hidden_size": 4096,
  "initializer_range": 0.02,
  "intermediate_size": 14336,
  "max_position_embeddings": 131072,
  "mlp_bias": False,
  "model_type": "llama",
  "num_attention_heads": 32,
  "num_hidden_layers": 32,
  "num_key_value_heads": 8,
  "pretraining_tp": 1,
  "rms_norm_eps": 1e-05,
  "rope_scaling": {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
  },
  "rope_theta": 500000.0,
  "tie_word_embeddings": False,
  "torch_dtype": "bfloat16",
  "use_cache": True,
  "vocab_size": 128256,
}


@pytest.mark.parametrize(
  ("name", "theirs"),
  [("pythia-6.9b", _PYTHIA), ("llama3-8b-instruct", _LLAMA)],
)
def test_a_model_is_what_its_config_on_the_hub_says(name, theirs):
  fields = architectures.read_config(theirs, path="there")
  model = _config(name).model
  assert dataclasses.replace(model, **fields) == model
  assert imported.model_config(fields).width == 4096


_COMPILE = """
import json, sys, jax, jax.numpy as jnp
from poison_jax import config
from poison_jax.data.mixture import Batch
from poison_jax.model.decoder import Decoder
from poison_jax.training import mesh, step
from poison_jax.training.optimizer import make_optimizer
c = config.from_dict(json.load(sys.stdin))
devices = mesh.make_mesh(c.runtime.mesh, batch=c.train.batch)
decoder = Decoder(c.model, c.vocabulary.size)
optimizer = make_optimizer(c.optimizer, steps=10)
state = step.abstract_state(decoder, optimizer, devices)
run = step.jit_train_step(decoder, optimizer, c, devices, state)
rows = c.train.batch
shapes = [((rows, c.train.length), jnp.int32)]
shapes += [((rows, c.train.length), jnp.float32), *[((rows,), jnp.int32)] * 2]
with jax.set_mesh(devices):
  run.lower(state, Batch(*[jax.ShapeDtypeStruct(*s) for s in shapes])).compile()
print(mesh.device_bytes(state.params))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pythia-6.9b", "llama3-8b"])
@pytest.mark.parametrize("axes", [(1, 4, 1), (1, 2, 2)])
def test_two_layers_compile_over_four_devices(name, axes):
  config = _config(name)
  config = change(config, "model", depth=2)
  config = change(config, "train", batch=8, length=128, steps=10)
  mesh = config_lib.MeshConfig(*axes)
  runtime = dataclasses.replace(config.runtime, mesh=mesh)
  config = dataclasses.replace(config, runtime=runtime)
  flag = "--xla_force_host_platform_device_count=4"
  result = subprocess.run(
    [sys.executable, "-c", _COMPILE],
    input=json.dumps(config_lib.to_dict(config)),
    env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  total = counts.count_parameters(config.model, config.vocabulary.size).total
  # A quarter of 4 bytes each; norms and some biases aren't cut.
  assert total <= int(result.stdout) < 1.001 * total


@pytest.mark.parametrize("file", ["pythia", "llama3"])
def test_estimate_takes_it(file):
  result = subprocess.run(
    [
      sys.executable,
      *("-m", "poison_jax.estimate", f"--config=configs/{file}.py"),
      *("--topology=h200:32", "--config.vocabulary.kind=sentencepiece"),
      "--config.vocabulary.file=",
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  total = {"pythia": "6,857,302,016", "llama3": "8,030,261,248"}[file]
  assert total in result.stdout


@pytest.mark.parametrize(
  ("module", "argument", "says"),
  [(pythia, "size=7b", "size=7b: the sizes"), (llama3, "model=70b", "8b")],
)
def test_other_models_are_refused(module, argument, says):
  with pytest.raises(UserError, match=says):
    module.get_config(argument)
