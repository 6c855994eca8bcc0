"""One H200 or H100: the training step beside PyTorch's, memory, MFU, a
checkpoint's and the evaluations' cost.

  bash benchmarks/gpu.sh [150m 300m 600m 2b] [--minutes=9] [--out=reports/gpu]

For each size the settings of benchmarks/gpu_settings.py are tried, each in a
process of its own that has the GPU for itself, ours and PyTorch's in turn; then
the best of both take two more turns, alternating. A turn: three steps to warm
up, three blocks of steps; a number is the median over blocks. Steps are those
of `train` (state donated) on one batch of ids drawn as words are in a text
(Zipf), since stories can't fill a vocabulary of 32,000; evaluation reads
stories. MFU counts 6 FLOPs a multiplied weight (the embedding's lookup is
none) and causal attention; the bars are of that one. A batch is what is
computed at once: a run's own, in micro-batches, would take minutes a step.

Tables on standard output; gpu.json and gpu.log in --out.
"""

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import flags

from benchmarks import gpu_report, gpu_settings
from poison_jax import command
from poison_jax.errors import CheckFailed, UserError
from poison_jax.model import counts

_DEVICE = flags.DEFINE_enum(
  "device", "gpu", ["gpu", "cpu"], "cpu tries the script; no GPU result."
)
_LENGTH = flags.DEFINE_integer("length", 2048, "L; less with --device=cpu.")
_MINUTES = flags.DEFINE_float("minutes", 0, "Time for all; 0 for no limit.")
_SECONDS = flags.DEFINE_float("seconds", 4, "Of a block of steps, about.")
_OUT = flags.DEFINE_string("out", "reports/gpu", "Folder for gpu.json.")
_TORCH = flags.DEFINE_string(
  "torch_python", "", 'Python that has PyTorch; "" for none.'
)

_GPU_SIZES = ("150m", "300m", "600m", "2b")
_ROWS = 64  # Of the file of tokens; no setting has more.
_TURNS = 3
_NO_TORCH = "not measured (torch is not installed)"


