"""XLA's flags: added, never over the user's, and known to the compiler."""

import os
import subprocess
import sys

import jax
import pytest

from poison_jax.training import compiler, xla_flags

_COMPILER = "build/estimate"


def test_flags_are_added_and_the_users_are_left():
  flag = xla_flags.OVERLAP["gpu"][0]
  environment = {"XLA_FLAGS": f"--{flag}=false --xla_dump_to=x"}
  xla_flags.add("gpu", environment)
  words = environment["XLA_FLAGS"].split()
  assert words[:2] == [f"--{flag}=false", "--xla_dump_to=x"]
  assert sum(flag in word for word in words) == 1
  assert len(words) == 1 + len(xla_flags.OVERLAP["gpu"])
  once = dict(environment)
  xla_flags.add("gpu", environment)
  assert environment == once


def test_nothing_is_set_where_only_the_cpu_can_be_found(monkeypatch):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
  monkeypatch.setattr(xla_flags.importlib.util, "find_spec", lambda _: None)
  xla_flags.set_overlap_flags()
  assert "XLA_FLAGS" not in os.environ
  assert "LIBTPU_INIT_ARGS" not in os.environ
  assert xla_flags.describe("cpu") == xla_flags.describe("tpu") == "none set"


def test_a_platform_that_jax_was_told_to_skip_gets_none(monkeypatch):
  monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
  monkeypatch.setattr(
    xla_flags.importlib.util,
    "find_spec",
    lambda name: object() if name == "libtpu" else None,
  )
  before = jax.config.jax_platforms
  try:
    jax.config.update("jax_platforms", "cpu")
    xla_flags.set_overlap_flags()
    assert "LIBTPU_INIT_ARGS" not in os.environ
    jax.config.update("jax_platforms", None)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")  # Undone afterwards.
    xla_flags.set_overlap_flags()
    assert "async_collective_fusion=true" in xla_flags.describe("tpu")
  finally:
    jax.config.update("jax_platforms", before)


def _starts(environment: dict[str, str]) -> bool:
  program = "import jax; jax.devices()"
  done = subprocess.run(
    [sys.executable, "-c", program],
    env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    capture_output=True,
    check=False,
  )
  return done.returncode == 0


def test_the_installed_jaxlib_knows_the_flags_of_gpus():
  environment = {"XLA_FLAGS": ""}
  xla_flags.add("gpu", environment)
  assert _starts(environment)
  assert not _starts({"XLA_FLAGS": "--xla_gpu_no_such_flag=true"})


@pytest.mark.slow
@pytest.mark.skipif(
  not compiler.is_installed(_COMPILER),
  reason="no TPU compiler in build/estimate: python -m poison_jax.estimate "
  "--topology=v5e:2x2 installs it",
)
def test_the_installed_libtpu_knows_the_flags_of_tpus():
  program = (
    "from jax.experimental import topologies;"
    "topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2')"
  )
  for extra, expected in (("", 0), (" --xla_tpu_no_such_flag=true", 1)):
    environment = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": _COMPILER,
      "TPU_SKIP_MDS_QUERY": "1",
    }
    xla_flags.add("tpu", environment)
    environment["LIBTPU_INIT_ARGS"] += extra
    done = subprocess.run(
      [sys.executable, "-c", program],
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
    assert bool(done.returncode) == bool(expected), done.stderr[-500:]
