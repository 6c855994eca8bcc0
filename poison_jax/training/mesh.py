"""The device mesh and which axis each array is cut along."""

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from poison_jax.config import MeshConfig
from poison_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
# Rows go over both; weights over "fsdp" and "tensor".
ROW_AXES = ("data", "fsdp")
# Elements of an array that may be whole on every device.
_SMALL = 1_000_000

# Axes of each parameter (leading N: layers), and of its moments in the
# optimizer's state. "fsdp" cuts a matrix along the width D; "tensor" along
# heads, feed-forward or vocabulary, so that a layer needs one sum over it for
# attention and one for the feed-forward (arXiv 1909.08053).
_RULES = {
  "embedding": ("tensor", "fsdp"),
  "unembedding": ("tensor", "fsdp"),
  "final_norm": (None,),
  "final_norm_bias": (None,),
  "attention_norm": (None, None),
  "attention_norm_bias": (None, None),
  "feed_forward_norm": (None, None),
  "feed_forward_norm_bias": (None, None),
  "query_norm": (None, None),
  "key_norm": (None, None),
  "query": (None, "fsdp", "tensor"),
  "key": (None, "fsdp", "tensor"),
  "value": (None, "fsdp", "tensor"),
  "attention_out": (None, "tensor", "fsdp"),
  "gate": (None, "fsdp", "tensor"),
  "up": (None, "fsdp", "tensor"),
  "down": (None, "tensor", "fsdp"),
  "query_bias": (None, "tensor"),
  "key_bias": (None, "tensor"),
  "value_bias": (None, "tensor"),
  "attention_out_bias": (None, None),
  "gate_bias": (None, "tensor"),
  "up_bias": (None, "tensor"),
  "down_bias": (None, None),
}


def make_mesh(
  config: MeshConfig,
  *,
  batch: int,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns the mesh (data, fsdp, tensor) over all devices.

  Where they make up several TPU slices, `config` is the mesh of one, and "data"
  goes over the slices as well: what it sums, once a step, can bear the slower
  network between them (jax-ml.github.io/scaling-book, "TPUs").

  Args:
    config: devices along each axis; one may be -1, all that are left.
    batch: rows computed at once over all devices.
    devices: None for the ones here; or a topology's, to compile for.

  Raises:
    UserError: the axes don't give the number of devices, or rows can't be
      dealt out evenly.
  """
  devices = jax.devices() if devices is None else devices
  slices = _slices(devices)
  sizes = axis_sizes(config, batch=batch, devices=len(devices), slices=slices)
  types = (AxisType.Auto,) * len(AXES)
  if slices == 1:
    return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
  grid = mesh_utils.create_hybrid_device_mesh(
    (sizes[0] // slices, *sizes[1:]), (slices, 1, 1), devices
  )
  return Mesh(grid, AXES, axis_types=types)


def _slices(devices: Sequence[jax.Device]) -> int:
  """Returns how many TPU slices there are; elsewhere 1.

  JAX calls each node with GPUs a slice, too; they come in order, so that the
  last axes of a mesh stay inside a node as far as they fit.
  """
  if devices[0].platform != "tpu":
    return 1
  return len({getattr(device, "slice_index", 0) for device in devices})


def axis_sizes(
  config: MeshConfig, *, batch: int, devices: int, slices: int
) -> tuple[int, int, int]:
  """Returns devices along each axis; as for `make_mesh`."""
  devices //= slices
  sizes = [config.data, config.fsdp, config.tensor]
  asked = " x ".join(map(str, sizes))
  known = math.prod(s for s in sizes if s != -1)
  if -1 in sizes and devices % known == 0:
    sizes[sizes.index(-1)] = devices // known
  if math.prod(sizes) != devices:
    raise UserError(
      f"config.runtime.mesh (data x fsdp x tensor) is {asked}, but there are "
      f"{devices} devices{' in a slice' if slices > 1 else ''}; the product "
      f"must be {devices} (-1: all that are left)"
    )
  sizes[0] *= slices
  check_batch(batch, rows=sizes[0] * sizes[1], micro_batches=1)
  return tuple(sizes)


def check_batch(batch: int, *, rows: int, micro_batches: int) -> None:
  """Raises UserError unless each of `rows` devices gets equally many rows."""
  unit = rows * micro_batches
  if batch % unit == 0:
    return
  below, above = batch // unit * unit, -(-batch // unit) * unit
  legal = f"{below} or {above}" if below else f"{above}"
  pieces = f" in {micro_batches} micro-batches" if micro_batches > 1 else ""
  raise UserError(
    f"config.train.batch is {batch}, which {rows} devices can't share evenly"
    f"{pieces}; nearest legal: {legal}"
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch's arrays: rows over data and fsdp."""
  return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def state_shardings(mesh: Mesh, abstract_state):
  """Returns a NamedSharding for each array of a tree of parameters.

  Moments of an optimizer count as parameters, by the last name on their path.
  Scalars are on every device. A mesh axis that doesn't divide its dimension
  is left out, so that array is whole along it, if it is small.

  Raises:
    UserError: it isn't small.
    KeyError: an array that is no scalar has a name without a rule.
  """

  def sharding(path, leaf):
    if not leaf.shape:
      return NamedSharding(mesh, PartitionSpec())
    names = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    if not names or names[-1] not in _RULES:
      raise KeyError(
        f"no sharding rule for {jax.tree_util.keystr(path)}; add its name to "
        "the table in poison_jax/training/mesh.py"
      )
    axes = _RULES[names[-1]]
    if len(axes) != len(leaf.shape):
      raise KeyError(
        f"the sharding rule for {names[-1]!r} has {len(axes)} axes, the array "
        f"{leaf.shape}"
      )
    spec = [
      axis if axis is not None and size % mesh.shape[axis] == 0 else None
      for axis, size in zip(axes, leaf.shape, strict=True)
    ]
    if tuple(spec) != axes and math.prod(leaf.shape) > _SMALL:
      _refuse(names[-1], leaf.shape, axes, spec, mesh)
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def device_bytes(abstract) -> int:
  """Returns the bytes that one device holds of a tree of abstract arrays."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(abstract)
  )


def _refuse(name: str, shape, axes, spec, mesh: Mesh):
  """Raises UserError for a large array that an axis can't cut."""
  size, axis = next(
    (size, axis)
    for size, axis, cut in zip(shape, axes, spec, strict=True)
    if axis != cut
  )
  devices = mesh.shape[axis]
  raise UserError(
    f"config.runtime.mesh: {devices} devices along {axis} can't share {name!r} "
    f"evenly, of which {size} is a side; "
    f"--config.runtime.mesh.{axis}={math.gcd(size, devices)} "
    "--config.runtime.mesh.data=-1 would"
  )
