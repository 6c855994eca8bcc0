"""Matrix products whose operands lie as the hardware wants them.

Activations have their features in front and tokens behind (x_DBL). Then the
product with a weight, its gradient by the weight and its gradient by the input
all read large arrays in the order in which they lie. With tokens in front,
XLA's CPU compiler writes a transposed copy of each activation for the
gradient by the weight, which cost more than the product (LOG.md, "Training
step").
"""

import functools

import jax
import jax.numpy as jnp

Dimensions = tuple[
  tuple[tuple[int, ...], tuple[int, ...]],
  tuple[tuple[int, ...], tuple[int, ...]],
]


def product(a: jax.Array, b: jax.Array, dimensions: Dimensions) -> jax.Array:
  """Returns `jax.lax.dot_general` of equal dtypes, in float32.

  Also for bfloat16: float32 is what the hardware accumulates in, and the only
  form for which XLA's CPU compiler uses its bfloat16 kernels (5 to 8 times
  faster where the processor has AMX).
  """
  if a.dtype == jnp.bfloat16:
    a, b = _as_it_lies(a), _as_it_lies(b)
  return jax.lax.dot_general(
    a, b, dimensions, preferred_element_type=jnp.float32
  )


def contract_first(a: jax.Array, b: jax.Array, *, batch: int) -> jax.Array:
  """Returns the product over the first axis after `batch` leading ones.

  The bfloat16 kernels want `a` the other way round; a weight is small, so it
  is turned.
  """
  axes = tuple(range(batch))
  turned = _as_it_lies(a.swapaxes(batch, batch + 1))
  return product(turned, b, (((batch + 1,), (batch,)), (axes, axes)))


def over_tokens(
  a_CBL: jax.Array, b_EBL: jax.Array, *, rounded: str
) -> jax.Array:
  """Returns the products' sums over all tokens, float32, CE.

  With tokens as one axis: given two, the CPU compiler turns both arrays.

  Args:
    a_CBL: one side's features.
    b_EBL: the other's.
    rounded: "float32", or "bfloat16" to round each device's sum to; then the
      devices' sums are added in bfloat16, too.
  """
  a, b = (x.reshape(x.shape[0], -1) for x in (a_CBL, b_EBL))
  over_last = (((1,), (1,)), ((), ()))
  if rounded == "float32":
    return product(a, b, over_last)
  # Rounded by the product itself, since XLA drops a cast to and fro. Its CPU
  # compiler has no such product and doesn't round.
  low_CE = jax.lax.dot_general(
    a, b, over_last, preferred_element_type=jnp.bfloat16
  )
  return low_CE.astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear(
  gradient_dtype: str, weights_DE: jax.Array, x_DBL: jax.Array
) -> jax.Array:
  """Returns the features x times the weights, EBL, in x's dtype.

  The product runs in x's dtype with float32 sums; the gradient of the weights
  is float32, rounded to `gradient_dtype` as for `over_tokens`.
  """
  return _linear_forward(gradient_dtype, weights_DE, x_DBL)[0]


def _linear_forward(gradient_dtype, weights_DE, x_DBL):
  del gradient_dtype
  low_DE = weights_DE.astype(x_DBL.dtype)
  y_EBL = contract_first(low_DE, x_DBL, batch=0).astype(x_DBL.dtype)
  return y_EBL, (low_DE, x_DBL)


def _linear_backward(gradient_dtype, kept, gradient_EBL):
  low_DE, x_DBL = kept
  weights_DE = over_tokens(_apart(x_DBL), gradient_EBL, rounded=gradient_dtype)
  x_gradient_DBL = product(low_DE, gradient_EBL, (((1,), (0,)), ((), ())))
  return weights_DE, _apart(x_gradient_DBL.astype(x_DBL.dtype))


linear.defvjp(_linear_forward, _linear_backward)


def _apart(x: jax.Array) -> jax.Array:
  """Keeps the TPU compiler from computing x, or what it goes to, in a product.

  It fuses norms and activations into the products beside them, which then
  took up to 1.8 times as long by its own count (LOG.md, "A 7B step").
  """
  return jax.lax.platform_dependent(
    x, tpu=jax.lax.optimization_barrier, default=lambda x: x
  )


def _as_it_lies(x: jax.Array) -> jax.Array:
  """Keeps the CPU compiler from moving a transposition into a product.

  It decides first which bfloat16 products its kernels take, and folds
  transpositions into them later; a folded one fails when it runs ("DotThunk:
  BF16 x BF16 = F32", jax 0.10.2).
  """
  return jax.lax.platform_dependent(
    x, cpu=jax.lax.optimization_barrier, default=lambda x: x
  )
