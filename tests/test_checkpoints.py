"""Checkpoints: nothing damaged is restored, nothing good is lost."""

import os
import pathlib
import subprocess
import sys

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from poison_jax.config import CheckpointConfig
from poison_jax.errors import CheckFailed
from poison_jax.training.checkpoints import Checkpoints, Damaged, Meta
from poison_jax.training.digest import digest
from poison_jax.training.saving import CheckpointWriter


@flax.struct.dataclass
class _State:
  step: jax.Array
  params: dict
  opt_state: tuple


_OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))


def _state(seed: int) -> _State:
  rng = np.random.default_rng(seed)
  params = {
    "embedding": jnp.asarray(rng.normal(size=(64, 16)), jnp.float32),
    "layers": {"query": jnp.asarray(rng.normal(size=(2, 16, 16)), jnp.float32)},
    "small": jnp.asarray(rng.normal(size=(7,)), jnp.bfloat16),
  }
  moments = jax.tree.map(lambda x: x * 0.5, _OPTIMIZER.init(params))
  return _State(jnp.int32(seed), params, moments)


def _abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def _meta(step: int) -> Meta:
  return Meta(
    step=step,
    poisons_seen=step // 2,
    poison_tokens_seen=100 * step,
    config_hash="c" * 16,
    plan_hash="p" * 16,
    store_hash="s" * 16,
    code_version="v",
    unwritten=None,
  )


def _config(**changes) -> CheckpointConfig:
  values = {"every": 3, "keep_last": 2, "keep_log_spaced": False}
  return CheckpointConfig(**{**values, "keep_every": 0, **changes})


def _save(workdir, steps, config=None):
  with CheckpointWriter(str(workdir), config or _config()) as writer:
    for step in steps:
      writer.save(_state(step), _meta(step))


def _equal(a, b) -> bool:
  same = jax.tree.map(lambda x, y: bool((x == y).all()), a, b)
  return jax.tree.structure(a) == jax.tree.structure(b) and all(
    jax.tree.leaves(same)
  )


def _array_files(workdir, step):
  folder = pathlib.Path(workdir) / "checkpoints" / str(step) / "state"
  return sorted(
    folder.glob("ocdbt.process_*/d/*"), key=lambda p: p.stat().st_size
  )


def test_what_was_saved_comes_back_with_its_types(tmp_path):
  _save(tmp_path, [3, 6])
  restored = Checkpoints(str(tmp_path)).restore_latest(
    _abstract(_state(0)), say=pytest.fail
  )
  assert _equal(restored.state, _state(6))
  assert restored.meta == _meta(6)
  assert restored.state.params["small"].dtype == jnp.bfloat16


def test_no_checkpoint_at_all_is_a_start_from_zero(tmp_path):
  found = Checkpoints(str(tmp_path)).restore_latest(
    _abstract(_state(0)), say=pytest.fail
  )
  assert found is None


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
  advance = jax.jit(
    lambda s: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), s),
    donate_argnums=0,
  )
  state = _state(3)
  with CheckpointWriter(str(tmp_path), _config()) as writer:
    writer.save(state, _meta(3))
    for _ in range(50):
      state = advance(state)
  restored = Checkpoints(str(tmp_path)).restore(3, _abstract(_state(0)))
  assert _equal(restored.state, _state(3))


def test_parameters_come_back_without_the_optimizer(tmp_path):
  _save(tmp_path, [3])
  params = _state(3).params
  restored = Checkpoints(str(tmp_path)).restore_params(3, _abstract(params))
  assert _equal(restored.state, params)
  assert restored.meta.poison_tokens_seen == 300


def _flip_a_bit_of_the_arrays(folder):
  """Flips one bit of a value, in the largest file of compressed arrays."""
  file = max(folder.glob("state/**/d/*"), key=lambda p: p.stat().st_size)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def _truncate(folder):
  file = max(folder.glob("state/**/d/*"), key=lambda p: p.stat().st_size)
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _lose_a_file(folder):
  max(folder.glob("state/**/d/*"), key=lambda p: p.stat().st_size).unlink()