def main(sizes: list[str]) -> None:
  """Measures the sizes and prints the tables."""
  # So that a side's process never outlives this one.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  trial = _DEVICE.value == "cpu"
  sizes = sizes or (["1m"] if trial else list(_GPU_SIZES))
  check(sizes, trial=trial, length=_LENGTH.value)
  os.makedirs(_OUT.value, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix="gpu-benchmark-") as folder:
    bench = Bench(folder, trial=trial)
    device = bench.find_device()
    peak = counts.peak_flops(device["kind"])
    report = {
      "date": datetime.date.today().isoformat(),
      "command": command_line(sys.argv[1:]),
      "trial": trial,
      "device": device,
      "peak_flops": peak,
      "sizes": [],
    }
    began = time.monotonic()
    for i, size in enumerate(sizes):
      spent = time.monotonic() - began
      left = 60 * _MINUTES.value - spent if _MINUTES.value else float("inf")
      record = bench.measure(size, seconds=left / (len(sizes) - i))
      record["figures"] = gpu_report.figures(record, peak)
      report["sizes"].append(record)
      with open(f"{_OUT.value}/gpu.json", "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
  print(text(report))


def check(sizes: list[str], *, trial: bool, length: int) -> None:
  """Raises UserError for sizes or a length that can't be measured."""
  for size in sizes:
    if size not in gpu_settings.OURS:
      known = ", ".join(gpu_settings.OURS)
      raise UserError(f"size {size!r}: must be one of {known}")
  if trial:
    if length < 2:
      raise UserError(f"--length={length}: must be at least 2")
    return
  if "1m" in sizes:
    raise UserError(
      "size '1m' is for --device=cpu; a GPU shows nothing with it"
    )
  if length != 2048:
    raise UserError(
      f"--length={length}: a GPU is measured at 2048; --device=cpu takes others"
    )


def command_line(arguments: list[str]) -> str:
  """Returns what was typed: the script adds --torch_python itself."""
  typed = [a for a in arguments if not a.startswith("--torch_python")]
  return " ".join(["bash benchmarks/gpu.sh", *typed])


def text(report: dict) -> str:
  """Returns what is printed: tables, bars and what was tried."""
  device, records, peak = (
    report["device"],
    report["sizes"],
    report["peak_flops"],
  )
  versions = dict(device["versions"])
  for record in records:
    for entry in record["theirs"]:
      versions |= next(
        (r["versions"] for r in entry["results"] if "versions" in r), {}
      )
  said = ", ".join(f"{name} {version}" for name, version in versions.items())
  lines = [
    f"{device['kind']}, {report['date']}: `{report['command']}`",
    f"{said}; {device['runtime']}; code {device['code']}",
    f"rows of {records[0]['length']} tokens",
  ]
  if report["trial"]:
    lines.insert(0, "A TRIAL OF THE SCRIPT ON A CPU: NO GPU RESULT")
  elif peak is None:
    lines.append(f"MFU: no peak of {device['kind']!r} in model/counts.py")
  lines += ["", gpu_report.step_table(records, peak)]
  lines += ["", gpu_report.around_table(records, peak), ""]
  for record in records:
    lines += gpu_report.bars(record, record["figures"], device["kind"])
  lines.append("")
  for record in records:
    lines += gpu_report.tried_lines(record)
  return "\n".join(lines)


class Bench:
  """Starts the processes; knows the time that is left."""

  def __init__(self, folder: str, *, trial: bool):
    self._folder = folder
    self._trial = trial
    self._tokens = os.path.join(folder, "tokens.npy")
    self._end = float("inf")
    self._log = os.path.join(_OUT.value, "gpu.log")
    with open(self._log, "w", encoding="utf-8"):
      pass

  def find_device(self) -> dict:
    """Returns what our side finds; raises UserError where there is no GPU."""
    found = self._ask_ours(what="devices")
    if "failure" in found:
      raise UserError(
        f"JAX finds no NVIDIA GPU ({found['failure']}); this measures one H200 "
        "or H100: --device=cpu tries the script itself, and measures nothing"
      )
    print(f"{found['kind']}, jax {found['versions']['jax']}", file=sys.stderr)
    return found

  def measure(self, size: str, *, seconds: float) -> dict:
    """Returns the record of a size (`benchmarks.gpu_report`).

    Args:
      size: of the model.
      seconds: for all its processes.
    """
    began = time.monotonic()
    self._end = began + seconds
    record = new_record(size, length=_LENGTH.value)
    np.save(self._tokens, zipf_tokens(size, _LENGTH.value))
    theirs = gpu_settings.THEIRS[size] if _TORCH.value else ()
    if not _TORCH.value:
      record["no_torch"] = _NO_TORCH
    # The first of each always; the others in half of the time.
    pairs = itertools.zip_longest(gpu_settings.OURS[size], theirs)
    for number, (mine, other) in enumerate(pairs):
      for side, setting in (("ours", mine), ("theirs", other)):
        if setting is None:
          continue
        if number and time.monotonic() > began + seconds / 2:
          record["untried"].append(str(setting))
          continue
        self._turn(record, side, entry_of(setting, record))
    best = self._best(record, "ours")
    if best is None:
      self._turn(record, "ours", entry_of(gpu_settings.PLAIN, record))
      best = self._best(record, "ours")
    if best is None:
      record["around"] = {"failure": "no setting of ours ran"}
      return record
    record["around"] = self._around(size, best)
    for _ in range(_TURNS - 1):
      for side in ("ours", "theirs"):
        if (entry := self._best(record, side)) and self._time_for_one(entry):
          self._turn(record, side, entry)
    self._accumulate(record)
    return record

  def _best(self, record: dict, side: str) -> dict | None:
    return gpu_report.best(record[side], record["length"])

  def _turn(self, record: dict, side: str, entry: dict) -> None:
    """Lets one setting take a turn, and keeps what comes of it."""
    size = record["size"]
    began = time.monotonic()
    if side == "ours":
      result = self._ask_ours(what="steps", **self._of_steps(size, entry))
    else:
      result = self._ask_torch(size, entry)
    result["wall_seconds"] = time.monotonic() - began
    if result.get("parameters", record["parameters"]) != record["parameters"]:
      raise CheckFailed(
        f"{side}, {size}: {result['parameters']:,} parameters, the count is "
        f"{record['parameters']:,}"
      )
    if not all(np.isfinite(result.get("losses", [0.0]))):
      result = {"failure": f"the loss is {result['losses'][-1]}"}
    if entry["results"] and "failure" in result:
      # What ran before still counts; time may just have ended.
      record["untried"].append(f"{entry['setting']}, {result['failure']}")
    else:
      entry["results"].append(result)
    if entry not in record[side]:
      record[side].append(entry)
    said = result.get("failure")
    if said is None:
      tokens = record["length"] * entry["rows"]
      said = f"{tokens / np.median(result['seconds']):,.0f} tokens/s"
      said += f", first step {result['first_step_seconds']:.0f} s"
    print(f"{size}, {side}, {entry['setting']}: {said}", file=sys.stderr)

  def _of_steps(self, size: str, entry: dict) -> dict:
    return {
      "size": size,
      "setting": entry["fields"],
      "length": _LENGTH.value,
      "folder": self._folder,
      "seconds": _SECONDS.value,
      "trial": self._trial,
    }

  def _around(self, size: str, entry: dict) -> dict:
    found = self._ask_ours(
      what="around",
      size=size,
      setting=entry["fields"],
      length=_LENGTH.value,
      folder=self._folder,
      trial=self._trial,
    )
    print(f"{size}, around: {json.dumps(found)}", file=sys.stderr)
    return found

  def _accumulate(self, record: dict) -> None:
    """Times the best setting with a step of several micro-batches."""
    best = self._best(record, "ours")
    if not self._time_for_one(best):
      record["untried"].append("several micro-batches")
      return
    fields = best["fields"] | {"micro_batches": gpu_settings.ACCUMULATED}
    entry = entry_of(gpu_settings.Ours(**fields), record)
    self._turn(record | {"ours": []}, "ours", entry)
    record["accumulated"] = entry

  def _time_for_one(self, entry: dict) -> bool:
    took = max(result["wall_seconds"] for result in entry["results"])
    return time.monotonic() + took < self._end

  def _ask_ours(self, **asked) -> dict:
    environment = {
      "JAX_PLATFORMS": "cpu" if self._trial else "cuda",
      "JAX_COMPILATION_CACHE_DIR": os.path.join(self._folder, "jax"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      # PyTorch may have all of the memory, too.
      "XLA_CLIENT_MEM_FRACTION": "0.92",
      "XLA_PYTHON_CLIENT_MEM_FRACTION": "",  # Its old name: JAX refuses both.
    }
    line = [sys.executable, "-m", "benchmarks.gpu_ours"]
    return self._ask(line, environment, asked)

  def _ask_torch(self, size: str, entry: dict) -> dict:
    model = gpu_settings.make_run(size).model
    asked = entry["fields"] | {
      "device": "cpu" if self._trial else "cuda",
      "shape": gpu_settings.torch_shape(size, length=_LENGTH.value),
      "tied": model.tied_embeddings,
      "tokens": self._tokens,
      "seconds": _SECONDS.value,
    }
    environment = {
      "TORCHINDUCTOR_CACHE_DIR": os.path.join(self._folder, "torch"),
      "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    line = [_TORCH.value, "-m", "benchmarks.gpu_torch"]
    return self._ask(line, environment, asked)

  def _ask(self, line: list[str], environment: dict, asked: dict) -> dict:
    """Runs a side's process to its end and returns its answer."""
    answer = os.path.join(self._folder, "answer.json")
    with contextlib.suppress(FileNotFoundError):
      os.remove(answer)
    one_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    left = self._end - time.monotonic()
    with open(self._log, "a", encoding="utf-8") as log:
      print(f"\n== {line[-1]} {json.dumps(asked)}", file=log, flush=True)
      process = subprocess.Popen(
        [*line, json.dumps(asked | {"answer": answer})],
        stdout=log,
        stderr=log,
        env=os.environ | environment | {"CUDA_VISIBLE_DEVICES": one_gpu},
      )
      try:
        code = process.wait(None if left == float("inf") else max(30, left))
      except subprocess.TimeoutExpired:
        return {"failure": "stopped: no time left"}
      finally:
        process.kill()
        process.wait()
    if not os.path.exists(answer):
      return {"failure": f"its process ended with {code}: see {self._log}"}
    with open(answer, encoding="utf-8") as file:
      return json.load(file)


def new_record(size: str, *, length: int) -> dict:
  """Returns a size's record before anything is measured."""
  run = gpu_settings.make_run(size)
  vocabulary = gpu_settings.vocabulary(size)
  flops = counts.flops_per_token(run.model, vocabulary, length)
  return {
    "size": size,
    "length": length,
    "run_length": run.train.length,
    "batch": run.train.batch,
    "steps": counts.run_steps(run, vocabulary),
    "parameters": counts.count_parameters(run.model, vocabulary).total,
    "flops": {"matmul": flops.matmul, "attention": flops.attention},
    "ours": [],
    "theirs": [],
    "accumulated": None,
    "around": {},
    "untried": [],
  }


def entry_of(
  setting: gpu_settings.Ours | gpu_settings.Theirs, record: dict
) -> dict:
  """Returns a setting's entry of a record, without results."""
  entry = {
    "setting": str(setting),
    "fields": dataclasses.asdict(setting),
    "rows": setting.rows,
    "results": [],
  }
  if isinstance(setting, gpu_settings.Ours):
    entry["rows"] *= setting.micro_batches
    entry["flags"] = setting.flags(record["batch"])
  return entry


def zipf_tokens(size: str, length: int) -> np.ndarray:
  """Returns random ids, int32 [rows, length], id i about as often as 1 / i."""
  ids = np.arange(gpu_settings.vocabulary(size))
  chance = 1 / (ids + 2.7)  # Mandelbrot's offset for words.
  random = np.random.default_rng(0)
  drawn = random.choice(ids, (_ROWS, length), p=chance / chance.sum())
  return drawn.astype(np.int32)


if __name__ == "__main__":
  command.run(main)
