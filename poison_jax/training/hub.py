"""What process 0 of a run on many hosts keeps: the switchboard of all.

Each process, process 0 too, has one connection to it. It knows who has come,
passes on what all have said once all have, and tells the others when one fails
or is gone. Messages are small JSON objects.
"""

import contextlib
import json
import threading
import time
from collections.abc import Set
from multiprocessing.connection import Connection, Listener
from typing import Any

from poison_jax.errors import CheckFailed, Stopped, UserError

# Seconds. A process whose machine lives says something in every `BEAT`; after
# `SILENCE` without, it counts as gone. One that is killed is noticed at once.
BEAT = 5.0
SILENCE = 60.0
# While some are still missing, it says so this often.
_REMINDER = 100.0
# Seconds that it waits for those who come late, to tell them that one failed.
FAREWELL = 10.0
_MOST_BYTES = 1 << 20

Message = dict[str, Any]


class Wire:
  """One end of a connection; sending is safe from several threads."""

  def __init__(self, connection: Connection):
    self._connection = connection
    self._one_at_a_time = threading.Lock()

  def send(self, message: Message) -> None:
    """Sends; says nothing where the other end is gone: the reader notices."""
    with contextlib.suppress(OSError), self._one_at_a_time:
      self._connection.send_bytes(json.dumps(message).encode())

  def receive(self) -> Message | None:
    """Returns the next message but beats; None where the other end is gone."""
    try:
      while self._connection.poll(SILENCE):
        message = json.loads(self._connection.recv_bytes(_MOST_BYTES))
        if not isinstance(message, dict):
          return None
        if message != {}:
          return message
    except (OSError, EOFError, ValueError):
      pass  # Closed, broken, or nothing of ours.
    return None

  def beat(self) -> None:
    """Says that this end lives."""
    self.send({})

  def close(self) -> None:
    with contextlib.suppress(OSError):
      self._connection.close()