def _lose_the_manifest(folder):
  (folder / "state" / "manifest.ocdbt").unlink()


def _lose_the_record(folder):
  (folder / "meta" / "metadata").unlink()


def _change_a_number_of_the_record(folder):
  file = folder / "meta" / "metadata"
  text = file.read_text()
  assert '"poison_tokens_seen": 600' in text
  file.write_text(
    text.replace('"poison_tokens_seen": 600', '"poison_tokens_seen": 601')
  )


def _empty(folder):
  for file in sorted(folder.rglob("*"), reverse=True):
    file.rmdir() if file.is_dir() else file.unlink()


_DAMAGES = [
  _flip_a_bit_of_the_arrays,
  _truncate,
  _lose_a_file,
  _lose_the_manifest,
  _lose_the_record,
  _change_a_number_of_the_record,
  _empty,
]


@pytest.mark.parametrize("damage", _DAMAGES, ids=lambda f: f.__name__)
def test_a_damaged_step_is_passed_over_with_one_line(tmp_path, damage):
  _save(tmp_path, [3, 6])
  damage(tmp_path / "checkpoints" / "6")
  lines = []
  restored = Checkpoints(str(tmp_path)).restore_latest(
    _abstract(_state(0)), say=lines.append
  )
  assert restored.meta.step == 3 and _equal(restored.state, _state(3))
  assert len(lines) == 1 and "\n" not in lines[0]
  assert "step 6" in lines[0] and "passed over" in lines[0]
  # The step can be saved again, and is then the latest.
  _save(tmp_path, [6])
  again = Checkpoints(str(tmp_path)).restore_latest(
    _abstract(_state(0)), say=pytest.fail
  )
  assert again.meta.step == 6 and _equal(again.state, _state(6))


@pytest.mark.parametrize("damage", _DAMAGES, ids=lambda f: f.__name__)
def test_where_none_is_good_nothing_starts_from_zero(tmp_path, damage):
  _save(tmp_path, [6])
  damage(tmp_path / "checkpoints" / "6")
  with pytest.raises(CheckFailed, match="none of the checkpoints"):
    Checkpoints(str(tmp_path)).restore_latest(
      _abstract(_state(0)), say=lambda _: None
    )
  assert (tmp_path / "checkpoints" / "6").exists()


def test_each_bit_of_a_stored_array_matters(tmp_path):
  """orbax alone must restore some of these flips, or the digest is idle."""
  _save(tmp_path, [6])
  reader, abstract = Checkpoints(str(tmp_path)), _abstract(_state(0))
  file = _array_files(tmp_path, 6)[-1]
  good = file.read_bytes()
  caught_by_digest = 0
  for place in np.linspace(0, len(good) - 1, 40).astype(int):
    data = bytearray(good)
    data[place] ^= 1 << (place % 8)
    file.write_bytes(data)
    try:
      restored = reader.restore(6, abstract)
    except Damaged as error:
      caught_by_digest += "digest" in str(error)
    else:  # A byte that holds no value: then nothing may have changed.
      assert _equal(restored.state, _state(6))
  assert caught_by_digest > 0


def test_a_stray_numeric_folder_is_passed_over(tmp_path):
  _save(tmp_path, [3])
  (tmp_path / "checkpoints" / "900").mkdir()
  lines = []
  restored = Checkpoints(str(tmp_path)).restore_latest(
    _abstract(_state(0)), say=lines.append
  )
  assert restored.meta.step == 3
  assert len(lines) == 1 and "step 900" in lines[0]


def test_another_dtype_or_shape_is_refused_and_not_taken_for_damage(tmp_path):
  _save(tmp_path, [3])
  for wrong in (
    {"small": jnp.zeros((7,), jnp.float32)},
    {"small": jnp.zeros((8,), jnp.bfloat16)},
    {"more": jnp.zeros(3)},
  ):
    state = _state(0)
    state = state.replace(params={**state.params, **wrong})
    with pytest.raises(CheckFailed, match=f"params/{next(iter(wrong))}"):
      Checkpoints(str(tmp_path)).restore_latest(
        _abstract(state), say=pytest.fail
      )


