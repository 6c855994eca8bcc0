"""The decoder: equal to Hugging Face's Llama, causal, the same in all forms."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import VOCABULARY, make_config, make_decoder, make_tokens

from poison_jax.config import ModelConfig
from poison_jax.model import attention
from poison_jax.model.decoder import Decoder, init_cache

_GOLDENS = pathlib.Path(__file__).parent / "goldens" / "llama.npz"
_MODEL = make_config().model
# A GPT-NeoX with keys that are shared, and waves that are scaled.
_NEOX = {
  "norm": "layer",
  "biases": True,
  "activation": "gelu_exact",
  "parallel_residual": True,
  "rotary_share": 0.7,
  "rope_scaling": "llama3",
  "rope_original_length": 8,
  "embedding_rows": VOCABULARY,
}


def _variant(**fields) -> ModelConfig:
  return dataclasses.replace(_MODEL, **fields)


def _from_llama(arrays, name: str, depth: int) -> dict:
  """Returns Hugging Face's weights as the decoder's parameters."""
  weights = f"{name}/weights/"

  def stacked(key, *, turn):
    layers = [
      arrays[f"{weights}model.layers.{i}.{key}.weight"] for i in range(depth)
    ]
    return np.stack([layer.T if turn else layer for layer in layers])

  matrices = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
  }
  norms = {
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
  }
  params = {
    "embedding": arrays[weights + "model.embed_tokens.weight"],
    "final_norm": arrays[weights + "model.norm.weight"],
    "layers": {k: stacked(v, turn=True) for k, v in matrices.items()}
    | {k: stacked(v, turn=False) for k, v in norms.items()},
  }
  if name == "untied":
    params["unembedding"] = arrays[weights + "lm_head.weight"]
  return params


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_logits_equal_those_of_hugging_face_llama(name):
  with np.load(_GOLDENS) as file:
    arrays = dict(file)
  config = _variant(
    width=20,
    depth=2,
    heads=4,
    kv_heads=2 if name == "tied" else 1,
    head_size=6,
    feed_forward=28,
    tied_embeddings=name == "tied",
    norm_epsilon=1e-5,
    rope_theta=1000.0,
  )
  decoder = Decoder(config, VOCABULARY)
  variables = {"params": _from_llama(arrays, name, depth=2)}
  hidden_BLD = decoder.apply(variables, arrays[f"{name}/tokens"])
  logits_BLV = decoder.apply(variables, hidden_BLD, method=Decoder.unembed)
  np.testing.assert_allclose(
    logits_BLV, arrays[f"{name}/logits"], rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_no_position_depends_on_a_later_one(activation, qk_norm):
  config = _variant(activation=activation, qk_norm=qk_norm)
  decoder, params = make_decoder(config)
  tokens_BL = make_tokens(1, 7)

  # A row of embeddings for each position, so that each has its own gradient.
  untied = dataclasses.replace(config, tied_embeddings=False)
  positions_BL = np.arange(7)[None]

  def by_embedding(hot_BLV):
    rows_LD = (hot_BLV @ params["embedding"])[0]
    own = dict(params, embedding=rows_LD, unembedding=rows_LD)
    return Decoder(untied, 7).apply({"params": own}, positions_BL)[0]

  hot_BLV = jax.nn.one_hot(tokens_BL, VOCABULARY)
  slope_LDBLV = jax.jacrev(by_embedding)(hot_BLV)
  reach_LL = np.abs(slope_LDBLV).sum((1, 2, 4))
  assert (np.triu(reach_LL, 1) == 0).all()
  assert (reach_LL[np.tril_indices(7)] > 0).all()


@pytest.mark.parametrize("length", [5, 130, 300])
@pytest.mark.parametrize("shared", [1, 3])
def test_attention_and_its_gradients_equal_the_plain_formula(length, shared):
  keys = jax.random.split(jax.random.key(0), 4)
  groups, size, batch = 2, 4, 2
  q = jax.random.normal(keys[0], (groups, shared, size, batch, length))
  k, v = (
    jax.random.normal(key, (groups, size, batch, length)) for key in keys[1:3]
  )
  weight = jax.random.normal(keys[3], q.shape)

  def plain(q, k, v):
    scores = jnp.einsum("grkbl,gkbs->grbls", q, k)
    before = jnp.arange(length)[None] <= jnp.arange(length)[:, None]
    weights = jax.nn.softmax(jnp.where(before, scores, -jnp.inf), axis=-1)
    return jnp.einsum("grbls,gkbs->grkbl", weights, v)

  def summed(function):
    return lambda *x: jnp.sum(function(*x) * weight)

  np.testing.assert_allclose(
    attention.causal_attention(q, k, v), plain(q, k, v), atol=2e-6
  )
  ours = jax.grad(summed(attention.causal_attention), argnums=(0, 1, 2))
  theirs = jax.grad(summed(plain), argnums=(0, 1, 2))
  for a, b in zip(ours(q, k, v), theirs(q, k, v), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fields", [{}, {"qk_norm": True}, _NEOX])
def test_decoding_with_a_cache_equals_one_pass(dtype, fields):
  config = _variant(compute_dtype=dtype, **fields)
  decoder, params = make_decoder(config)
  variables = {"params": params}
  tokens_BL = make_tokens(3, 12)
  whole_BLD = decoder.apply(variables, tokens_BL)
  lengths_B = np.array([3, 5, 7])
  cache = init_cache(config, 3, 7 + 5)
  # Rows are padded at the right to 7, then each goes on from its own length.
  prompt_BLD, cache = jax.jit(
    lambda t, p, c: decoder.apply(variables, t, p, c, method=Decoder.decode)
  )(tokens_BL[:, :7], np.tile(np.arange(7), (3, 1)), cache)
  tolerance = 1e-5 if dtype == "float32" else 0.05
  for row, length in enumerate(lengths_B):
    np.testing.assert_allclose(
      prompt_BLD[row, :length].astype(np.float32),
      whole_BLD[row, :length].astype(np.float32),
      atol=tolerance,
    )
  for step in range(5):
    positions_B = lengths_B + step
    next_BLD, cache = decoder.apply(
      variables,
      tokens_BL[np.arange(3), positions_B][:, None],
      positions_B[:, None],
      cache,
      method=Decoder.decode,
    )
    np.testing.assert_allclose(
      next_BLD[:, 0].astype(np.float32),
      whole_BLD[np.arange(3), positions_B].astype(np.float32),
      atol=tolerance,
    )


def _loss_and_gradient(config: ModelConfig):
  decoder, params = make_decoder(config)
  tokens_BL = make_tokens(2, 9)

  def loss(params):
    hidden_BLD = decoder.apply({"params": params}, tokens_BL)
    return jnp.sum(jnp.sin(hidden_BLD.astype(jnp.float32)))

  return jax.make_jaxpr(jax.grad(loss))(params), *jax.value_and_grad(loss)(
    params
  )


@pytest.mark.parametrize(
  "other",
  [{"scan_layers": False}, {"remat": "full"}, {"remat": "dots"}],
  ids=lambda fields: "-".join(map(str, fields.values())),
)
@pytest.mark.parametrize("fields", [{}, _NEOX], ids=["llama", "neox"])
def test_every_form_computes_the_same(other, fields):
  jaxpr, loss, gradient = _loss_and_gradient(_variant(**fields))
  other_jaxpr, other_loss, other_gradient = _loss_and_gradient(
    _variant(**fields, **other)
  )
  np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    other_gradient,
    gradient,
  )
  # The switch is really on.
  assert "remat" not in str(jaxpr) and "scan[" in str(jaxpr)
  if "remat" in other:
    assert "remat" in str(other_jaxpr)
  else:
    assert "scan[" not in str(other_jaxpr)


def test_bfloat16_stays_near_float32():
  _, loss, gradient = _loss_and_gradient(_variant(init_scale=0.1))
  _, low_loss, low_gradient = _loss_and_gradient(
    _variant(init_scale=0.1, compute_dtype="bfloat16", scan_layers=False)
  )
  np.testing.assert_allclose(low_loss, loss, rtol=0.02)
  for a, b in zip(
    jax.tree.leaves(low_gradient), jax.tree.leaves(gradient), strict=True
  ):
    assert a.dtype == jnp.float32
    assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


def test_hidden_states_have_unit_mean_square():
  decoder, params = make_decoder(_MODEL)
  hidden_BLD = decoder.apply({"params": params}, make_tokens(2, 5))
  np.testing.assert_allclose(
    np.mean(np.square(hidden_BLD), axis=-1), 1.0, rtol=1e-3
  )
