"""The mesh: legal shapes, one line for others, a rule for every parameter."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from small_model import VOCABULARY, make_config, make_decoder

from poison_jax.config import MeshConfig
from poison_jax.errors import UserError
from poison_jax.training import mesh as mesh_lib
from poison_jax.training.optimizer import make_optimizer


def _mesh():
  return mesh_lib.make_mesh(MeshConfig(-1, 1, 1), batch=8)


def test_minus_one_takes_the_devices_that_are_left():
  assert dict(_mesh().shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, -1, 3)])
def test_a_mesh_of_other_than_all_devices_is_refused(sizes):
  with pytest.raises(UserError, match="there are 1 devices"):
    mesh_lib.make_mesh(MeshConfig(*sizes), batch=8)


@dataclasses.dataclass(frozen=True)
class _Chip:
  """As much of a TPU device as a mesh looks at."""

  id: int
  slice_index: int
  platform: str = "tpu"
  device_kind: str = "made up"
  core_on_chip: int = 0

  @property
  def process_index(self) -> int:
    return self.id // 2

  @property
  def coords(self) -> tuple[int, int, int]:
    return (self.id % 2, self.id % 4 // 2, 0)


def test_only_data_goes_over_slices():
  chips = [_Chip(i, i // 4) for i in range(8)]
  # Dealt out as they may come, not by slice.
  mesh = mesh_lib.make_mesh(MeshConfig(1, -1, 2), batch=8, devices=chips[::-1])
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  for number, devices in enumerate(mesh.devices):
    assert {chip.slice_index for chip in devices.flat} == {number}
  with pytest.raises(UserError, match="is 1 x 8 x 1, .* 4 devices in a slice"):
    mesh_lib.make_mesh(MeshConfig(1, 8, 1), batch=8, devices=chips)


@pytest.mark.parametrize(
  ("batch", "rows", "pieces", "legal"),
  [(6, 4, 1, "4 or 8"), (3, 4, 1, "4"), (12, 4, 2, "8 or 16")],
)
def test_the_nearest_legal_batches_are_named(batch, rows, pieces, legal):
  with pytest.raises(UserError, match=f"is {batch}, .*nearest legal: {legal}$"):
    mesh_lib.check_batch(batch, rows=rows, micro_batches=pieces)
  mesh_lib.check_batch(16, rows=rows, micro_batches=pieces)


def test_every_parameter_and_its_moments_have_a_rule():
  config = make_config()
  model = dataclasses.replace(config.model, qk_norm=True, tied_embeddings=False)
  _, params = make_decoder(model)
  biased = dataclasses.replace(config.model, norm="layer", biases=True)
  _, others = make_decoder(biased)
  mesh_lib.state_shardings(_mesh(), others)
  optimizer = make_optimizer(config.optimizer, steps=10)
  tree = {"params": params, "opt_state": optimizer.init(params)}
  shardings = mesh_lib.state_shardings(_mesh(), tree)
  specs = {
    jax.tree_util.keystr(path): sharding.spec
    for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)
  }
  up = [spec for path, spec in specs.items() if path.endswith("['up']")]
  assert up == [PartitionSpec(None, "fsdp", "tensor")] * 3
  assert len(specs) == len(jax.tree.leaves(tree))


def test_an_unknown_name_is_an_error():
  with pytest.raises(KeyError, match="novelty"):
    mesh_lib.state_shardings(_mesh(), {"novelty": jnp.zeros((2, 2))})
  with pytest.raises(KeyError, match="2 axes"):
    mesh_lib.state_shardings(_mesh(), {"embedding": jnp.zeros((2, 2, 2))})


def test_an_axis_that_does_not_divide_a_large_array_is_refused():
  mesh = AbstractMesh((1, 24, 1), mesh_lib.AXES)
  tree = {"query": jax.ShapeDtypeStruct((40, 5120, 5120), jnp.float32)}
  message = "24 .* fsdp can't share 'query' .*mesh.fsdp=8 .*mesh.data=-1 would"
  with pytest.raises(UserError, match=message):
    mesh_lib.state_shardings(mesh, tree)


def test_an_axis_that_does_not_divide_is_left_out(monkeypatch):
  class Mesh:
    shape = {"data": 1, "fsdp": 2, "tensor": 2}

  monkeypatch.setattr(mesh_lib, "NamedSharding", lambda mesh, spec: spec)
  specs = mesh_lib.state_shardings(
    Mesh(), {"embedding": jnp.zeros((VOCABULARY, 4))}
  )
  assert specs == {"embedding": PartitionSpec(None, "fsdp")}
