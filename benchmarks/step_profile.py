"""Where the CPU training step's time goes, operation by operation.

  python -m benchmarks.step_profile [--widths=64,128,256] [--dtypes=float32]

The step of benchmarks/train_step.py, traced by JAX's profiler: each thunk of
the compiled program is named by the JAX primitive that its fusion ends in
(XLA's own metadata), the least of the steps taken, and summed by part of the
step and primitive. Tracing costs time itself, so shares are told, not seconds.
"""

import collections
import glob
import os
import re
import tempfile

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from benchmarks import train_step
from poison_jax import command
from poison_jax.training import host_memory

_STEPS = 40
_SHOWN = 14

# An instruction of the optimised program: its name, shape and origin in JAX.
_LINE = re.compile(
  r'\s*(?:ROOT )?%?([\w.\-]+) = (\S+) [\w\-]+\(.*op_name="([^"]*)"'
)


def main(arguments: list[str]) -> None:
  """Prints a table for each width and dtype."""
  del arguments
  host_memory.keep_freed_memory()
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  with tempfile.TemporaryDirectory() as folder:
    os.environ["XLA_FLAGS"] = (  # Read when JAX looks for devices.
      f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder} "
      "--xla_dump_hlo_as_text --xla_cpu_enable_xprof_traceme=true"
    )
    for width in map(int, flags.FLAGS.widths):
      for dtype in flags.FLAGS.dtypes:
        Console().print(_table(width, dtype, folder))


def _table(width: int, dtype: str, folder: str) -> Table:
  nanoseconds = _trace(width, dtype)
  names = _names(folder)
  total = sum(nanoseconds.values())
  shares = collections.Counter()
  for thunk, time in nanoseconds.items():
    shares[names.get(thunk, ("other", "no name"))] += time / total
  table = Table("part", "ends in", "share", title=f"{width}, {dtype}")
  ranked = shares.most_common()
  for (part, primitive), share in ranked[:_SHOWN]:
    table.add_row(part, primitive, f"{share:.1%}")
  rest = sum(share for _, share in ranked[_SHOWN:])
  table.add_row("all others", "", f"{rest:.1%}")
  return table


def _trace(width: int, dtype: str) -> dict[str, float]:
  """Returns the nanoseconds a step of each thunk."""
  step, state, batch = train_step.make(width, dtype)
  for _ in range(3):
    state, metrics = step(state, batch)
  jax.block_until_ready(metrics)
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(_STEPS):
        state, metrics = step(state, batch)
      jax.block_until_ready(metrics)
    (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
    events = collections.defaultdict(list)
    for plane in jax.profiler.ProfileData.from_file(file).planes:
      for line in plane.lines:
        for event in line.events:
          if name := dict(event.stats).get("hlo_op"):
            events[name].append(event.duration_ns)
  return {
    name: min(times) * len(times) / _STEPS for name, times in events.items()
  }


def _names(folder: str) -> dict[str, tuple[str, str]]:
  """Returns the part and the primitive of the newest program's thunks."""
  dumps = glob.glob(f"{folder}/*jit_step*cpu_after_optimizations.txt")
  with open(max(dumps, key=os.path.getmtime), encoding="utf-8") as dump:
    found = [_LINE.match(line) for line in dump]
  return {m[1]: _name(m[2], m[3]) for m in found if m}


def _name(shape: str, path: str) -> tuple[str, str]:
  """Returns the part of the step and the primitive, in words."""
  if "transpose(jvp(Decoder" in path:
    part = "layers, backward"
  elif "jvp(Decoder" in path:
    part = "layers, forward"
  elif "jvp" in path:
    part = "loss"
  else:
    part = "optimizer, metrics"
  primitive = path.rpartition("/")[2]
  if primitive == "dot_general" and part.startswith("layers"):
    rank = shape.partition("{")[0].count(",") + 1
    primitive = "product " + ("with a weight" if rank < 4 else "in attention")
  elif primitive in ("reduce_max", "exp"):
    primitive = "softmax"
  elif primitive in ("transpose", "slice", "split", "concatenate", "pad"):
    primitive = "moving data"
  return part, primitive


if __name__ == "__main__":
  command.run(main)
