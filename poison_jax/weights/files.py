"""Safetensors files: read into sharded arrays one tensor at a time, written.

A tensor is read, put into its place on the devices, and forgotten, so that the
host never holds more than the parameters themselves and one tensor. Files are
mapped into memory only while one of their tensors is read.
"""

import functools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  Gives numpy the type "bfloat16" by its name.
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from poison_jax.errors import UserError
from poison_jax.weights import layout
from poison_jax.weights.layout import Tensor

_ONE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# In the files, and how much of the value float32 keeps: all of it.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Files:
  """The safetensors files of a folder in Hugging Face's layout.

  Attributes:
    names: of the files, as the index names them.
    dtypes: names of all types of the tensors that `check` asked for.
  """

  def __init__(self, folder: str):
    """Raises UserError where a file is missing or damaged."""
    self._folder = folder
    self.names = self._find()
    self.dtypes: set[str] = set()
    self._where: dict[str, str] = {}
    for name in self.names:
      with self._opened(name) as file:
        self._where |= dict.fromkeys(file.keys(), name)

  def check(self, tensors: Iterable[Tensor], *, tied: bool) -> None:
    """Raises UserError unless the files hold these tensors and no others."""
    tensors = list(tensors)
    by_name = {tensor.name: tensor for tensor in tensors}
    for name in self._where:
      if name not in by_name and not layout.is_no_weight(name, tied=tied):
        raise UserError(
          f"{self._folder}: {self._where[name]} has the tensor {name}, which "
          "the architecture that config.json names doesn't have"
        )
    missing = [name for name in by_name if name not in self._where]
    if missing:
      raise UserError(
        f"{self._folder}: the tensor {missing[0]} is missing"
        + (f", and {len(missing) - 1} others" if len(missing) > 1 else "")
      )
    for name in self.names:
      with self._opened(name) as file:
        for key in by_name.keys() & file.keys():
          self._check_tensor(name, by_name[key], file.get_slice(key))

  def read(self, tensor: Tensor) -> np.ndarray:
    """Returns a tensor as float32."""
    with self._opened(self._where[tensor.name]) as file:
      return file.get_tensor(tensor.name).astype(np.float32, copy=False)

  def _check_tensor(self, name: str, tensor: Tensor, found) -> None:
    shape, dtype = tuple(found.get_shape()), found.get_dtype()
    if shape != tensor.shape:
      raise UserError(
        f"{self._folder}: {name} has {tensor.name} of shape {shape}; "
        f"config.json makes it {tensor.shape}"
      )
    if dtype not in _DTYPES:
      raise UserError(
        f"{self._folder}: {name} has {tensor.name} of type {dtype}; the types "
        f"that can be read are {', '.join(_DTYPES)}"
      )
    self.dtypes.add(_DTYPES[dtype])

  def _opened(self, name: str):
    path = os.path.join(self._folder, name)
    try:
      return safetensors.safe_open(path, framework="numpy")
    except (OSError, safetensors.SafetensorError) as error:
      raise UserError(f"{path}: damaged, or no safetensors ({error})") from None

  def _find(self) -> list[str]:
    path = os.path.join(self._folder, _INDEX)
    names = [_ONE]
    if os.path.exists(path):
      try:
        with open(path, encoding="utf-8") as f:
          names = sorted(set(json.load(f)["weight_map"].values()))
      except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error!r})") from None
    for name in names:
      if not os.path.isfile(os.path.join(self._folder, name)):
        raise UserError(self._missing(name, of=len(names)))
    return names

  def _missing(self, name: str, *, of: int) -> str:
    if of > 1:
      return (
        f"{self._folder}: {name} is missing, one of the {of} files that "
        f"{_INDEX} names"
      )
    pickled = [n for n in os.listdir(self._folder) if n.endswith(".bin")]
    return f"{self._folder}: neither {_ONE} nor {_INDEX} is there" + (
      f"; {pickled[0]} is a pickle of PyTorch's, which can't be read: save the "
      "model as safetensors"
      if pickled
      else ""
    )


def load(
  files: Files, tensors: Iterable[Tensor], abstract: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """Returns our parameters, by path, onto the shardings asked for.

  Args:
    files: checked.
    tensors: all of the model.
    abstract: `jax.ShapeDtypeStruct`s with shardings, by path.
  """
  values: dict[str, jax.Array] = {}
  for tensor in tensors:
    parts = layout.to_ours(tensor, files.read(tensor))
    for path, part in zip(tensor.params, parts, strict=True):
      wanted = abstract[path]
      if tensor.layer is None:
        values[path] = _over_devices(part, wanted.sharding)
        continue
      if path not in values:
        values[path] = _zeros(wanted.shape, wanted.sharding)
      inner = PartitionSpec(*wanted.sharding.spec[1:])
      values[path] = _put(wanted.sharding)(
        values[path],
        _over_devices(part, NamedSharding(wanted.sharding.mesh, inner)),
        tensor.layer,
      )
  return values


def _over_devices(array: np.ndarray, sharding) -> jax.Array:
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: np.ascontiguousarray(array[index])
  )


def _zeros(shape: tuple[int, ...], sharding) -> jax.Array:
  make = functools.partial(jnp.zeros, shape, jnp.float32)
  return jax.jit(make, out_shardings=sharding)()


@functools.cache
def _put(sharding) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
  """Returns what writes a layer into an array, which is given up for it."""

  def put(array, layer, number):
    return jax.lax.dynamic_update_index_in_dim(array, layer, number, axis=0)

  return jax.jit(put, donate_argnums=0, out_shardings=sharding)


def write(
  folder: str,
  tensors: Iterable[Tensor],
  params: Mapping[str, jax.Array],
  *,
  largest: int,
) -> list[str]:
  """Writes our parameters as safetensors; returns the names of the files.

  Args:
    folder: exists.
    tensors: all of the model.
    params: by path, float32.
    largest: bytes of a file, unless one tensor has more; where one file isn't
      enough, an index is written, too.
  """
  parts = list(_parts(tensors, largest))
  names = [
    f"model-{i:05}-of-{len(parts):05}.safetensors"
    for i in range(1, len(parts) + 1)
  ]
  if len(parts) == 1:
    names = [_ONE]
  for name, part in zip(names, parts, strict=True):
    arrays = {tensor.name: _gathered(tensor, params) for tensor in part}
    safetensors.numpy.save_file(
      arrays, os.path.join(folder, name), metadata={"format": "pt"}
    )
  if len(parts) == 1:
    return names
  index = {
    "metadata": {"total_size": sum(map(_bytes, sum(parts, [])))},
    "weight_map": {
      tensor.name: name
      for name, part in zip(names, parts, strict=True)
      for tensor in part
    },
  }
  with open(os.path.join(folder, _INDEX), "w", encoding="utf-8") as f:
    json.dump(index, f, indent=2)
  return [*names, _INDEX]


def _parts(tensors: Iterable[Tensor], largest: int) -> Iterator[list[Tensor]]:
  part: list[Tensor] = []
  for tensor in tensors:
    if part and sum(map(_bytes, part)) + _bytes(tensor) > largest:
      yield part
      part = []
    part.append(tensor)
  yield part


def _bytes(tensor: Tensor) -> int:
  return 4 * math.prod(tensor.shape)


def _gathered(tensor: Tensor, params: Mapping[str, jax.Array]) -> np.ndarray:
  arrays = [params[path] for path in tensor.params]
  if tensor.layer is not None:
    arrays = [array[tensor.layer] for array in arrays]
  return layout.to_theirs(tensor, jax.device_get(arrays))
