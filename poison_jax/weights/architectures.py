"""Models of Hugging Face transformers as fields of `ModelConfig`, and back.

Three architectures, by transformers' `model_type`: "llama" (Llama 2, 3, 3.1),
"qwen3" and "gpt_neox" (Pythia). Reads what transformers 4 and 5 write; writes
what both read. Anything that would change what the model computes and that the
decoder doesn't have is refused by its name.
"""

from collections.abc import Mapping
from typing import Any

from poison_jax.config import ModelConfig
from poison_jax.errors import UserError

# What a config.json means that lacks these (transformers 5.23.0).
_SHARED = {
  "tie_word_embeddings": False,
  "rope_scaling": None,
  "rope_parameters": None,
  "quantization_config": None,
}
_LLAMA = _SHARED | {
  "hidden_act": "silu",
  "num_key_value_heads": None,
  "head_dim": None,
  "rms_norm_eps": 1e-6,
  "rope_theta": 10_000.0,
  "attention_bias": False,
  "mlp_bias": False,
}
_ABSENT = {
  "llama": _LLAMA,
  "qwen3": _LLAMA | {"head_dim": 128, "use_sliding_window": False},
  "gpt_neox": _SHARED
  | {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rotary_emb_base": 10_000.0,
    "rotary_pct": 0.25,
    "use_parallel_residual": True,
    "attention_bias": True,
  },
}
_CLASSES = {
  "llama": "LlamaForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "gpt_neox": "GPTNeoXForCausalLM",
}
# transformers' names of GELU by tanh; the first is the one that is written.
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


def read_config(found: Mapping[str, Any], *, path: str) -> dict[str, Any]:
  """Returns the fields of `ModelConfig` that say what the model computes.

  All but those of its initialisation, layout and precision.

  Args:
    found: content of a config.json.
    path: its name, for errors.

  Raises:
    UserError: of another architecture, a field is missing or of another type,
      or asks for what the decoder doesn't have.
  """
  kind = found.get("model_type")
  if kind not in _ABSENT:
    raise UserError(
      f"{path}: model_type is {kind!r}; the architectures that can be read are "
      f"{', '.join(_ABSENT)}"
    )
  theirs = _Fields(_ABSENT[kind] | dict(found), path)
  theirs.want("quantization_config", None, "not quantised")
  if kind == "gpt_neox":
    return _read_neox(theirs)
  return _read_llama(theirs, kind)


def write_config(
  model: ModelConfig, *, rows: int, length: int, eos_id: int
) -> dict[str, Any]:
  """Returns the content of a config.json that transformers can load.

  Args:
    model: the model.
    rows: of its embedding.
    length: L, of the rows that it was trained on.
    eos_id: ends and begins documents.

  Raises:
    UserError: no architecture of transformers is this model; names the field.
  """
  kind = architecture(model)
  written = {
    "architectures": [_CLASSES[kind]],
    "model_type": kind,
    "dtype": "float32",
    "torch_dtype": "float32",  # The same, for transformers 4.
    "vocab_size": rows,
    "hidden_size": model.width,
    "num_hidden_layers": model.depth,
    "num_attention_heads": model.heads,
    "intermediate_size": model.feed_forward,
    "max_position_embeddings": length,
    "initializer_range": model.init_scale,
    "tie_word_embeddings": model.tied_embeddings,
    "bos_token_id": eos_id,
    "eos_token_id": eos_id,
  }
  if kind == "gpt_neox":
    return written | _written_neox(model)
  return written | _written_llama(model)


def architecture(model: ModelConfig) -> str:
  """Returns the `model_type` that computes the same.

  Raises:
    UserError: none does; names the field and what it would have to be.
  """
  kind = "gpt_neox"
  if model.norm == "rms":
    kind = "qwen3" if model.qk_norm else "llama"
  for field, legal in _demands(kind, model).items():
    value = getattr(model, field)
    if value not in legal:
      raise UserError(
        f"config.model.{field} is {value!r}; {_CLASSES[kind]}, the nearest "
        f"architecture of transformers, has {' or '.join(map(repr, legal))} "
        "only: this model can't be exported"
      )
  if model.width % model.heads:
    raise UserError(
      f"config.model.width is {model.width}, which transformers wants to be a "
      f"multiple of config.model.heads, {model.heads}: this model can't be "
      "exported"
    )
  return kind


