"""Next-token losses, without all logits in float32 at once where asked for."""

import jax
import jax.numpy as jnp

from poison_jax.model.decoder import Decoder, Params, logits


def next_token_losses(
  decoder: Decoder,
  params: Params,
  tokens_BL: jax.Array,
  *,
  chunk: int,
  z_loss: float,
) -> jax.Array:
  """Returns float32 losses in nats, BL; column t is the loss of token t + 1.

  Args:
    decoder: the model.
    params: its parameters.
    tokens_BL: int32 token ids.
    chunk: logits are made for about so many tokens at a time, and made again
      for the gradient; 0 makes all of them once.
    z_loss: weight of the squared log-normaliser that is added to each loss.

  The last column, which has no target, is 0.
  """
  variables = {"params": params}
  hidden_BLD = decoder.apply(variables, tokens_BL)
  unembedding_VD = decoder.apply(variables, method=Decoder.unembedding)
  targets_BL = jnp.roll(tokens_BL, -1, axis=1)
  if chunk == 0:
    losses_BL = _losses(hidden_BLD, unembedding_VD, targets_BL, z_loss)
  else:
    losses_BL = _chunked(hidden_BLD, unembedding_VD, targets_BL, z_loss, chunk)
  return losses_BL.at[:, -1].set(0.0)


def _losses(hidden_BLD, unembedding_VD, targets_BL, z_loss):
  logits_BLV = logits(hidden_BLD, unembedding_VD)
  normaliser_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
  chosen_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], axis=-1)
  return normaliser_BL - chosen_BL[..., 0] + z_loss * normaliser_BL**2


def _chunked(hidden_BLD, unembedding_VD, targets_BL, z_loss, chunk):
  """Cuts columns, not rows, so that each device works on its own rows."""
  batch, length = targets_BL.shape
  columns = min(length, max(1, chunk // batch))
  pieces = -(-length // columns)
  padding = pieces * columns - length

  def cut(x):
    x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(batch, pieces, columns, *x.shape[2:]).swapaxes(0, 1)

  @jax.checkpoint
  def one(piece):
    hidden, targets = piece
    return _losses(hidden, unembedding_VD, targets, z_loss)

  losses = jax.lax.map(one, (cut(hidden_BLD), cut(targets_BL)))
  return losses.swapaxes(0, 1).reshape(batch, -1)[:, :length]
