"""Attention kernels equal the plain formula, on the CPU."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from poison_jax.config import MeshConfig
from poison_jax.model import flash
from poison_jax.training import mesh as mesh_lib

_BACK_ENDS = {
  "cudnn": functools.partial(flash.cudnn_attention, implementation="xla"),
  "splash": functools.partial(flash.splash_attention, interpret=True),
}


def _plain(q_GRKBL, k_GKBL, v_GKBL):
  length = q_GRKBL.shape[-1]
  scores = jnp.einsum(
    "grkbl,gkbs->grbls", q_GRKBL, k_GKBL, preferred_element_type=jnp.float32
  )
  before_LS = jnp.arange(length)[None] <= jnp.arange(length)[:, None]
  weights = jax.nn.softmax(jnp.where(before_LS, scores, -jnp.inf), axis=-1)
  return jnp.einsum("grbls,gkbs->grkbl", weights, v_GKBL)


def _arrays(*, groups: int, shared: int, size: int, batch: int, length: int):
  """Returns queries, keys, values, and weights of a sum of the mixture."""
  keys = jax.random.split(jax.random.key(0), 4)
  shape = (size, batch, length)
  q, weight = (
    jax.random.normal(key, (groups, shared, *shape)) for key in keys[::3]
  )
  k, v = (jax.random.normal(key, (groups, *shape)) for key in keys[1:3])
  return (q * size**-0.5, k, v), weight


def _with_gradients(function, arrays, weight):
  """Returns the mixture and the gradients of its weighted sum."""

  def summed(*arrays):
    mixed = function(*arrays)
    return jnp.sum(mixed * weight), mixed

  gradients, mixed = jax.jit(jax.grad(summed, argnums=(0, 1, 2), has_aux=True))(
    *arrays
  )
  return jax.tree.map(np.asarray, (mixed, *gradients))


@pytest.mark.parametrize("name", _BACK_ENDS)
@pytest.mark.parametrize("shared", [1, 3])
@pytest.mark.parametrize("length", [100, 384])
def test_a_kernel_and_its_gradients_equal_the_plain_formula(
  name, shared, length
):
  arrays, weight = _arrays(
    groups=2, shared=shared, size=16, batch=2, length=length
  )
  ours = _with_gradients(_BACK_ENDS[name], arrays, weight)
  theirs = _with_gradients(_plain, arrays, weight)
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", _BACK_ENDS)
def test_a_kernel_in_bfloat16_stays_near_the_plain_formula(name):
  arrays, weight = _arrays(groups=2, shared=2, size=8, batch=1, length=128)
  low = [x.astype(jnp.bfloat16) for x in arrays]
  ours = _with_gradients(_BACK_ENDS[name], low, weight)
  theirs = _with_gradients(_plain, arrays, weight)
  assert all(a.dtype == jnp.bfloat16 for a in ours)
  for a, b in zip(ours, theirs, strict=True):
    assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(b)


def _on_a_mesh(name: str, *, groups: int):
  """Returns errors against the plain formula, and a program's gatherings.

  Rows and heads come and go as a decoder has them: over ("data", "fsdp") and,
  where they can be, over "tensor".
  """
  arrays, weight = _arrays(groups=groups, shared=2, size=8, batch=4, length=128)
  theirs = _with_gradients(_plain, arrays, weight)
  mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), batch=4)
  heads = "tensor" if groups % 2 == 0 else None

  def place(x):
    axes = [None] * (x.ndim - 3)
    spec = PartitionSpec(heads, *axes, mesh_lib.ROW_AXES, None)
    return jax.device_put(x, NamedSharding(mesh, spec))

  placed = [place(x) for x in arrays]
  with jax.set_mesh(mesh):
    ours = _with_gradients(_BACK_ENDS[name], placed, place(weight))
    program = jax.jit(_BACK_ENDS[name]).lower(*placed).compile().as_text()
  errors = [float(abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)]
  return errors, program.count("all-gather")


@pytest.fixture(scope="module", name="on_eight_devices")
def _on_eight_devices():
  """What `_on_a_mesh` gives in a process with 8 devices, by name and groups."""
  environment = dict(
    os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=8"
  )
  result = subprocess.run(
    [sys.executable, __file__],
    env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("groups", [2, 1])
@pytest.mark.parametrize("name", _BACK_ENDS)
def test_each_of_eight_devices_computes_its_own_rows(
  on_eight_devices, name, groups
):
  errors, gathered = on_eight_devices[f"{name} {groups}"]
  assert max(errors) < 1e-5
  assert gathered == 0


if __name__ == "__main__":
  results = {
    f"{name} {groups}": _on_a_mesh(name, groups=groups)
    for name in _BACK_ENDS
    for groups in (2, 1)
  }
  print(json.dumps(results))
