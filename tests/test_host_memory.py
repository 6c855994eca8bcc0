"""Freed memory stays with the process, where only the CPU computes."""

import subprocess
import sys
import types

import pytest

from poison_jax.training import host_memory

_FAULTS = """
import resource, sys
import numpy as np
from poison_jax.training import host_memory

assert "keep" not in sys.argv or host_memory.keep_freed_memory()
for _ in range(2):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.ones(64 << 20, np.uint8)
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _second_faults(*arguments: str) -> int:
  """Returns the page faults of filling 64 MiB for the second time."""
  result = subprocess.run(
    [sys.executable, "-c", _FAULTS, *arguments],
    capture_output=True,
    text=True,
    check=True,
  )
  return int(result.stdout.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_memory_that_was_freed_is_used_again_without_page_faults():
  assert _second_faults("keep") < 100
  assert _second_faults() > 100  # Or the test could not fail.


def _tell(monkeypatch, platforms):
  config = types.SimpleNamespace(jax_platforms=platforms)
  monkeypatch.setattr(host_memory.jax, "config", config)


@pytest.mark.parametrize(
  ("platforms", "only"), [("cpu", True), ("cuda,cpu", False), ("tpu", False)]
)
def test_the_platforms_that_jax_was_told_decide(monkeypatch, platforms, only):
  _tell(monkeypatch, platforms)
  assert host_memory.only_cpu() == only


@pytest.mark.parametrize("plugin", ["jax_plugins", "libtpu", None])
def test_else_a_plugin_for_other_devices_decides(monkeypatch, plugin):
  monkeypatch.setattr(
    host_memory.importlib.util, "find_spec", lambda name: name == plugin or None
  )
  _tell(monkeypatch, None)
  assert host_memory.only_cpu() == (plugin is None)
