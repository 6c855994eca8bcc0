"""The training step on one core against PyTorch: tokens/s.

  bash benchmarks/train_step.sh

makes an environment for PyTorch (CPU) beside this one and runs this script,
which starts a process for each side, pinned to one core, and lets them take
turns: same model, batch, dtype, optimizer (AdamW, clipping, decay on matrices).
PyTorch runs eagerly and with `torch.compile`, one thread, its fused AdamW and
its own attention; in bfloat16 under autocast, float32 parameters, as here.

Must reach, of eager: 1.0 at width 64, 0.85 at 128 and 256. Aim: 1.0 of
compiled. Times are CPU seconds of the process, the best of the rounds, so that
a busy machine distorts them less; with one thread that is wall time on an idle
one. --wall takes wall time.
"""

import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from configs import base
from poison_jax import command
from poison_jax import config as config_lib
from poison_jax.data.mixture import Batch
from poison_jax.errors import UserError
from poison_jax.model.decoder import Decoder
from poison_jax.training import host_memory
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import optimizer as optimizer_lib
from poison_jax.training import step as step_lib

_TORCH = flags.DEFINE_string(
  "torch_python", "", "Python of the environment that has PyTorch."
)
_WIDTHS = flags.DEFINE_list("widths", ["64", "128", "256"], "Model widths.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Dtypes.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each side.")
_CORE = flags.DEFINE_integer("core", 0, "The core that all sides run on.")
_WALL = flags.DEFINE_bool("wall", False, "Wall time instead of CPU time.")
_WORKER = flags.DEFINE_string("worker", "", "Used by the script itself.")

_BATCH, _LENGTH, _VOCABULARY, _HEAD = 4, 256, 256, 32
_DEPTHS = {64: 2, 128: 4, 256: 4}
_STEPS = {64: 20, 128: 6, 256: 3}  # A turn; about 300 ms.


def main(arguments: list[str]) -> None:
  """Measures all sides and prints the table."""
  del arguments
  if _WORKER.value:
    _work(**json.loads(_WORKER.value))
    return
  if not _TORCH.value:
    raise UserError("--torch_python is missing: run benchmarks/train_step.sh")
  table = Table("width", "dtype", "ms: ours", "eager", "compiled")
  for ratio in ("tokens/s", "of eager", "of compiled"):
    table.add_column(ratio)
  for width in map(int, _WIDTHS.value):
    for dtype in _DTYPES.value:
      ours, eager, compiled = _measure(width, dtype)
      table.add_row(
        str(width),
        dtype,
        *(f"{1e3 * t:.1f}" for t in (ours, eager, compiled)),
        f"{_BATCH * _LENGTH / ours:,.0f}",
        f"{eager / ours:.2f}",
        f"{compiled / ours:.2f}",
      )
  Console(width=100).print(table)


def _measure(width: int, dtype: str) -> list[float]:
  """Returns the seconds a step of ours, eager and compiled."""
  shape = {
    "vocabulary": _VOCABULARY,
    "width": width,
    "depth": _DEPTHS[width],
    "heads": width // _HEAD,
    "size": _HEAD,
    "hidden": 3 * width,
    "length": _LENGTH,
    "batch": _BATCH,
  }
  torch = [
    _TORCH.value,
    os.path.join(os.path.dirname(__file__), "train_step_torch.py"),
    f"--dtype={dtype}",
    f"--shape={json.dumps(shape)}",
  ]
  ours = [sys.executable, "-m", "benchmarks.train_step"]
  worker = json.dumps({"width": width, "dtype": dtype})
  commands = [[*ours, f"--worker={worker}"], torch, [*torch, "--compile"]]
  sides = [_start(c) for c in commands]
  best = [float("inf")] * len(sides)
  for _ in range(_ROUNDS.value):
    for i, side in enumerate(sides):
      side.stdin.write(f"{_STEPS[width]}\n")
      side.stdin.flush()
      took = json.loads(side.stdout.readline())
      seconds = took["wall" if _WALL.value else "cpu"] / _STEPS[width]
      best[i] = min(best[i], seconds)
  for side in sides:
    side.stdin.close()
    side.wait()
  return best


def _start(command_line: list[str]) -> subprocess.Popen:
  """Starts a side and waits for its first steps."""
  side = subprocess.Popen(
    ["taskset", "-c", str(_CORE.value), *command_line],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  print(side.stdout.readline().strip(), file=sys.stderr)
  return side


def _work(*, width: int, dtype: str) -> None:
  """Our side: answers "N" with the seconds of N steps."""
  host_memory.keep_freed_memory()  # As `train` does on the CPU.
  train_step, state, batch = make(width, dtype)
  for _ in range(3):
    state, metrics = train_step(state, batch)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  loss = float(metrics["train/loss"])
  print(json.dumps({"parameters": parameters, "loss": loss}), flush=True)
  for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(int(line)):
      state, metrics = train_step(state, batch)
      jax.block_until_ready(metrics)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"wall": wall, "cpu": cpu}), flush=True)


def make(width: int, dtype: str):
  """Returns our step, the state before step 0 and a batch on the device."""
  c = base.get_config()
  c.model.width, c.model.depth = width, _DEPTHS[width]
  c.model.heads = c.model.kv_heads = width // _HEAD
  c.model.head_size, c.model.feed_forward = _HEAD, 3 * width
  c.model.scan_layers, c.model.compute_dtype = False, dtype
  c.train.batch, c.train.length, c.train.steps = _BATCH, _LENGTH, 10_000
  config = config_lib.from_config_dict(c)
  decoder = Decoder(config.model, _VOCABULARY)
  mesh = mesh_lib.make_mesh(config.runtime.mesh, batch=_BATCH)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, steps=10_000)
  state = step_lib.init_state(decoder, optimizer, 0, mesh)
  train_step = step_lib.make_train_step(decoder, optimizer, config, mesh)
  random = np.random.default_rng(0)
  weights_BL = np.ones((_BATCH, _LENGTH), np.float32)
  weights_BL[:, -1] = 0
  batch = Batch(
    random.integers(0, _VOCABULARY, weights_BL.shape, dtype=np.int32),
    weights_BL,
    np.zeros(_BATCH, np.int32),
    np.zeros(_BATCH, np.int32),
  )
  sharding = mesh_lib.batch_sharding(mesh)
  return train_step, state, jax.device_put(batch, sharding)


if __name__ == "__main__":
  command.run(main)
