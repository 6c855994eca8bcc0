"""Batches on devices: those of the mixture, ahead of time, errors included."""

import os
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from array_store import ArrayStore
from test_mixture import _config

from poison_jax.data.batches import device_batches
from poison_jax.data.mixture import Batch, make_mixture

_STEPS = 12


@pytest.fixture(name="mixture", scope="module")
def _mixture():
  store = ArrayStore(documents=200, seed=0)
  return make_mixture(_config(count=30), store, steps=_STEPS)


@pytest.fixture(name="sharding", scope="module")
def _sharding():
  mesh = jax.make_mesh(
    (1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  spec = jax.sharding.PartitionSpec("data")
  return jax.sharding.NamedSharding(mesh, spec)


def _threads() -> list[threading.Thread]:
  return [t for t in threading.enumerate() if t.name == "batches"]


@pytest.fixture(autouse=True)
def _no_thread_stays():
  yield
  assert not _threads()


@pytest.mark.parametrize("start", [0, 7, _STEPS])
def test_every_step_from_any_start_to_the_last(mixture, sharding, start):
  with device_batches(
    mixture, start=start, sharding=sharding, prefetch=2
  ) as batches:
    got = list(batches)
    assert next(batches, None) is None
  assert [step for step, _ in got] == list(range(start, _STEPS))
  for step, batch in got:
    expected = mixture.batch_rows(step, slice(None))
    for on_device, array in zip(batch, expected, strict=True):
      assert isinstance(on_device, jax.Array)
      assert on_device.sharding.is_equivalent_to(sharding, array.ndim)
      assert on_device.dtype == array.dtype
      assert np.array_equal(on_device, array)


class _Watched:
  """A mixture that notes the steps asked for, and fails at one of them."""

  steps, batch = 10**6, 2

  def __init__(self, fail_at: int):
    self.asked = []
    self._fail_at = fail_at

  def batch_rows(self, step, rows):
    self.asked.append(step)
    if step == self._fail_at:
      raise OSError(f"disk gone at {step}")
    n = np.arange(self.batch)[rows].size
    tokens = np.full((n, 3), step, np.int32)
    return Batch(tokens, tokens.astype(np.float32), tokens[:, 0], tokens[:, 0])


def _wait_until(condition) -> None:
  deadline = time.monotonic() + 10
  while not condition() and time.monotonic() < deadline:
    time.sleep(0.01)
  assert condition()


def test_no_more_batches_are_made_than_asked_ahead(sharding):
  watched = _Watched(fail_at=-1)
  with device_batches(
    watched, start=5, sharding=sharding, prefetch=3
  ) as batches:
    _wait_until(lambda: len(watched.asked) == 3)
    time.sleep(0.05)
    assert watched.asked == [5, 6, 7]
    assert next(batches)[0] == 5
    _wait_until(lambda: len(watched.asked) == 4)
    time.sleep(0.05)
    assert watched.asked == [5, 6, 7, 8]


def test_an_error_reaches_the_consumer_after_the_good_batches(sharding):
  got = []
  with (
    pytest.raises(OSError, match="disk gone at 3"),
    device_batches(
      _Watched(fail_at=3), start=0, sharding=sharding, prefetch=8
    ) as batches,
  ):
    for step, _ in batches:
      got.append(step)
  assert got == [0, 1, 2]


def test_the_thread_ends_when_the_consumer_fails(sharding):
  with (
    pytest.raises(ZeroDivisionError),
    device_batches(
      _Watched(fail_at=-1), start=0, sharding=sharding, prefetch=2
    ) as batches,
  ):
    next(batches)
    assert _threads()
    _ = 1 / 0


def test_an_iterator_that_outlives_its_context_ends(sharding):
  with device_batches(
    _Watched(fail_at=-1), start=0, sharding=sharding, prefetch=2
  ) as batches:
    next(batches)
  assert len(list(batches)) <= 2


# Each of four devices holds its rows; a tensor axis repeats them; a process
# asks for no row twice.
_FOUR_DEVICES = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from array_store import ArrayStore
from test_mixture import _config
from poison_jax.data.batches import make_global
from poison_jax.data.mixture import make_mixture
assert jax.device_count() == 4
mixture = make_mixture(
  _config(count=30), ArrayStore(documents=200, seed=0), steps=6)
asked = []
batch_rows = mixture.batch_rows
def noted(step, rows):
  asked.append(rows)
  return batch_rows(step, rows)
mixture.batch_rows = noted
for sizes in ((4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 1, 4)):
  mesh = jax.make_mesh(
    sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  for step in range(6):
    batch = make_global(mixture, step, sharding)
    assert asked.pop().tolist() == list(range(8)) and not asked
    expected = batch_rows(step, slice(None))
    for on_device, array in zip(batch, expected, strict=True):
      assert on_device.sharding == sharding
      assert np.array_equal(on_device, array)
      for shard in on_device.addressable_shards:
        assert np.array_equal(shard.data, array[shard.index])
        assert shard.data.shape[0] == 8 // (sizes[0] * sizes[1])
# As a process that holds the devices 1 and 3 of four: their rows alone.
class Partial:
  def __init__(self, sharding):
    self._sharding = sharding
  def addressable_devices_indices_map(self, shape):
    found = self._sharding.addressable_devices_indices_map(shape)
    return {d: i for d, i in found.items() if d.id in (1, 3)}
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("data"))
made = {}
def from_callback(shape, sharding, callback):
  found = sharding.addressable_devices_indices_map(shape)
  made[len(made)] = {d.id: (i[0], callback(i)) for d, i in found.items()}
jax.make_array_from_callback = from_callback
make_global(mixture, 2, Partial(sharding))
assert asked.pop().tolist() == [2, 3, 6, 7]
for number, array in enumerate(batch_rows(2, slice(None))):
  assert sorted(made[number]) == [1, 3]
  for rows, part in made[number].values():
    assert np.array_equal(part, array[rows])
print("equal")
"""


def test_four_devices_hold_the_rows_of_one_global_batch():
  here = os.path.dirname(__file__)
  result = subprocess.run(
    [sys.executable, "-c", _FOUR_DEVICES],
    capture_output=True,
    text=True,
    check=False,
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
      "PYTHONPATH": os.pathsep.join([here, os.path.dirname(here)]),
    },
  )
  assert result.stdout == "equal\n", result.stderr
