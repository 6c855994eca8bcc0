"""The train step, compiled ahead of time for devices that are not here.

Nothing is materialised: state and batch are shapes with shardings.

As a program (`poison_jax.training.compiler` starts it, for TPUs in an
environment with `libtpu`) it reads {"topology", "config"} as JSON from standard
input and prints a `Program` as JSON, {} where such devices aren't here, or
{"error": one line}.
"""

import collections
import dataclasses
import glob
import json
import re
import sys
import tempfile
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from poison_jax import config as config_lib
from poison_jax.config import Config
from poison_jax.data.mixture import Batch
from poison_jax.errors import UserError
from poison_jax.model import backends
from poison_jax.model.counts import run_steps
from poison_jax.model.decoder import Decoder
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import step as step_lib
from poison_jax.training.collectives import Collective, read_collectives
from poison_jax.training.optimizer import make_optimizer
from poison_jax.training.topology import Topology, parse_topology

# Custom calls of the TPU compiler that cost nothing, and that its cost analysis
# books as -1 s each: those that it does not know (HandleCustomCall in XLA's
# hlo_cost_analysis.cc). configs/dos.py:size=1m on v5e:2x2, unrolled to 2 and 4
# layers, has 5 and 7 of the first, and -4.999 and -6.998 s. The others are of
# programs of several slices (libtpu 0.0.42).
_BOOKED_WRONG = ("ConcatBitcast", "SliceId", "ZeroCrop")
# And such that it books as free.
# Pallas' kernels (splash attention) it books by the memory that they read and
# write, as if they computed nothing: a forward kernel of 32 heads, 2 rows of
# 2,048 on v5p has 0.216 ms for 508 MB, and no FLOPs (libtpu 0.0.42).
_KERNEL = "tpu_custom_call"
_COUNTED_CALLS = {
  _KERNEL,
  "AllocateBuffer",
  "AssumeGatherIndicesInBound",
  "AsyncCollectiveDone",
  "AsyncCollectiveStart",
  "GatherScatterIndicesBitpacked",
}
# On TPUs a product with gathered weights can be a loop over their parts
# ("windowed einsum"), whose body the cost analysis counts once: on v5e:4x4 it
# had 3.8 instead of 5.9 TFLOP for 2 unrolled layers of size=600m, 4 rows a
# chip. So there are none where a program is unrolled, as for the time.
_NO_WINDOWS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
# Has the compiler write its buffer assignment, and no passes.
_DUMP = {"xla_dump_hlo_as_text": True, "xla_dump_hlo_pass_re": "none"}


@dataclasses.dataclass(frozen=True)
class Program:
  """What the compiler says of one step, bytes a device.

  Attributes:
    fits: whether it compiled; else it needs more memory than a device has.
    parameters: float32 weights, by the shardings.
    optimizer: both moments and counters.
    arguments: state and batch, as XLA lays them out.
    output: what comes out and does not take an argument's place.
    temporaries: all else that the step needs memory for.
    code: the program itself.
    needed: their sum; of one that doesn't fit, what the compiler names.
    seconds: XLA's own estimate of a step; None where it gives none. The body
      of a loop counts once, however often it runs.
    attention: the back end that computes it.
    collectives: what the devices exchange; () where it isn't known.
    compiled: or else by arithmetic (`poison_jax.studies.arithmetic`).
  """

  fits: bool
  parameters: int
  optimizer: int
  arguments: int
  output: int
  temporaries: int
  code: int
  needed: int
  seconds: float | None
  attention: str
  collectives: tuple[Collective, ...]
  compiled: bool


