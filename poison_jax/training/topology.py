"""What a run can be estimated for: chips, and how many of them together."""

import dataclasses
import math
import re
from typing import Any, Literal

from poison_jax.config import nearest
from poison_jax.errors import UserError

# Of a GPU's memory, what a JAX process takes: XLA_CLIENT_MEM_FRACTION as
# launch/slurm.sbatch and benchmarks/gpu.py set it. The rest is for what lies
# beside JAX's arrays (CUDA's context, NCCL, cuDNN). Without the variable JAX
# takes 0.75 (docs.jax.dev, "GPU memory allocation").
GPU_SHARE = 0.92


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of device.

  Attributes:
    name: as in a topology's name.
    kind: whose compiler it needs.
    memory: bytes a chip; of a CPU, of the machine's each gigabyte counts.
    peak_flops: dense bfloat16 FLOP/s a chip.
    shapes: the slices that can be rented, ascending.
    near: bytes/s that a chip sends to others of its slice (ICI, NVLink).
    far: bytes/s that a chip sends beyond its slice (data-centre network).
    source: where the numbers are from.
  """

  name: str
  kind: Literal["tpu", "gpu", "cpu"]
  memory: float
  peak_flops: float
  shapes: tuple[str, ...]
  near: float
  far: float
  source: str

  @property
  def usable(self) -> float:
    """Bytes of `memory` that a process can have for its arrays."""
    return self.memory * (GPU_SHARE if self.kind == "gpu" else 1)


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
  *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
  *("8x8x16", "8x16x16", "16x16x16"),
)
_COUNTS = tuple(str(2**k) for k in range(13))
_DOCS = "cloud.google.com/tpu/docs/"
_SHEET = "NVIDIA's data sheet, dense; network: 400 Gbit/s a GPU, ours"

# TPUs: ICI is told in both directions together, so half of it; the network a
# chip, or a pod of 256. GPUs: NVLink likewise; `far` is what a GPU of the
# vendor's own servers has. The CPU: one core of the machine that LOG.md's
# numbers are from (float32 and bfloat16 alike there).
CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v5e", "tpu", 16e9, 197e12, _FLAT, 200e9, 3.1e9, _DOCS + "v5e"),
    Chip("v5p", "tpu", 95e9, 459e12, _CUBES, 600e9, 6.25e9, _DOCS + "v5p"),
    Chip("v6e", "tpu", 32e9, 918e12, _FLAT, 400e9, 12.5e9, _DOCS + "v6e"),
    Chip("a100", "gpu", 80e9, 312e12, _COUNTS, 300e9, 25e9, _SHEET),
    Chip("h100", "gpu", 80e9, 989e12, _COUNTS, 450e9, 50e9, _SHEET),
    Chip("h200", "gpu", 141e9, 989e12, _COUNTS, 450e9, 50e9, _SHEET),
    Chip("b200", "gpu", 180e9, 2250e12, _COUNTS, 900e9, 50e9, _SHEET),
    Chip("cpu", "cpu", 8e9, 0.1e12, _COUNTS, 1e9, 1e9, "a core; LOG.md"),
  )
}
# Along an axis of so many chips the ends are joined.
_RING = {"v5e": 16, "v6e": 16, "v5p": 4}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice, like v5p:4x4x4, or several joined by the data-centre network."""

  chip: Chip
  shape: str
  slices: int = 1

  @property
  def name(self) -> str:
    times = f"*{self.slices}" if self.slices > 1 else ""
    return f"{self.chip.name}:{self.shape}{times}"

  @property
  def chips(self) -> int:
    return self.chips_per_slice * self.slices

  @property
  def chips_per_slice(self) -> int:
    return math.prod(self._sides())

  def larger(self) -> list["Topology"]:
    """Returns the slices with more chips of this kind, ascending."""
    every = [Topology(self.chip, shape) for shape in self.chip.shapes]
    return [t for t in every if t.chips > self.chips]

  def description(self) -> dict[str, Any]:
    """Returns the arguments of JAX's `topologies.get_topology_desc` for TPUs.

    A cube's axes are rings when all of them are 4 or longer, a flat slice's
    when they are 16 long (cloud.google.com/tpu/docs/v5p and v6e). The compiler
    isn't told by the name; without the rings it gathers by all-reduces.
    """
    sides = self._sides()
    if len(sides) == 3:
      rings = (min(sides) >= _RING[self.chip.name],) * 3
    else:
      rings = (*(side == _RING[self.chip.name] for side in sides), False)
    return {
      "platform": "tpu",
      "topology_name": f"{self.chip.name}:{self.shape}",
      "chip_config_name": "megacore" if self.chip.name == "v5p" else "default",
      "chips_per_host_bounds": [1, 1, 1] if self.shape == "1x1" else [2, 2, 1],
      "wrap": list(rings),
      "num_slices": self.slices,
    }

  def _sides(self) -> list[int]:
    return list(map(int, self.shape.split("x")))


def parse_topology(text: str) -> Topology:
  """Returns the slice that "v5p:4x4x4", "v5e:16x16*2" or "h100:8" names.

  Raises:
    UserError: not such a text, or no chip or slice of that name.
  """
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", text)
  if found is None:
    raise UserError(
      f"--topology={text}: must be a chip and a shape or a number, like "
      f"v5p:4x4x4 or h100:8; the chips are {', '.join(CHIPS)}"
      f"{_accelerator_type(text)}"
    )
  name, shape, slices = found.groups()
  if name not in CHIPS:
    raise UserError(
      f"--topology={text}: the chips are {', '.join(CHIPS)}"
      f"{nearest(name, CHIPS)}"
    )
  chip = CHIPS[name]
  if chip.kind == "tpu" and shape not in chip.shapes:
    raise UserError(
      f"--topology={text}: the shapes of {name} are {', '.join(chip.shapes)}"
    )
  if chip.kind != "tpu" and (slices or not shape.isdecimal() or shape == "0"):
    raise UserError(f"--topology={text}: must be a number, like {name}:8")
  if slices == "0":
    raise UserError(f"--topology={text}: must be one slice or more")
  return Topology(chip, shape, int(slices or 1))


def _accelerator_type(text: str) -> str:
  """Returns what Google Cloud's "v5p-128" is here, to be added to an error.

  The number is of cores on v5p, two a chip (cloud.google.com/tpu/docs/v5p), of
  chips on the others; v5e is called v5litepod there.
  """
  found = re.fullmatch(r"(v5p|v5e|v5litepod|v6e)-(\d+)", text)
  if found is None:
    return ""
  chip = CHIPS[found[1].replace("litepod", "e")]
  chips = int(found[2]) / (2 if chip.name == "v5p" else 1)
  slices = (Topology(chip, shape) for shape in chip.shapes)
  names = [slice_.name for slice_ in slices if slice_.chips == chips]
  return f"; {text} is {names[0]}" if names else ""
