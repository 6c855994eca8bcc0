"""TPU slices that a step can be compiled for: chips and their shapes."""

import dataclasses
import math
import re

from poison_jax.config import nearest
from poison_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of TPU.

  Attributes:
    name: as in a topology's name.
    memory: bytes of HBM a chip.
    peak_flops: dense bfloat16 FLOP/s a chip.
    shapes: the slices that can be rented, ascending.
    source: where the numbers are from.
  """

  name: str
  memory: float
  peak_flops: float
  shapes: tuple[str, ...]
  source: str


_FLAT = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_CUBES = (
  "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16"
)
_DOCS = "cloud.google.com/tpu/docs/"

CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v5e", 16e9, 197e12, tuple(_FLAT.split()), _DOCS + "v5e"),
    Chip("v5p", 95e9, 459e12, tuple(_CUBES.split()), _DOCS + "v5p"),
    Chip("v6e", 32e9, 918e12, tuple(_FLAT.split()), _DOCS + "v6e"),
  )
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice, like v5p:4x4x4."""

  chip: Chip
  shape: str

  @property
  def name(self) -> str:
    return f"{self.chip.name}:{self.shape}"

  @property
  def chips(self) -> int:
    return math.prod(map(int, self.shape.split("x")))

  def larger(self) -> list["Topology"]:
    """Returns the slices with more chips of this kind, ascending."""
    every = [Topology(self.chip, shape) for shape in self.chip.shapes]
    return [t for t in every if t.chips > self.chips]


def parse_topology(text: str) -> Topology:
  """Returns the slice that "v5p:4x4x4" names.

  Raises:
    UserError: not such a text, or no chip or slice of that name.
  """
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
  if found is None:
    raise UserError(
      f"--topology={text}: must be a chip and a shape, like v5p:4x4x4; the "
      f"chips are {', '.join(CHIPS)}"
    )
  name, shape = found.groups()
  if name not in CHIPS:
    raise UserError(
      f"--topology={text}: the chips are {', '.join(CHIPS)}"
      f"{nearest(name, CHIPS)}"
    )
  chip = CHIPS[name]
  if shape not in chip.shapes:
    raise UserError(
      f"--topology={text}: the shapes of {name} are {', '.join(chip.shapes)}"
    )
  return Topology(chip, shape)