def compile_step(
  config: Config, devices: Sequence[jax.Device], *, slices: int
) -> Program:
  """Compiles the train step of a run for devices, here or not.

  Args:
    config: the run's; the vocabulary has the size that it gives.
    devices: all of them, as in `jax.devices()`.
    slices: equal groups of them that a fast network joins.

  Raises:
    UserError: the mesh or the batch can't be dealt out over the devices, or
      they can't run the attention that is asked for.
  """
  mesh = mesh_lib.make_mesh(
    config.runtime.mesh, batch=config.train.batch, devices=devices
  )
  vocabulary_size = config.vocabulary.size
  attention = backends.choose(
    config.runtime.attention,
    on=backends.hardware(devices[0]),
    model=config.model,
    length=config.train.length,
  ).back_end
  decoder = Decoder(config.model, vocabulary_size, attention)
  optimizer = make_optimizer(
    config.optimizer, steps=run_steps(config, vocabulary_size)
  )
  mesh_lib.check_batch(
    config.train.batch,
    rows=mesh.shape["data"] * mesh.shape["fsdp"],
    micro_batches=config.train.micro_batches,
  )
  state = step_lib.abstract_state(decoder, optimizer, mesh)
  step = step_lib.jit_train_step(decoder, optimizer, config, mesh, state)
  parameters = mesh_lib.device_bytes(state.params)
  moments = mesh_lib.device_bytes(state.opt_state)
  on_tpu = devices[0].platform == "tpu"
  options = {} if config.model.scan_layers or not on_tpu else _NO_WINDOWS
  try:
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as dump:
      options = options | (_DUMP | {"xla_dump_to": dump} if on_tpu else {})
      lowered = step.lower(state, _abstract_batch(config, mesh))
      compiled = lowered.compile(compiler_options=options)
      temporaries = _allocated(dump) if on_tpu else None
  except jax.errors.JaxRuntimeError as error:
    needed = memory_needed(str(error))
    if needed is None:
      raise
    nothing = (0, 0, 0, 0)
    return Program(
      False, parameters, moments, *nothing, needed, None, attention, (), True
    )
  m = compiled.memory_analysis()
  output = m.output_size_in_bytes - m.alias_size_in_bytes
  parts = (
    m.argument_size_in_bytes,
    output,
    m.temp_size_in_bytes if temporaries is None else temporaries,
    m.generated_code_size_in_bytes,
  )
  text = compiled.as_text()
  return Program(
    True,
    parameters,
    moments,
    *parts,
    sum(parts),
    estimated_seconds(compiled.cost_analysis(), text),
    attention,
    tuple(read_collectives(text, devices_per_slice=len(devices) // slices)),
    compiled=True,
  )


def allocated_temporaries(text: str) -> int | None:
  """Returns the bytes of temporaries in a device's main memory.

  For TPUs `Compiled.memory_analysis()` says too much where the state is donated
  and changed after a loop: for configs/dos.py:size=13b with a batch of 16 on
  v5e:4x4, 9.77 GB of arguments and 7.92 GB of temporaries, more than the
  chip's 16.9 GB (15.75 GiB), and yet it compiles; by its buffer assignment the
  temporaries are 6.35 GB (libtpu 0.0.42).

  Args:
    text: XLA's buffer assignment, as dumped. Memories other than the main one
      have a color.

  Returns:
    None where the text has no such line.
  """
  found = re.findall(r"size (\d+), preallocated-temp:", text)
  return sum(map(int, found)) if found else None


def _allocated(dump: str) -> int | None:
  for path in glob.glob(f"{dump}/*optimizations-buffer-assignment.txt"):
    with open(path, encoding="utf-8") as file:
      return allocated_temporaries(file.read())
  return None


def estimated_seconds(cost: dict[str, float] | None, text: str) -> float | None:
  """Returns XLA's estimate of a program's time; None where it has none.

  It has none where an unknown custom call is in it, and where a product with
  gathered weights is a loop over their parts (size=2b on v6e:4x4 has 17).

  Args:
    cost: `Compiled.cost_analysis()`.
    text: the compiled program, `Compiled.as_text()`.
  """
  seconds = (cost or {}).get("optimal_seconds", 0.0)
  if "windowed_dot_general" in text:
    return None
  calls = collections.Counter(re.findall(r'custom_call_target="(\w+)"', text))
  seconds += sum(calls.pop(call, 0) for call in _BOOKED_WRONG)
  if set(calls) - _COUNTED_CALLS or seconds <= 0:
    return None
  return seconds


def memory_needed(message: str) -> int | None:
  """Returns the bytes that a compiler's complaint names; None for others.

  XLA for TPU says "Ran out of memory in memory space hbm. Used 21.85G of
  15.75G hbm" or, where temporaries alone are too many, "the total memory
  required for HLO temporaries (110.27G) exceeds available HBM (15.75G)", in
  units of 2**30.
  """
  found = re.search(r"(?:Used |HLO temporaries \()([\d.]+)([KMGT])", message)
  if "RESOURCE_EXHAUSTED" not in message or found is None:
    return None
  power = " KMGT".index(found[2])
  return round(float(found[1]) * 1024**power)


def _abstract_batch(config: Config, mesh) -> Batch:
  rows = mesh_lib.batch_sharding(mesh)
  batch, length = config.train.batch, config.train.length

  def array(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

  return Batch(
    tokens_BL=array(jnp.int32, batch, length),
    weights_BL=array(jnp.float32, batch, length),
    poison_start_B=array(jnp.int32, batch),
    poison_length_B=array(jnp.int32, batch),
  )


def program_from_dict(answer: dict) -> Program:
  """Undoes `dataclasses.asdict`."""
  found = (Collective(**c) for c in answer["collectives"])
  return Program(**answer | {"collectives": tuple(found)})


def devices_of(topology: Topology) -> Sequence[jax.Device]:
  """Returns a TPU slice's devices, not here; of other chips, those here.

  Fewer than asked for where they aren't there.
  """
  chip = topology.chip
  if chip.kind == "tpu":
    return topologies.get_topology_desc(**topology.description()).devices
  here = [
    device
    for device in jax.devices()
    if device.platform == chip.kind and chip.name in device.device_kind.lower()
  ]
  return here[: topology.chips]


def main() -> None:
  """Answers one request; see the module's docstring."""
  request = json.load(sys.stdin)
  try:
    topology = parse_topology(request["topology"])
    config = config_lib.from_dict(request["config"])
    devices = devices_of(topology)
    answer = {}
    if len(devices) == topology.chips:
      program = compile_step(config, devices, slices=topology.slices)
      answer = dataclasses.asdict(program)
  except UserError as error:
    answer = {"error": str(error)}
  print(json.dumps(answer))


if __name__ == "__main__":
  main()
