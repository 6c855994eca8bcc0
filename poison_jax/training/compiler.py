"""Compiling in a process of its own, for TPUs in an environment of its own.

With `libtpu` among the packages, JAX looks for a TPU whenever it starts. So it
goes into a folder that only the compiling process has on its path; everything
else that process needs is the environment that runs this one.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from poison_jax import config as config_lib
from poison_jax.config import Config
from poison_jax.errors import UserError
from poison_jax.training import xla_flags
from poison_jax.training.ahead import Program, program_from_dict
from poison_jax.training.topology import Topology

_PATIENCE = 15.0  # Seconds between signs of life.

Say = Callable[[str], None]


def libtpu_version() -> str:
  """Returns the requirement that this JAX states, like "libtpu==0.0.42.*"."""
  for line in importlib.metadata.requires("jax") or ():
    requirement, _, marker = line.partition(";")
    if requirement.startswith("libtpu") and "tpu" in marker:
      return requirement.strip()
  return "libtpu"


def is_installed(folder: str) -> bool:
  """Says whether `folder` holds the compiler that this JAX asks for."""
  try:
    with open(_stamp(folder), encoding="utf-8") as file:
      return file.read() == libtpu_version()
  except OSError:
    return False


def install(folder: str, *, say: Say) -> None:
  """Installs `libtpu` (about 700 MB) into `folder`, unless it is there.

  Raises:
    UserError: pip can't.
  """
  if is_installed(folder):
    return
  requirement = libtpu_version()
  say(f"installing {requirement} into {folder}, once")
  command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade"]
  command += ["--no-deps", f"--target={folder}", requirement]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    raise UserError(f"pip can't install {requirement} into {folder}: {last}")
  with open(_stamp(folder), "w", encoding="utf-8") as file:
    file.write(requirement)


def compile_for(
  config: Config, topology: Topology, *, folder: str, say: Say
) -> Program | None:
  """Compiles the train step for a TPU slice, or for devices that are here.

  Args:
    config: the run's.
    topology: what to compile for.
    folder: where `install` put the TPU compiler.
    say: called now and then with a line while the compiler works.

  Returns:
    None where the topology is of GPUs and they aren't here.

  Raises:
    UserError: the mesh or the batch does not go with the slice.
    RuntimeError: the compiler failed; its last lines.
  """
  request = {"topology": topology.name, "config": config_lib.to_dict(config)}
  with (
    tempfile.TemporaryFile("w+") as asked,
    tempfile.TemporaryFile("w+") as answered,
    tempfile.TemporaryFile("w+") as errors,
  ):
    json.dump(request, asked)
    asked.seek(0)
    process = subprocess.Popen(
      [sys.executable, "-m", "poison_jax.training.ahead"],
      stdin=asked,
      stdout=answered,
      stderr=errors,
      env=_environment(topology, folder),
    )
    try:
      _wait(process, say)
    finally:
      process.kill()
      process.wait()
    answered.seek(0)
    errors.seek(0)
    return _read(process.returncode, answered.read(), errors.read())


def _environment(topology: Topology, folder: str) -> dict[str, str]:
  package = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
  kind = topology.chip.kind
  path = [folder] if kind == "tpu" else []
  path += [package, os.environ.get("PYTHONPATH", "")]
  environment = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, path)),
  }
  if kind != "gpu":
    environment["JAX_PLATFORMS"] = "cpu"  # A TPU's topology is apart.
  if kind == "cpu":
    count = f"--xla_force_host_platform_device_count={topology.chips}"
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
  else:
    xla_flags.add(kind, environment)
  return environment | {
    "TPU_SKIP_MDS_QUERY": "1",  # Don't ask Google's metadata server.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # Several may compile at once.
    "TPU_MIN_LOG_LEVEL": "3",
  }


def _wait(process: subprocess.Popen, say: Say) -> None:
  start = time.monotonic()
  while True:
    try:
      process.wait(timeout=_PATIENCE)
      return
    except subprocess.TimeoutExpired:
      say(f"  compiling, {time.monotonic() - start:.0f} s so far")


def _read(code: int, answered: str, errors: str) -> Program | None:
  if code:
    raise RuntimeError(f"the compiler failed:\n{errors[-2000:]}")
  answer = json.loads(answered.strip().splitlines()[-1])
  if "error" in answer:
    raise UserError(answer["error"])
  return program_from_dict(answer) if answer else None


def _stamp(folder: str) -> str:
  return os.path.join(folder, "requirement.txt")
