"""The collectives of a compiled program, read from its text.

`Compiled.as_text()` is the program of one device after XLA has cut it up, so
shapes are what a device holds.

XLA for TPU (libtpu 0.0.42) writes every reduce-scatter as an all-reduce of
which each device then takes its own slice, also one that `jax.lax.psum_scatter`
asks for (v5p:2x2x2, v5p:4x4x4, v5e:8x8). Such a one is told as "sliced".

What the devices of several slices exchange over the data-centre network are not
collectives of the program, but transfers that the host does for it: a "send"
whose attributes name the collective and the slices that take part.
"""

import dataclasses
import math
import re

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_ITEM = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_ITEM |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}

_HEAD = re.compile(r"(ENTRY )?(%?[\w.\-]+) \(.*\{$")
_LINE = re.compile(r"\s*(?:ROOT )?(%?[\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")
_NAME = re.compile(r"%[\w.\-]+")
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,:]+)\}')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One array of one collective operation of a device's program.

  Attributes:
    kind: of `KINDS`.
    array: what is gathered, reduced or sent, whole, like "bf16[4096,4096]".
      Of those that XLA has combined into one operation each is told.
    bytes: of that array.
    group: devices that take part together.
    far: whether a group has devices of several slices.
    sliced: whether it is an all-reduce of which each device takes a slice.
    times: how often it runs in a step.
    origin: the JAX operation that it comes from.
  """

  kind: str
  array: str
  bytes: int
  group: int
  far: bool
  sliced: bool
  times: int
  origin: str

  @property
  def sent(self) -> float:
    """Bytes that a device sends in a step, at the least.

    By the best algorithms, rings among them: (g - 1) / g of the array for a
    gather or a reduce-scatter, twice that for an all-reduce.
    """
    if self.kind == "collective-permute":
      return float(self.bytes * self.times)
    passes = 2 if self.kind == "all-reduce" else 1
    share = (self.group - 1) / self.group
    return passes * share * self.bytes * self.times


@dataclasses.dataclass(frozen=True)
class _Line:
  """An instruction: %name = type opcode(rest."""

  name: str
  type: str
  opcode: str
  rest: str

  def operands(self) -> list[str]:
    return _NAME.findall(self.rest.partition(")")[0])

  def called(self, key: str) -> list[str]:
    """Returns the computations named by "calls=%c", "body=%c" and so on."""
    found = re.search(rf"\b{key}=\{{?((?:%[\w.\-]+(?:, )?)+)", self.rest)
    return _NAME.findall(found[1]) if found else []


def read_collectives(text: str, *, devices_per_slice: int) -> list[Collective]:
  """Returns the collectives of a program, in the order of its text.

  Args:
    text: `Compiled.as_text()`.
    devices_per_slice: that consecutive partitions share a fast network.

  Raises:
    ValueError: a loop or a group is in a form that isn't known.
  """
  computations, entry = _computations(text)
  found = []
  for name, times in _times(computations, entry).items():
    for line in computations[name]:
      kind = line.opcode.removesuffix("-start")
      if kind in KINDS:
        found += _read(line, computations, name, times, devices_per_slice)
      elif line.opcode == "send" and _TRANSFER.search(line.rest):
        found.append(_between_slices(line, times))
  return found


def _computations(text: str) -> tuple[dict[str, list[_Line]], str]:
  computations, entry, current = {}, "", []
  for line in text.splitlines():
    head = _HEAD.match(line)
    if head:
      name = "%" + head[2].lstrip("%")
      current = computations.setdefault(name, [])
      entry = name if head[1] else entry
    elif instruction := _LINE.match(line):
      current.append(_Line(*instruction.groups()))
  return computations, entry


def _times(computations, entry: str) -> dict[str, int]:
  """Returns how often each computation runs in a step, those that do."""
  times: dict[str, int] = {}
  todo = [(entry, 1)]
  while todo:
    name, runs = todo.pop()
    times[name] = times.get(name, 0) + runs
    for line in computations[name]:
      if line.opcode == "while":
        trips = _trips(line, computations, name)
        todo += [(body, runs * trips) for body in line.called("body")]
      for key in ("calls", "branch_computations"):
        todo += [(called, runs) for called in line.called(key)]
  return times


def _trips(loop: _Line, computations, name: str) -> int:
  """Returns a loop's rounds: told, or by the constants that bound it.

  JAX's scans and maps count up, and so do the loops that the TPU compiler makes
  of a product of which one side is gathered piece by piece.

  Args:
    loop: the instruction.
    computations: of the program.
    name: the computation that the loop is in.
  """
  told = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
  if told:
    return int(told[1])
  (condition,) = loop.called("condition")
  constants = [
    int(line.rest.partition(")")[0])
    for line in computations[condition]
    if line.opcode == "constant" and line.type.startswith(("s32[]", "u32[]"))
  ]
  if len(constants) != 1:
    raise ValueError(f"{loop.name}: a loop of unknown length")
  (body,) = loop.called("body")
  place = _counter_place(computations[condition])
  if place is None:
    return constants[0]
  start = _start(loop, computations[name], place)
  stride = _stride(computations[body], place)
  return math.ceil((constants[0] - start) / stride)


def _counter_place(condition: list[_Line]) -> int | None:
  """Returns the place of a loop's counter in its tuple: what it compares."""
  compared = [name for line in condition[-1:] for name in line.operands()]
  places = [
    int(re.search(r"index=(\d+)", line.rest)[1])
    for line in condition
    if line.name in compared and line.opcode == "get-tuple-element"
  ]
  return places[0] if places else None


def _start(loop: _Line, around: list[_Line], place: int) -> int:
  """Returns the number that a loop's counter starts from.

  0, unless the tuple that the loop is given has a constant there: the TPU
  compiler takes the first round of a loop whose sums go to other slices out of
  it.
  """
  lines = {line.name: line for line in around}
  given = lines.get(loop.operands()[0])
  if given is None or given.opcode != "tuple":
    return 0
  first = lines.get(given.operands()[place])
  while first is not None and first.opcode in ("copy", "bitcast"):
    first = lines.get(first.operands()[0])
  if first is None or first.opcode != "constant":
    return 0
  return int(first.rest.partition(")")[0])


def _stride(body: list[_Line], place: int) -> int:
  """Returns by how much a loop's counter grows in a round.

  By 1, unless the body, whose last line is what it hands on, says otherwise.
  """
  if body[-1].opcode != "tuple":
    return 1
  lines = {line.name: line for line in body}
  counter = lines.get(body[-1].operands()[place])
  if counter is None or counter.opcode != "add":
    return 1
  added = [lines[name] for name in counter.operands() if name in lines]
  steps = [
    int(line.rest.partition(")")[0])
    for line in added
    if line.opcode == "constant"
  ]
  return steps[0] if steps else 1


def _read(line, computations, name, times, devices_per_slice):
  """Returns the Collectives, an array each, of one instruction."""
  kind = line.opcode.removesuffix("-start")
  groups = _groups(line.rest)
  group = len(groups[0])
  far = any(len({d // devices_per_slice for d in g}) > 1 for g in groups)
  origin = re.search(r'op_name="([^"]*)"', line.rest)
  arrays = _ARRAY.findall(line.type)
  if line.opcode == "collective-permute-start":
    arrays = arrays[1:2]  # Operand, result, and two words that are not sent.
  elif line.opcode.endswith("-start"):  # Operands and results in one tuple.
    arrays = arrays[len(arrays) // 2 :]
  found = []
  for place, (dtype, shape) in enumerate(arrays):
    index = place if line.type.startswith("(") else None
    found.append(
      Collective(
        kind=kind,
        array=f"{dtype}[{shape}]",
        bytes=_bytes(dtype, shape) * (group if kind == "reduce-scatter" else 1),
        group=group,
        far=far,
        sliced=kind == "all-reduce"
        and _sliced(line, computations, name, index=index),
        times=times,
        origin=origin[1] if origin else "",
      )
    )
  return found


def _between_slices(line: _Line, times: int) -> Collective:
  """Returns the Collective that a transfer between slices stands for.

  Seen so far are sums (libtpu 0.0.42), which are all that the train step needs:
  copies of the weights over slices, FSDP within one.
  """
  transfer = _TRANSFER.search(line.rest)[1]
  slices = _SLICES.search(line.rest)
  array = _ARRAY.search(line.type)
  if transfer != "ALL_REDUCE" or slices is None or array is None:
    raise ValueError(f"{line.name}: a transfer between slices: {transfer}")
  return Collective(
    kind="all-reduce",
    array=f"{array[1]}[{array[2]}]",
    bytes=_bytes(*array.groups()),
    group=_count(slices[1]),
    far=True,
    sliced=False,
    times=times,
    origin=re.search(r'rendezvous="([^"]*)"', line.rest)[1],
  )


def _count(slices: str) -> int:
  """Returns how many numbers "1,2" or "0:3" are."""
  ends = [[int(n) for n in part.split(":")] for part in slices.split(",")]
  return sum(part[-1] - part[0] + 1 for part in ends)


def _bytes(dtype: str, shape: str) -> int:
  size = _ITEM[dtype]
  for side in filter(None, shape.split(",")):
    size *= int(side)
  return size


def _groups(rest: str) -> list[list[int]]:
  """Returns the groups of devices; a permutation's pairs count as groups.

  Three forms: {{0,1},{2,3}}; [2,2]<=[4] or [2,2]<=[2,2]T(1,0), the numbers in
  order, turned; mesh['a'=2,'b'=2] {'b'}, a group over the axes named.
  """
  listed = re.search(
    r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", rest
  )
  if listed:
    sets = re.findall(r"\{([\d,]+)\}", listed[1])
    return [[int(d) for d in s.split(",")] for s in sets]
  iota = re.search(
    r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest
  )
  if iota:
    sides = [int(s) for s in iota[3].split(",")]
    order = [int(s) for s in iota[4].split(",")] if iota[4] else None
    return _split(_in_order(sides, order), int(iota[2]))
  mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest)
  if mesh:
    axes = re.findall(r"'(\w+)'=(\d+)", mesh[1])
    names, sides = [a for a, _ in axes], [int(s) for _, s in axes]
    over = [names.index(a) for a in re.findall(r"'(\w+)'", mesh[2])]
    others = [i for i in range(len(names)) if i not in over]
    size = 1
    for i in over:
      size *= sides[i]
    return _split(_in_order(sides, others + over), size)
  raise ValueError(f"groups of devices in an unknown form: {rest[:200]}")


def _in_order(sides: list[int], order: list[int] | None) -> list[int]:
  """Returns 0, 1, 2 ... as an array of these sides, its axes in `order`."""
  order = list(range(len(sides))) if order is None else order
  strides = [1] * len(sides)
  for i in range(len(sides) - 2, -1, -1):
    strides[i] = strides[i + 1] * sides[i + 1]
  found = [0]
  for axis in order:
    found = [d + k * strides[axis] for d in found for k in range(sides[axis])]
  return found


def _split(numbers: list[int], size: int) -> list[list[int]]:
  return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def _sliced(line, computations, name, *, index=None) -> bool:
  """Says whether all that becomes of an array is slices that devices choose.

  Args:
    line: what makes it.
    computations: of the program.
    name: the computation that it is in.
    index: its place, if `line` makes several.
  """
  users = [u for u in computations[name] if line.name in u.operands()]
  if index is not None:
    place = re.compile(rf"\bindex={index}\b")
    users = [u for u in users if place.search(u.rest)]
  return bool(users) and all(
    _slices(u, u.operands().index(line.name), computations, name) for u in users
  )


def _slices(user: _Line, place: int, computations, name: str) -> bool:
  """Looks through fusions and what merely changes an array's form."""
  if user.opcode == "dynamic-slice":
    return place == 0
  if user.opcode in ("get-tuple-element", "bitcast", "copy", "convert"):
    return _sliced(user, computations, name)
  if user.opcode == "fusion":
    (inside,) = user.called("calls")
    for line in computations[inside]:
      if line.opcode == "parameter" and line.rest.startswith(f"{place})"):
        return _sliced(line, computations, inside)
  return False
