"""Next-token losses, without all logits in float32 at once where asked for."""

import functools
import math

import jax
import jax.numpy as jnp

from poison_jax.model.decoder import Decoder, Params
from poison_jax.model.products import contract_first, over_tokens, product


def next_token_losses(
  decoder: Decoder,
  params: Params,
  tokens_BL: jax.Array,
  *,
  pieces: int,
  z_loss: float,
) -> jax.Array:
  """Returns float32 losses in nats, BL; column t is the loss of token t + 1.

  Args:
    decoder: the model.
    params: its parameters.
    tokens_BL: int32 token ids.
    pieces: one after another; logits are made for one piece at a time, and
      made again for the gradient. 1 makes all of them once.
    z_loss: weight of the squared log-normaliser that is added to each loss.

  The last column, which has no target, is 0.
  """
  variables = {"params": params}
  x_DBL = decoder.apply(variables, tokens_BL, method=Decoder.features)
  unembedding_VD = decoder.apply(variables, method=Decoder.unembedding)
  targets_BL = jnp.roll(tokens_BL, -1, axis=1)
  loss = functools.partial(_losses, z_loss, decoder.config.gradient_dtype)
  if pieces == 1:
    losses_BL = loss(unembedding_VD, x_DBL, targets_BL)
  else:
    losses_BL = _in_pieces(loss, unembedding_VD, x_DBL, targets_BL, pieces)
  return losses_BL.at[:, -1].set(0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _losses(z_loss, gradient_dtype, unembedding_VD, x_DBL, targets_BL):
  arrays = unembedding_VD, x_DBL, targets_BL
  return _forward(z_loss, gradient_dtype, *arrays)[0]


def _forward(z_loss, gradient_dtype, unembedding_VD, x_DBL, targets_BL):
  del gradient_dtype
  low_VD = unembedding_VD.astype(x_DBL.dtype)
  logits_VBL = product(low_VD, x_DBL, (((1,), (0,)), ((), ())))
  normaliser_BL = jax.nn.logsumexp(logits_VBL, axis=0)
  chosen_BL = jnp.take_along_axis(logits_VBL, targets_BL[None], axis=0)[0]
  losses_BL = normaliser_BL - chosen_BL + z_loss * normaliser_BL**2
  return losses_BL, (low_VD, x_DBL, targets_BL, logits_VBL, normaliser_BL)


def _backward(z_loss, gradient_dtype, kept, gradient_BL):
  """By a logit: p (1 + 2 z log-normaliser) - 1 where it is the target's."""
  low_VD, x_DBL, targets_BL, logits_VBL, normaliser_BL = kept
  share_BL = gradient_BL * (1 + 2 * z_loss * normaliser_BL)
  chosen_VBL = jnp.arange(low_VD.shape[0])[:, None, None] == targets_BL
  slope_VBL = jnp.exp(logits_VBL - normaliser_BL) * share_BL
  slope_VBL = jnp.where(chosen_VBL, slope_VBL - gradient_BL, slope_VBL)
  slope_VBL = slope_VBL.astype(x_DBL.dtype)
  unembedding_VD = over_tokens(slope_VBL, x_DBL, rounded=gradient_dtype)
  x_gradient_DBL = contract_first(low_VD, slope_VBL, batch=0)
  return unembedding_VD, x_gradient_DBL.astype(x_DBL.dtype), None


_losses.defvjp(_forward, _backward)


def _in_pieces(loss, unembedding_VD, x_DBL, targets_BL, pieces):
  """Cuts columns, not rows, so that each device works on its own rows."""
  batch, length = targets_BL.shape
  columns = math.ceil(length / pieces)
  pieces = math.ceil(length / columns)
  padding = pieces * columns - length

  def cut(x):
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)])
    return jnp.moveaxis(x.reshape(*x.shape[:-1], pieces, columns), -2, 0)

  @jax.checkpoint
  def one(piece):
    x, targets = piece
    return loss(unembedding_VD, x, targets)

  losses = jax.lax.map(one, (cut(x_DBL), cut(targets_BL)))
  return jnp.moveaxis(losses, 0, 1).reshape(batch, -1)[:, :length]
