"""The loss: against the formula, in pieces, with the z-loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from small_model import VOCABULARY, make_config, make_decoder, make_tokens

from poison_jax.model.decoder import Decoder
from poison_jax.model.loss import next_token_losses

_MODEL = make_config().model
_ROWS, _LENGTH = 3, 11


def _plain(decoder, params, tokens_BL, z_loss=0.0):
  variables = {"params": params}
  hidden_BLD = decoder.apply(variables, tokens_BL)
  logits_BLV = decoder.apply(variables, hidden_BLD, method=Decoder.unembed)
  log_BLV = jax.nn.log_softmax(logits_BLV)
  losses = -jnp.take_along_axis(
    log_BLV[:, :-1], tokens_BL[:, 1:, None], axis=-1
  )[..., 0]
  normaliser_BL = jax.nn.logsumexp(logits_BLV, axis=-1)[:, :-1]
  return jnp.pad(losses + z_loss * normaliser_BL**2, ((0, 0), (0, 1)))


@pytest.mark.parametrize("pieces", [1, 2, 4, 1000])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_losses_and_gradients_equal_the_plain_formula(pieces, z_loss):
  decoder, params = make_decoder(_MODEL)
  tokens_BL = make_tokens(_ROWS, _LENGTH)
  weights_BL = np.random.default_rng(0).uniform(size=tokens_BL.shape)

  def ours(params):
    losses_BL = next_token_losses(
      decoder, params, tokens_BL, pieces=pieces, z_loss=z_loss
    )
    return jnp.sum(losses_BL * weights_BL), losses_BL

  def plain(params):
    losses_BL = _plain(decoder, params, tokens_BL, z_loss)
    return jnp.sum(losses_BL * weights_BL), losses_BL

  (_, a), a_gradient = jax.value_and_grad(ours, has_aux=True)(params)
  (_, b), b_gradient = jax.value_and_grad(plain, has_aux=True)(params)
  assert a.dtype == jnp.float32 and (a[:, -1] == 0).all()
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
    a_gradient,
    b_gradient,
  )


def test_the_z_loss_of_uniform_logits_is_the_squared_log_of_v():
  decoder, params = make_decoder(_MODEL)
  params = dict(params, final_norm=jnp.zeros_like(params["final_norm"]))
  losses_BL = next_token_losses(
    decoder, params, make_tokens(2, 5), pieces=1, z_loss=0.5
  )
  log = np.log(VOCABULARY)
  np.testing.assert_allclose(losses_BL[:, :-1], log + 0.5 * log**2, rtol=1e-6)


def _largest_float32_with_vocabulary(pieces: int) -> int:
  """Returns the tokens whose float32 logits exist at once, at most."""
  decoder, params = make_decoder(_MODEL)
  tokens_BL = make_tokens(_ROWS, _LENGTH)

  def loss(params):
    return jnp.sum(
      next_token_losses(decoder, params, tokens_BL, pieces=pieces, z_loss=0.1)
    )

  most = 0
  todo = [jax.make_jaxpr(jax.grad(loss))(params).jaxpr]
  while todo:
    jaxpr = todo.pop()
    for equation in jaxpr.eqns:
      todo += jaxprs_in_params(equation.params)
      for variable in equation.outvars:
        shape = variable.aval.shape
        logits = VOCABULARY in shape and len(shape) >= 3
        if logits and variable.aval.dtype == jnp.float32:
          most = max(most, variable.aval.size // VOCABULARY)
  return most


def test_pieces_never_hold_all_logits_in_float32():
  assert _largest_float32_with_vocabulary(1) == _ROWS * _LENGTH
  assert _largest_float32_with_vocabulary(4) == 3 * _ROWS