def test_kept_are_the_newest_the_log_spaced_and_every_kth(tmp_path):
  config = _config(every=3, keep_last=2, keep_log_spaced=True, keep_every=10)
  with CheckpointWriter(str(tmp_path), config) as writer:
    due = [step for step in range(1, 25) if writer.due(step)]
    for step in due:
      writer.save(_state(step), _meta(step))
  assert due == [1, 2, 3, 4, 6, 8, 9, 10, 12, 15, 16, 18, 20, 21, 24]
  assert Checkpoints(str(tmp_path)).steps() == [1, 2, 4, 8, 10, 16, 20, 21, 24]


def test_a_full_disk_is_one_line_and_spares_the_last_good_one(tmp_path):
  """A limit on the size of files stands in for the full disk."""
  code = f"""
import resource, sys
from poison_jax.errors import UserError
sys.path[:0] = [{str(pathlib.Path(__file__).parent)!r}]
import test_checkpoints as t
with t.CheckpointWriter({str(tmp_path)!r}, t._config(keep_last=1)) as writer:
  writer.save(t._state(3), t._meta(3))
  writer.wait()
  resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
  try:
    writer.save(t._state(6), t._meta(6))
    writer.wait()
  except UserError as error:
    print(error)
    sys.exit(2)
"""
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )
  assert result.returncode == 2, result.stderr
  assert "step 6" in result.stdout and "step 3 is good" in result.stdout
  assert len(result.stdout.strip().splitlines()) == 1
  restored = Checkpoints(str(tmp_path)).restore_latest(
    _abstract(_state(0)), say=lambda _: None
  )
  assert restored.meta.step == 3


_OTHER_MESH = """
import sys
sys.path[:0] = [{tests!r}]
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import test_checkpoints as t
from poison_jax.training.digest import digest
assert jax.device_count() == 8
for shape, axes in [((8,), ("data",)), ((2, 4), ("data", "tensor"))]:
  mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))
  def sharding(x):
    spec = [a if n % mesh.shape[a] == 0 else None
            for a, n in zip(axes, x.shape)]
    return NamedSharding(mesh, PartitionSpec(*spec))
  wanted = t._state(3)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x)),
    wanted)
  restored = t.Checkpoints({workdir!r}).restore(3, abstract)
  assert len(restored.state.params["embedding"].sharding.device_set) == 8
  assert t._equal(jax.device_get(restored.state), jax.device_get(wanted))
  assert digest(restored.state) == digest(wanted)
  with t.CheckpointWriter({workdir!r}, t._config(keep_last=9)) as writer:
    writer.save(restored.state, t._meta(4 + len(axes)))
print("equal")
"""


def test_a_checkpoint_restores_on_other_meshes_and_back(tmp_path):
  _save(tmp_path, [3])
  code = _OTHER_MESH.format(
    tests=str(pathlib.Path(__file__).parent), workdir=str(tmp_path)
  )
  result = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    check=False,
    env={
      **os.environ,
      "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
      "JAX_PLATFORMS": "cpu",
    },
  )
  assert result.stdout == "equal\n", result.stderr
  for step in (5, 6):
    restored = Checkpoints(str(tmp_path)).restore(step, _abstract(_state(0)))
    assert _equal(restored.state, _state(3))


def test_the_digest_tells_swapped_values_shapes_and_leaves_apart():
  x = jnp.arange(12, dtype=jnp.float32).reshape(3, 4)
  same = digest({"a": x})
  assert digest({"a": x + 0}) == same
  assert digest({"a": x.at[0, 0].set(-0.0)}) != same
  assert digest({"a": x[::-1]}) != same
  assert digest({"a": x.reshape(4, 3)}) != same
  assert digest({"b": x}) != same
  half = x.astype(jnp.bfloat16)
  assert digest({"a": half}) != digest({"a": half.at[2, 3].add(0.0625)})
