"""One process at a time in a run's folder.

On a local disk the kernel locks a file for as long as the process lives. A
bucket has no such thing. There the file `.lock` is a lease: made on condition
that it is missing, renewed every few seconds on condition that nobody else has
touched it, and deleted at the end. A process that was killed leaves it behind;
another takes it over at once where it can tell that the owner is dead, and
elsewhere waits whether it is renewed, until it is old.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

from poison_jax.data.folder import Folder
from poison_jax.errors import UserError

FILE = ".lock"

# Tells this process from one of the same number, as in a container restarted.
_TOKEN = uuid.uuid4().hex

# Seconds. A lease is old after `STALE` without renewal; clocks of machines
# differ by less, and no pause of a working process is as long.
RENEWED_EVERY = 15.0
STALE = 120.0
# Between two looks at whether a silent owner renews.
_LOOKED_EVERY = 2.0


class Lock(Protocol):
  """A lock that is held."""

  def check(self) -> None:
    """Raises UserError where another process has taken it over."""

  def end(self) -> None:
    """Gives the folder free, once."""


@contextlib.contextmanager
def locked(folder: Folder) -> Iterator[Lock]:
  """Holds the folder against other processes.

  Raises:
    UserError: another process holds it; or the bucket can't be written.
    OSError: the file can't be written.
  """
  with (_locked_file if folder.local else _leased)(folder) as lock:
    yield lock


class _Kernel:
  """The kernel's lock: nobody takes it over, and it ends with the process."""

  def check(self) -> None:
    pass

  def end(self) -> None:
    pass


@contextlib.contextmanager
def _locked_file(folder: Folder) -> Iterator[_Kernel]:
  os.makedirs(folder.path, exist_ok=True)
  with open(os.path.join(folder.path, FILE), "a+", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise UserError(
        f"--workdir={folder.path} is in use by process {file.read().strip()}: "
        "wait for it or stop it (kill -TERM saves)"
      ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    yield _Kernel()


class _Lease:
  """The file in the bucket, renewed by a thread."""

  def __init__(self, folder: Folder, version: bytes):
    self._folder = folder
    self._version = version
    self._renewed = time.time()
    self._taken = False
    self._one_at_a_time = threading.Lock()
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._renew_often, daemon=True)
    self._thread.start()

  def check(self) -> None:
    # Renewals may have failed, or this machine was asleep.
    if not self._taken and time.time() - self._renewed > STALE / 2:
      self._renew()
    if self._taken:
      raise UserError(
        f"another process has taken over --workdir={self._folder.path}: this "
        f"one had not renewed its claim for {STALE:.0f} s"
      )

  def end(self) -> None:
    if self._ended.is_set():
      return
    self._ended.set()
    self._thread.join()
    if not self._taken:
      self._folder.write_versioned(FILE, None, version=self._version)

  def _renew_often(self) -> None:
    while not self._taken and not self._ended.wait(RENEWED_EVERY):
      with contextlib.suppress(UserError):  # Out of reach, just now.
        self._renew()

  def _renew(self) -> None:
    with self._one_at_a_time:
      now = time.time()
      version = self._folder.write_versioned(
        FILE, _claim(), version=self._version
      )
      if version is None:
        # Another process's, or our own write that had arrived already: one
        # whose answer is lost is sent again.
        content, version = self._folder.read_versioned(FILE)
        if content is None or _read(content)["token"] != _TOKEN:
          self._taken = True
          return
      self._version, self._renewed = version, now


@contextlib.contextmanager
def _leased(folder: Folder) -> Iterator[_Lease]:
  lease = _Lease(folder, _take(folder))
  try:
    yield lease
  finally:
    # The next one takes a lease that can't be deleted over.
    with contextlib.suppress(UserError):
      lease.end()


def _take(folder: Folder) -> bytes:
  """Writes the lease and returns its version."""
  version = _await_owner(folder)
  taken = folder.write_versioned(FILE, _claim(), version=version)
  if taken is not None:
    return taken
  # Another process came first, or this very write did, its answer lost.
  content, version = folder.read_versioned(FILE)
  if content is None:
    raise UserError(f"{folder.path} can't be written: is there such a bucket?")
  owner = _read(content)
  if owner["token"] != _TOKEN:
    raise _in_use(folder, owner)
  return version


def _await_owner(folder: Folder) -> bytes | None:
  """Returns the file's version once nobody who lives holds the folder.

  Raises:
    UserError: somebody does: it is a process of this machine, or it renews.
  """
  found = None
  while True:
    content, version = folder.read_versioned(FILE)
    if content is None:
      return version
    owner = _read(content)
    age = time.time() - owner["time"]
    if age > STALE or _is_dead(owner):
      return version
    if _is_here(owner) or (found is not None and owner != found):
      raise _in_use(folder, owner)
    if found is None:
      print(
        f"process {owner['pid']} on {owner['host']} renewed its claim on "
        f"{folder.path} {max(age, 0):.0f} s ago: waiting whether it lives, for "
        f"{STALE - age:.0f} s at most",
        flush=True,
      )
    found = owner
    time.sleep(_LOOKED_EVERY)


def _in_use(folder: Folder, owner: dict[str, Any]) -> UserError:
  return UserError(
    f"--workdir={folder.path} is in use by process {owner['pid']} on "
    f"{owner['host']}: wait for it or stop it (kill -TERM saves)"
  )


def _claim() -> bytes:
  claim = {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "pids": process_set(),
    "token": _TOKEN,
    "time": time.time(),
  }
  return json.dumps(claim).encode()


def _read(content: bytes) -> dict[str, Any]:
  """Returns a lease; one that is no lease is old, and nobody's."""
  try:
    owner = json.loads(content)
    return {
      "host": str(owner["host"]),
      "pid": int(owner["pid"]),
      "pids": owner["pids"],
      "token": owner["token"],
      "time": float(owner["time"]),
    }
  except (ValueError, KeyError, TypeError):
    return {"host": "", "pid": 0, "pids": None, "token": "", "time": 0.0}


def _is_here(owner: dict[str, Any]) -> bool:
  """Says whether the owner's number means a process, if any, of ours."""
  return owner["pids"] is not None and owner["pids"] == process_set()


def _is_dead(owner: dict[str, Any]) -> bool:
  """Says whether the owner ran here and does no more."""
  return is_dead(owner["pid"], owner["pids"])


def is_dead(pid: int, pids: str | None) -> bool:
  """Says whether a process ran here and does no more.

  Args:
    pid: its number.
    pids: the `process_set` that the number is of.
  """
  if pids is None or pids != process_set():
    return False
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return True
  except PermissionError:
    return False
  return False


def process_set() -> str | None:
  """Names the set of processes in which our number means us; None: unknown.

  A container may share its host's name with others, and not its numbers.
  """
  try:
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
      return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return None
