"""One process at a time in a run's folder in a bucket.

The local folder's lock, the kernel's, is in test_workdir.py.
"""

import json
import os
import subprocess
import sys
import time

import pytest

from poison_jax.data.folder import Folder
from poison_jax.errors import UserError
from poison_jax.training import lock as lock_lib


@pytest.fixture(name="folder")
def _folder(tmp_path):
  # TensorStore's memory keeps the conditions on writes that a bucket keeps.
  return Folder(f"memory://{tmp_path.name}/runs/a")


def _lease(folder, *, age=60.0, **changes):
  """Writes the lease of another process, renewed `age` seconds ago."""
  lease = {
    "host": "elsewhere",
    "pid": 7,
    "pids": "another boot",
    "token": "another",
    "time": time.time() - age,
  }
  folder.write(lock_lib.FILE, json.dumps(lease | changes).encode())


def _dead_pid() -> int:
  process = subprocess.Popen([sys.executable, "-c", ""])
  process.wait()
  return process.pid


def test_it_names_its_owner_while_it_is_held_and_goes_with_it(folder):
  with lock_lib.locked(folder) as lock:
    lease = json.loads(folder.read(lock_lib.FILE))
    assert lease["pid"] == os.getpid()
    assert lease["host"] and abs(lease["time"] - time.time()) < 60
    lock.check()
    with (
      pytest.raises(UserError, match=f"in use by process {os.getpid()} on"),
      lock_lib.locked(folder),
    ):
      pass
  assert folder.names() == []


def test_a_living_owner_on_this_machine_is_named_at_once(folder):
  _lease(folder, pid=os.getpid(), pids=lock_lib.process_set())
  before = folder.read(lock_lib.FILE)
  with (
    pytest.raises(
      UserError, match=rf"process {os.getpid()} on elsewhere: wait"
    ),
    lock_lib.locked(folder),
  ):
    pass
  assert folder.read(lock_lib.FILE) == before


@pytest.mark.parametrize(
  "changes",
  [
    {},
    # A process of the same number is alive here, but that is another one.
    {"pid": os.getpid()},
    {"pid": _dead_pid()},
    # Another machine's clock may go before ours.
    {"age": -100},
  ],
)
def test_an_owner_elsewhere_lives_if_it_renews(
  folder, changes, monkeypatch, capsys
):
  _lease(folder, **changes)
  # It renews while the other one sleeps.
  monkeypatch.setattr(
    lock_lib.time,
    "sleep",
    lambda _: _lease(folder, **changes | {"age": changes.get("age", 60) - 9}),
  )
  with (
    pytest.raises(UserError, match=r"in use by process \d+ on elsewhere"),
    lock_lib.locked(folder),
  ):
    pass
  assert "waiting whether it lives" in capsys.readouterr().out
  assert json.loads(folder.read(lock_lib.FILE))["host"] == "elsewhere"


def test_an_owner_elsewhere_that_stays_silent_is_succeeded(
  folder, monkeypatch, capsys
):
  _lease(folder, age=lock_lib.STALE - 0.3)
  monkeypatch.setattr(lock_lib, "_LOOKED_EVERY", 0.05)
  with lock_lib.locked(folder) as lock:
    lock.check()
  assert capsys.readouterr().out.count("\n") == 1


def test_what_is_old_or_dead_or_no_lease_is_taken_over(folder):
  _lease(folder, age=lock_lib.STALE + 1)
  with lock_lib.locked(folder) as lock:
    lock.check()
  _lease(folder, pid=_dead_pid(), pids=lock_lib.process_set())
  with lock_lib.locked(folder) as lock:
    lock.check()
  folder.write(lock_lib.FILE, b"{")
  with lock_lib.locked(folder) as lock:
    lock.check()
  assert folder.names() == []


def test_it_is_renewed_in_time(folder, monkeypatch):
  monkeypatch.setattr(lock_lib, "RENEWED_EVERY", 0.01)
  with lock_lib.locked(folder) as lock:
    first = json.loads(folder.read(lock_lib.FILE))["time"]
    deadline = time.monotonic() + 10
    while json.loads(folder.read(lock_lib.FILE))["time"] == first:
      assert time.monotonic() < deadline
      time.sleep(0.005)
    lock.check()
  assert folder.names() == []


def test_who_slept_through_its_time_finds_that_it_has_been_taken_over(
  folder, monkeypatch
):
  with lock_lib.locked(folder) as lock:
    _lease(folder)
    theirs = folder.read(lock_lib.FILE)
    lock.check()  # It has renewed its claim just now, as far as it knows.
    monkeypatch.setattr(lock_lib, "STALE", -1.0)
    with pytest.raises(UserError, match="has taken over"):
      lock.check()
  assert folder.read(lock_lib.FILE) == theirs


def test_of_two_who_find_an_old_one_one_gets_it(folder, monkeypatch):
  _lease(folder, age=1e6)
  write = Folder.write_versioned

  def late(self, name, content, *, version):
    monkeypatch.setattr(Folder, "write_versioned", write)
    _lease(folder, host="faster")
    return write(self, name, content, version=version)

  monkeypatch.setattr(Folder, "write_versioned", late)
  with pytest.raises(UserError, match="on faster"), lock_lib.locked(folder):
    pass


def test_a_write_whose_answer_was_lost_is_its_own(folder, monkeypatch):
  """TensorStore sends it again, and the bucket refuses the second."""
  write = Folder.write_versioned

  def twice(self, name, content, *, version):
    monkeypatch.setattr(Folder, "write_versioned", write)
    assert write(self, name, content, version=version) is not None
    return write(self, name, content, version=version)

  monkeypatch.setattr(Folder, "write_versioned", twice)
  with lock_lib.locked(folder) as lock:
    monkeypatch.setattr(Folder, "write_versioned", twice)
    monkeypatch.setattr(lock_lib, "STALE", -1.0)
    lock.check()
  assert folder.names() == []