def _demands(kind: str, model: ModelConfig) -> dict[str, tuple]:
  if kind == "gpt_neox":
    return {
      "activation": ("gelu_exact", "gelu"),
      "biases": (True,),
      "kv_heads": (model.heads,),
      "head_size": (model.width // model.heads,),
      "rope_scaling": ("none",),
    }
  return {
    "activation": ("swiglu",),
    "parallel_residual": (False,),
    "rotary_share": (1.0,),
    "biases": (False,) if kind == "qwen3" else (False, True),
  }


class _Fields:
  """A config.json's fields, each read with its type."""

  def __init__(self, fields: Mapping[str, Any], path: str):
    self._fields, self.path = fields, path

  def has(self, name: str) -> bool:
    return self._fields.get(name) is not None

  def number(self, name: str) -> int:
    value = self._typed(name, int)
    if value < 1:
      raise UserError(f"{self.path}: {name} is {value}; it must be 1 or more")
    return value

  def real(self, name: str) -> float:
    return float(self._typed(name, int | float))

  def truth(self, name: str) -> bool:
    return self._typed(name, bool)

  def word(self, name: str) -> str:
    return self._typed(name, str)

  def want(self, name: str, value: Any, words: str) -> None:
    """Raises UserError unless the field has the value."""
    found = self._fields.get(name)
    if found != value:
      shown = "set" if isinstance(found, dict) else repr(found)
      raise UserError(f"{self.path}: {name} is {shown}; it must be {words}")

  def group(self, name: str) -> "_Fields":
    return _Fields(self._typed(name, dict), f"{self.path}: {name}")

  def _typed(self, name: str, kind):
    value = self._fields.get(name)
    if not isinstance(value, kind) or (
      isinstance(value, bool) and kind is not bool
    ):
      what = "missing" if name not in self._fields else repr(value)
      raise UserError(
        f"{self.path}: {name} is {what}; it must be of type "
        f"{getattr(kind, '__name__', 'number')}"
      )
    return value


def _read_shared(theirs: _Fields) -> dict[str, Any]:
  return {
    "width": theirs.number("hidden_size"),
    "depth": theirs.number("num_hidden_layers"),
    "heads": theirs.number("num_attention_heads"),
    "feed_forward": theirs.number("intermediate_size"),
    "tied_embeddings": theirs.truth("tie_word_embeddings"),
    "embedding_rows": theirs.number("vocab_size"),
  }


def _read_llama(theirs: _Fields, kind: str) -> dict[str, Any]:
  fields = _read_shared(theirs)
  heads = fields["heads"]
  theirs.want("hidden_act", "silu", "'silu'")
  if kind == "qwen3":
    theirs.want("use_sliding_window", False, "False")
    theirs.want("attention_bias", False, "False")
  theirs.want(
    "mlp_bias",
    theirs.truth("attention_bias"),
    "as attention_bias is: the decoder has biases on all products or on none",
  )
  return {
    **fields,
    "kv_heads": theirs.number("num_key_value_heads")
    if theirs.has("num_key_value_heads")
    else heads,
    "head_size": theirs.number("head_dim")
    if theirs.has("head_dim")
    else fields["width"] // heads,
    "activation": "swiglu",
    "parallel_residual": False,
    "biases": theirs.truth("attention_bias"),
    "norm": "rms",
    "qk_norm": kind == "qwen3",
    "norm_epsilon": theirs.real("rms_norm_eps"),
    "rotary_share": 1.0,
    **_read_rope(theirs, theta="rope_theta"),
  }


def _read_neox(theirs: _Fields) -> dict[str, Any]:
  fields = _read_shared(theirs)
  theirs.want("attention_bias", True, "True")
  activation = theirs.word("hidden_act")
  if activation != "gelu" and activation not in _TANH_GELU:
    theirs.want("hidden_act", "gelu", f"'gelu' or one of {_TANH_GELU}")
  rope = _read_rope(theirs, theta="rotary_emb_base")
  if rope["rope_scaling"] != "none":
    raise UserError(f"{theirs.path}: rotary scaling in gpt_neox can't be read")
  share = theirs
  if theirs.has("rope_parameters"):
    group = theirs.group("rope_parameters")
    if group.has("partial_rotary_factor"):
      share = group
  name = "rotary_pct" if share is theirs else "partial_rotary_factor"
  return {
    **fields,
    "kv_heads": fields["heads"],
    "head_size": fields["width"] // fields["heads"],
    "activation": "gelu_exact" if activation == "gelu" else "gelu",
    "parallel_residual": theirs.truth("use_parallel_residual"),
    "biases": True,
    "norm": "layer",
    "qk_norm": False,
    "norm_epsilon": theirs.real("layer_norm_eps"),
    "rotary_share": share.real(name),
    **rope,
  }


# Ours: theirs, inside of "rope_scaling" or "rope_parameters".
_LLAMA3 = {
  "rope_factor": "factor",
  "rope_low_frequency": "low_freq_factor",
  "rope_high_frequency": "high_freq_factor",
}
_LLAMA3_LENGTH = "original_max_position_embeddings"


def _read_rope(theirs: _Fields, *, theta: str) -> dict[str, Any]:
  """Returns the rotary fields but for the share; those in use alone.

  transformers 5 has one group with the base in it, transformers 4 the base
  beside the group, which is there for scaling only.
  """
  group = None
  for name in ("rope_parameters", "rope_scaling"):
    if theirs.has(name):
      group = theirs.group(name)
      break
  if group is None:
    return {"rope_theta": theirs.real(theta), "rope_scaling": "none"}
  base = group.real("rope_theta") if group.has("rope_theta") else None
  fields = {"rope_theta": theirs.real(theta) if base is None else base}
  kind = group.word("rope_type" if group.has("rope_type") else "type")
  if kind == "default":
    return fields | {"rope_scaling": "none"}
  if kind != "llama3":
    raise UserError(
      f"{group.path}: its type is {kind!r}; the ones that can be read are "
      "'default' and 'llama3'"
    )
  scaling = {ours: group.real(name) for ours, name in _LLAMA3.items()}
  length = {"rope_original_length": group.number(_LLAMA3_LENGTH)}
  return fields | {"rope_scaling": "llama3"} | scaling | length


def _written_llama(model: ModelConfig) -> dict[str, Any]:
  scaling = None
  if model.rope_scaling == "llama3":
    scaling = {"rope_type": "llama3"}
    scaling |= {name: getattr(model, ours) for ours, name in _LLAMA3.items()}
    scaling[_LLAMA3_LENGTH] = model.rope_original_length
  base = {"rope_theta": model.rope_theta}
  biases = {"attention_bias": model.biases}
  if not model.qk_norm:
    biases["mlp_bias"] = model.biases
  return {
    "num_key_value_heads": model.kv_heads,
    "head_dim": model.head_size,
    "hidden_act": "silu",
    "rms_norm_eps": model.norm_epsilon,
    **biases,
    **base,
    "rope_scaling": scaling,
    "rope_parameters": (scaling or {"rope_type": "default"}) | base,
  }


def _written_neox(model: ModelConfig) -> dict[str, Any]:
  exact = model.activation == "gelu_exact"
  return {
    "hidden_act": "gelu" if exact else _TANH_GELU[0],
    "layer_norm_eps": model.norm_epsilon,
    "use_parallel_residual": model.parallel_residual,
    "attention_bias": True,
    "rotary_pct": model.rotary_share,
    "rotary_emb_base": model.rope_theta,
    "rope_parameters": {
      "rope_type": "default",
      "rope_theta": model.rope_theta,
      "partial_rotary_factor": model.rotary_share,
    },
  }
