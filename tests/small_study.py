"""A study of runs that are never trained, or trained by a stand-in."""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

import small_run

from configs import base
from poison_jax import config as config_lib
from poison_jax.studies.grid import plan as plan_lib
from poison_jax.studies.grid import study as study_lib
from poison_jax.studies.grid.axes import axis, product
from poison_jax.studies.grid.plan import Plan
from poison_jax.studies.grid.study import Study

ROOT = pathlib.Path(__file__).parent.parent


def _base(arguments):
  given = config_lib.parse_arguments(arguments, poisons=4, seed=0, store="none")
  tree = base.get_config()
  tree.update_from_flattened_dict(
    small_run.overrides(
      pathlib.Path(given.store),
      poison__count=given.poisons,
      seed=given.seed,
      corpus__store=given.store,  # A path would lose the two slashes of gs://.
      runtime__compilation_cache=f"{given.store}/../compiled",
      train__steps=12,
      evaluation__times=2,
    )
  )
  return tree


def make_study(*, doses=(0, 4), seeds=(0, 1), store="none", **changes) -> Study:
  """Returns a study of `doses` x `seeds` cells; `changes` of its fields."""
  fields = {
    "name": "small",
    "question": "Does it?",
    "base": _base,
    "fixed": {"store": str(store)},
    "grid": product(axis("seed", *seeds), axis("poisons", *doses)),
    "margin": 0.25,
    "topology": "cpu:1",
    "mfu": 0.3,
  }
  return Study(**{**fields, **changes})


def make_plan(workdir, **study) -> Plan:
  """Returns its plan in a folder; writes nothing."""
  made = make_study(**study)
  return plan_lib.make_plan(made, study_lib.make_cells(made), str(workdir))


def until(condition: Callable[[], bool], *, seconds: float = 120) -> None:
  """Waits for another process to come so far."""
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, "it didn't come so far"
    time.sleep(0.05)


def study_command(*arguments, code: int = 0, **environment) -> str:
  """Runs `poison_jax.study`; returns its output, or its error line."""
  result = subprocess.run(
    [sys.executable, "-m", "poison_jax.study", *map(str, arguments)],
    cwd=ROOT,
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "CUDA_VISIBLE_DEVICES": "",
      **environment,
    },
    capture_output=True,
    text=True,
    check=False,
    timeout=500,
  )
  assert result.returncode == code, (result.returncode, result.stderr)
  if not code:
    assert result.stderr == "", result.stderr
    return result.stdout
  lines = result.stderr.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
  return lines[0]
