"""Claims: of several dispatchers on one study, one runs a cell.

A claim is a file `claims/HASH.N` that is made on condition that it is missing,
on a disk that several machines share as in a bucket, and that its owner writes
anew every few seconds. One that hasn't been for `STALE` seconds is passed over
by making `HASH.N+1`, again on condition that it is missing; so of several that
take a stale claim over, one succeeds, and the old owner, should it wake up,
finds that it is the owner no more. A claim that is given back is marked so.
"""

import dataclasses
import json
import os
import socket
import time
import uuid
from collections.abc import Callable

from poison_jax.data.folder import Folder
from poison_jax.training import lock

# Seconds. A claim is written anew every `RENEWED_EVERY`; clocks of machines
# differ by less than `STALE`, and no working dispatcher pauses as long.
RENEWED_EVERY = 15.0
STALE = 120.0

_FOLDER = "claims"


@dataclasses.dataclass(frozen=True)
class Owner:
  """Who holds a claim.

  Attributes:
    host: of the dispatcher.
    pid: its process.
    pids: what the number is one of, see `lock.process_set`.
    token: tells it from every other dispatcher.
    time: of the last renewal, epoch seconds.
    released: whether it has been given back.
  """

  host: str
  pid: int
  pids: str | None
  token: str
  time: float
  released: bool

  def lives(self, now: float) -> bool:
    """Says whether the claim still counts."""
    if self.released or lock.is_dead(self.pid, self.pids):
      return False
    return now - self.time <= STALE

  def __str__(self) -> str:
    return f"process {self.pid} on {self.host}"


class Claims:
  """The claims of one study; those of this dispatcher among them."""

  def __init__(self, workdir: str, *, now: Callable[[], float] = time.time):
    """Args: the study's folder, and the clock, in epoch seconds."""
    self._folder = Folder(workdir)
    self._now = now
    self._token = uuid.uuid4().hex
    self._held: dict[str, int] = {}
    self._renewed = 0.0
    # Claims that were given back stay so, and aren't read again.
    self._released: set[tuple[str, int]] = set()

  def owners(self) -> dict[str, Owner]:
    """Returns who holds each cell that somebody holds, by hash."""
    found = {}
    for cell, number in self._newest().items():
      owner = self._living(cell, number)
      if owner is not None:
        found[cell] = owner
    return found

  def take(self, cell: str) -> bool:
    """Claims a cell, by hash; says whether it is ours now.

    What was read of the cell before may have changed meanwhile: another
    dispatcher may have run it to its end, and given it back.
    """
    number = self._newest().get(cell, 0)
    if number and self._living(cell, number) is not None:
      return False
    number += 1
    if not self._folder.create(self._name(cell, number), self._content()):
      # Another's, or our own, of which a bucket's answer was lost.
      owner = self._read(cell, number)
      if owner is None or owner.token != self._token:
        return False
    self._held[cell] = number
    return True

  def renew(self) -> list[str]:
    """Writes our claims anew, if it is time; returns the cells lost meanwhile.

    A cell is lost where we have been silent for so long that another
    dispatcher has taken it over.
    """
    if not self._held or self._now() - self._renewed < RENEWED_EVERY:
      return []
    newest = self._newest()
    held = dict(self._held)
    lost = [cell for cell, n in held.items() if newest.get(cell, n) > n]
    for cell, number in held.items():
      if cell not in lost:
        self._folder.write(self._name(cell, number), self._content())
    for cell in lost:  # Last: a write that fails must not hide them.
      del self._held[cell]
    self._renewed = self._now()
    return lost

  def holds(self, cell: str) -> bool:
    """Says whether a cell is ours still."""
    number = self._held.get(cell)
    return number is not None and self._newest().get(cell, number) == number

  def release(self, cell: str) -> None:
    """Gives a cell of ours back; one that we have lost stays another's."""
    number = self._held.pop(cell)
    # Its own file: of one that was lost, another dispatcher's is newer.
    self._folder.write(self._name(cell, number), self._content(released=True))

  def _newest(self) -> dict[str, int]:
    newest: dict[str, int] = {}
    for name in self._folder.names(_FOLDER):
      cell, _, number = name.removeprefix(f"{_FOLDER}/").rpartition(".")
      if cell and number.isdecimal() and not cell.startswith("."):
        newest[cell] = max(newest.get(cell, 0), int(number))
    return newest

  def _living(self, cell: str, number: int) -> Owner | None:
    """Returns who holds a claim that still counts."""
    if (cell, number) in self._released:
      return None
    owner = self._read(cell, number)
    if owner is not None and owner.released:
      self._released.add((cell, number))
    return owner if owner is not None and owner.lives(self._now()) else None

  @staticmethod
  def _name(cell: str, number: int) -> str:
    return f"{_FOLDER}/{cell}.{number}"

  def _content(self, *, released: bool = False) -> bytes:
    owner = Owner(
      host=socket.gethostname(),
      pid=os.getpid(),
      pids=lock.process_set(),
      token=self._token,
      time=self._now(),
      released=released,
    )
    return json.dumps(dataclasses.asdict(owner)).encode()

  def _read(self, cell: str, number: int) -> Owner | None:
    content = self._folder.read(self._name(cell, number))
    try:
      owner = Owner(**json.loads(content or b"null"))
      return dataclasses.replace(
        owner, pid=int(owner.pid), time=float(owner.time)
      )
    except (ValueError, TypeError):
      return None  # Damaged: nobody's.