class Hub:
  """The switchboard: threads that accept, read and beat."""

  def __init__(self, port: int, count: int, *, patience: float):
    """Listens.

    Args:
      port: on all of this host's addresses.
      count: of processes.
      patience: seconds until all must have come.

    Raises:
      UserError: the port can't be had.
    """
    try:
      self._listener = Listener(("", port), backlog=count)
    except OSError as error:
      raise UserError(
        f"process 0 can't listen on port {port} ({error.strerror}): another "
        "run on this host? Give another --coordinator=HOST:PORT (the port "
        "below it is used, too)"
      ) from error
    self._count = count
    self._patience = patience
    self._changed = threading.Condition()
    self._members: dict[int, tuple[str, Wire]] = {}
    self._left: set[int] = set()
    self._failed: Message | None = None
    self._said: dict[str, dict[int, Any]] = {}
    for work in (self._accept, self._call_the_roll, self._beat):
      threading.Thread(target=work, daemon=True).start()

  def wait_until_left(self, seconds: float) -> None:
    """Returns once all but this have come and left, or after `seconds`."""
    with self._changed:
      self._changed.wait_for(
        lambda: self._left >= set(range(1, self._count)), seconds
      )

  def _accept(self) -> None:
    while True:
      try:
        wire = Wire(self._listener.accept())
      except OSError:
        continue  # That one went away again.
      threading.Thread(target=self._serve, args=(wire,), daemon=True).start()

  def _serve(self, wire: Wire) -> None:
    hello = wire.receive()
    number = self._enter(wire, hello)
    if number is None:
      wire.close()
      return
    while (message := wire.receive()) is not None:
      self._hear(number, message)
    with self._changed:
      gone = number not in self._left
      self._left.add(number)
      self._changed.notify_all()
    if gone:
      self._tell(
        {
          "lost": f"{self._name(number)} is gone (killed, or its machine or "
          "network failed)",
          "code": Stopped.code,
        }
      )

  def _enter(self, wire: Wire, hello: Message | None) -> int | None:
    """Returns the number of one who comes; None for one who can't."""
    try:
      number, count, host = hello["number"], hello["count"], str(hello["host"])
    except (TypeError, KeyError):
      return None  # Whoever it is, it is none of us.
    with self._changed:
      there = self._members.get(number)
      if there is None and count == self._count and number in range(count):
        self._members[number] = (host, wire)
        self._changed.notify_all()
        if self._failed is not None:  # Before this one came.
          wire.send(self._failed)
        return number
    why = (
      f"{self._name(number)} has come already"
      if there is not None
      else f"process 0 counts {self._count} processes"
    )
    wire.send(
      {
        "lost": f"process {number} of {count} ({host}) can't join: {why}",
        "code": CheckFailed.code,
      }
    )
    return None

  def _hear(self, number: int, message: Message) -> None:
    match message:
      case {"say": fact, "about": about}:
        if said := self._collect(number, about, fact):
          self._tell({"about": about, "answer": said})
      case {"agree": facts, "about": about}:
        if said := self._collect(number, about, facts):
          self._tell({"about": about, "answer": self._difference(said)})
      case {"failed": why, "code": code}:
        text = f"{self._name(number)}: {why}"
        self._fail(number, {"failed": text, "code": code})
      case {"bye": _}:
        with self._changed:
          self._left.add(number)
          self._changed.notify_all()

  def _collect(self, number: int, about: str, fact: Any) -> list[Any] | None:
    """Returns what all say, once all have."""
    with self._changed:
      said = self._said.setdefault(about, {})
      said[number] = fact
      complete = len(said) == self._count
    return [said[i] for i in range(self._count)] if complete else None

  def _difference(self, said: list[dict[str, str]]) -> str | None:
    """Returns the first fact in which one differs from process 0."""
    for number, facts in enumerate(said):
      for key, value in facts.items():
        if value != said[0].get(key):
          return (
            f"{self._name(number)} has {key} {value}, {self._name(0)} "
            f"{said[0].get(key)}: it must be the same on all hosts"
          )
    return None

  def _fail(self, failed: int, message: Message) -> None:
    """Tells all that one failed, those who come late too."""
    with self._changed:
      self._left.add(failed)
      self._failed = self._failed or message
      self._changed.notify_all()
    self._tell(message, but={0, failed})
    with self._changed:
      self._changed.wait_for(
        lambda: len(self._members) == self._count, FAREWELL
      )
    self._tell(message, but=set(self._members) - {0} | {failed})

  def _tell(self, message: Message, *, but: Set[int] = frozenset()) -> None:
    # Process 0 last: it may end at this, and all of this with it.
    for number, (_, wire) in sorted(self._members.items(), reverse=True):
      if number not in but:
        wire.send(message)

  def _beat(self) -> None:
    while True:
      time.sleep(BEAT)
      for _, wire in list(self._members.values()):
        wire.beat()

  def _call_the_roll(self) -> None:
    began = time.monotonic()
    while True:
      waited = time.monotonic() - began
      left = self._patience - waited
      with self._changed:
        if self._changed.wait_for(
          lambda: len(self._members) == self._count, min(left, _REMINDER)
        ):
          return
        missing = sorted(set(range(self._count)) - self._members.keys())
        there = ", ".join(self._name(i) for i in sorted(self._members))
      waited = self._patience if left <= _REMINDER else waited + _REMINDER
      text = (
        f"missing after {waited:.0f} s: process "
        f"{', '.join(map(str, missing))} of {self._count}; there are: {there}"
      )
      if left <= _REMINDER:
        break
      print(f"{text}; waiting for {self._patience:.0f} s in all", flush=True)
    self._tell({"lost": text, "code": CheckFailed.code})

  def _name(self, number: int) -> str:
    host = self._members[number][0] if number in self._members else "?"
    return f"process {number} ({host})"
