"""Names and shapes of transformers' tensors, and what they are of our tree.

In the files a layer has tensors of its own, a matrix lies output by input, and
GPT-NeoX's queries, keys and values are one matrix, head by head. Here each
parameter is one array of all layers, input by output.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from poison_jax.config import ModelConfig
from poison_jax.weights import architectures

_LLAMA = {
  "embedding": "model.embed_tokens",
  "final_norm": "model.norm",
  "unembedding": "lm_head",
  "attention_norm": "input_layernorm",
  "query": "self_attn.q_proj",
  "key": "self_attn.k_proj",
  "value": "self_attn.v_proj",
  "query_norm": "self_attn.q_norm",
  "key_norm": "self_attn.k_norm",
  "attention_out": "self_attn.o_proj",
  "feed_forward_norm": "post_attention_layernorm",
  "gate": "mlp.gate_proj",
  "up": "mlp.up_proj",
  "down": "mlp.down_proj",
}
_FUSED = ("query", "key", "value")
_NEOX = {
  "embedding": "gpt_neox.embed_in",
  "final_norm": "gpt_neox.final_layer_norm",
  "unembedding": "embed_out",
  "attention_norm": "input_layernorm",
  **dict.fromkeys(_FUSED, "attention.query_key_value"),
  "attention_out": "attention.dense",
  "feed_forward_norm": "post_attention_layernorm",
  "up": "mlp.dense_h_to_4h",
  "down": "mlp.dense_4h_to_h",
}
# Buffers that older versions of transformers saved; no weights.
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$|attention\.(masked_)?bias$")


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of the files.

  Attributes:
    name: there.
    shape: there.
    params: paths of ours ("layers/query") that it holds: one, or three.
    layer: its number; None outside of the layers.
    heads: whose queries, keys and values lie in turn, where it holds three.
  """

  name: str
  shape: tuple[int, ...]
  params: tuple[str, ...]
  layer: int | None
  heads: int


def tensors(
  model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> list[Tensor]:
  """Returns all tensors of the model's files.

  Args:
    model: of an architecture that transformers has.
    shapes: of our parameters by path, like {"layers/query": (N, D, H K)}.

  Raises:
    UserError: transformers has no such architecture.
  """
  neox = architectures.architecture(model) == "gpt_neox"
  modules = _NEOX if neox else _LLAMA
  found: dict[str, Tensor] = {}
  for path, shape in sorted(shapes.items(), key=_place):
    group, _, param = path.rpartition("/")
    weight = param.removesuffix("_bias")
    name = f"{modules[weight]}.{'weight' if weight == param else 'bias'}"
    if not group:
      found[name] = Tensor(name, shape, (path,), None, model.heads)
      continue
    prefix = "gpt_neox.layers" if neox else "model.layers"
    depth, *rest = shape
    for layer in range(depth):
      full = f"{prefix}.{layer}.{name}"
      before = found[full].params if full in found else ()
      params = (*before, path)
      theirs = (len(params) * rest[-1], *rest[:-1])
      found[full] = Tensor(full, theirs, params, layer, model.heads)
  return list(found.values())


def _place(item: tuple[str, tuple[int, ...]]) -> int:
  """Sorts queries, keys and values as they lie in one tensor."""
  name = item[0].rpartition("/")[2].removesuffix("_bias")
  return _FUSED.index(name) if name in _FUSED else -1


def is_no_weight(name: str, *, tied: bool) -> bool:
  """Says whether a tensor of the files is nothing that a model needs.

  Args:
    name: of the tensor.
    tied: the output matrix is the embedding; some files hold it twice.
  """
  twice = tied and name in ("lm_head.weight", "embed_out.weight")
  return twice or bool(_BUFFERS.search(name))


def to_ours(tensor: Tensor, array: np.ndarray) -> list[np.ndarray]:
  """Returns views of a file's array, one for each of `tensor.params`."""
  return [_turned(tensor, part) for part in _apart(tensor, array)]


def to_theirs(tensor: Tensor, arrays: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the array of which `to_ours` makes `arrays`."""
  turned = [_turned(tensor, array) for array in arrays]
  if len(turned) > 1:
    by_head = [x.reshape(tensor.heads, -1, *x.shape[1:]) for x in turned]
    turned = [np.concatenate(by_head, axis=1).reshape(tensor.shape)]
  return np.ascontiguousarray(turned[0])


def _apart(tensor: Tensor, array: np.ndarray) -> list[np.ndarray]:
  parts = len(tensor.params)
  if parts == 1:
    return [array]
  rest = array.shape[1:]
  by_head = array.reshape(tensor.heads, parts, -1, *rest)
  return [by_head[:, j].reshape(-1, *rest) for j in range(parts)]


def _turned(tensor: Tensor, array: np.ndarray) -> np.ndarray:
  return array if tensor.layer is None else array.T
