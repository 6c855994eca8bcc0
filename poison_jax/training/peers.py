"""The processes of a run on many hosts: a roll call before, one end for all.

JAX's own service joins them too (`jax.distributed`), but where a process is
missing, lost or fails it aborts the others after minutes, without a name. So
each process keeps a connection of its own to process 0 (see `hub`), from
before JAX starts until the run ends.
"""

import contextlib
import dataclasses
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils

from poison_jax.errors import CheckFailed, PoisonJaxError, Stopped
from poison_jax.training import hub as hub_lib
from poison_jax.training.cluster import Cluster
from poison_jax.training.hub import Hub, Message, Wire
from poison_jax.training.stop import StopSignals

_ATTEMPT = 5.0
# Seconds that a process has to end by itself once another has failed: most
# errors come to all alike, and each then ends in order.
_GRACE = 5.0
_UNWINDING = 600.0
_GO_ON = "the same command on all hosts goes on from the last checkpoint"


class Peers(Protocol):
  """This process among those of the run."""

  number: int
  count: int
  # Called before the process is ended for another's sake.
  before_end: list[Callable[[], None]]

  def agree(self, about: str, facts: Mapping[str, str]) -> None:
    """Waits for all processes, and compares what each says.

    Args:
      about: what is compared, a name used once.
      facts: by name; the same in all.

    Raises:
      CheckFailed: they differ; names the process, its host and both values.
    """

  def each(self, about: str, fact: Any) -> list[Any]:
    """Returns what each process says, by number."""

  def asked_to_stop(self, step: int) -> bool:
    """Says whether all are to save after `step` steps and stop.

    The same in all processes; to be asked after every step.
    """

  def unwinding(self) -> None:
    """Says that this process has an error of its own and ends in order."""


class Alone:
  """The only process."""

  number, count = 0, 1

  def __init__(self, stop: StopSignals):
    self.before_end = []
    self._stop = stop

  def agree(self, about: str, facts: Mapping[str, str]) -> None:
    pass

  def each(self, about: str, fact: Any) -> list[Any]:
    return [fact]

  def asked_to_stop(self, step: int) -> bool:
    return self._stop.received is not None

  def unwinding(self) -> None:
    pass


class Connected:
  """One of several processes.

  Where another one fails or is gone, this one prints so and ends: it may hang
  in an operation that waits for the other, so no exception could reach it.
  """

  def __init__(
    self,
    cluster: Cluster,
    stop: StopSignals,
    *,
    end: Callable[[str, int], None] | None = None,
  ):
    """Comes to the roll call.

    Args:
      cluster: of which this is one.
      stop: signals of this process.
      end: ends the process with a message and an exit code.

    Raises:
      UserError: process 0 can't listen.
      CheckFailed: process 0 can't be reached.
      Stopped: a signal came.
    """
    self.number, self.count = cluster.number, cluster.count
    self.before_end: list[Callable[[], None]] = []
    self._stop = stop
    self._end_process = end or _end_process
    self._changed = threading.Condition()
    self._answers: dict[str, Any] = {}
    self._own_error = threading.Event()
    self._closing = False
    self._hub = None
    if self.number == 0:
      self._hub = Hub(cluster.address[1], self.count, patience=cluster.patience)
    self._coordinator = f"process 0 ({cluster.address[0]})"
    self._wire = Wire(self._connect(cluster))
    self._wire.send(
      {
        "number": self.number,
        "count": self.count,
        "host": socket.gethostname(),
      }
    )
    for work in (self._listen, self._beat):
      threading.Thread(target=work, daemon=True).start()

  def agree(self, about: str, facts: Mapping[str, str]) -> None:
    difference = self._ask({"agree": dict(facts), "about": about})
    if difference is not None:
      raise CheckFailed(difference)

  def each(self, about: str, fact: Any) -> list[Any]:
    return self._ask({"say": fact, "about": about})

  def asked_to_stop(self, step: int) -> bool:
    return multihost_utils.reached_preemption_sync_point(step)

  def unwinding(self) -> None:
    self._own_error.set()

  def fail(self, message: str, code: int) -> None:
    """Tells all of this process's error, and ends it."""
    self._own_error.set()
    self._closing = True  # Whatever becomes of the others now.
    self._wire.send({"failed": message, "code": code})
    if self._hub is not None:  # It lives here, and they still need it.
      self._hub.wait_until_left(hub_lib.FAREWELL)
    self._end_process("", code)

  def await_verdict(self) -> None:
    """Waits a moment, for this process to be ended for another's sake.

    An operation that failed here may have failed since another is gone.
    """
    time.sleep(2 * _GRACE)

  def close(self) -> None:
    """Leaves, once all do."""
    self._ask({"say": None, "about": "the end"})
    self._closing = True
    self._wire.send({"bye": True})
    if self._hub is not None:
      self._hub.wait_until_left(_GRACE)

  def _connect(self, cluster: Cluster) -> Connection:
    deadline = time.monotonic() + cluster.patience
    host, port = cluster.address
    if self.number == 0:
      host = "localhost"
    while True:
      self._check_signals()
      try:
        connected = socket.create_connection((host, port), timeout=_ATTEMPT)
        connected.setblocking(True)
        return Connection(connected.detach())
      except OSError as error:  # Not there yet; nor is its name, on GKE.
        if time.monotonic() > deadline:
          raise CheckFailed(
            f"process {self.number} ({socket.gethostname()}) can't reach "
            f"process 0 at {host}:{port} for {cluster.patience:.0f} s "
            f"({error.strerror or error}): is it running, and the port open?"
          ) from error
      time.sleep(0.2)

  def _ask(self, question: Message) -> Any:
    """Returns the hub's answer, which comes once all have asked."""
    about = question["about"]
    self._wire.send(question)
    with self._changed:
      while about not in self._answers:
        self._changed.wait(0.2)
        if not self._closing:
          self._check_signals()
      return self._answers.pop(about)

  def _check_signals(self) -> None:
    # Later on they are JAX's, see `start_jax`.
    if self._stop.received is not None:
      raise Stopped(f"stopped by {self._stop.received.name}; {_GO_ON}")

  def _beat(self) -> None:
    while True:
      time.sleep(hub_lib.BEAT)
      self._wire.beat()

  def _listen(self) -> None:
    while (message := self._wire.receive()) is not None:
      self._hear(message)
    if not self._closing:
      self._end(f"{self._coordinator} is gone; {_GO_ON}", Stopped.code)

  def _hear(self, message: Message) -> None:
    match message:
      case {"about": about, "answer": answer}:
        with self._changed:
          self._answers[about] = answer
          self._changed.notify_all()
      case {"lost": text, "code": code}:
        more = f"; {_GO_ON}" if code == Stopped.code else ""
        self._end(text + more, code)
      case {"failed": text, "code": code}:
        if self._own_error.wait(_GRACE):
          time.sleep(_UNWINDING)
        self._end(text, code)

  def _end(self, text: str, code: int) -> None:
    if self._closing:
      return
    for work in self.before_end:
      with contextlib.suppress(Exception):
        work()
    self._end_process(text, code)


_joined: Connected | None = None


@contextlib.contextmanager
def joined(cluster: Cluster | None, stop: StopSignals):
  """Gives the `Peers`; leaving it without an error waits for all.

  Raises:
    UserError, CheckFailed, Stopped: see `Connected`.
  """
  global _joined
  if cluster is None:
    yield Alone(stop)
    return
  peers = _joined = Connected(cluster, stop)
  _hush(all_of_it=peers.number != 0)
  try:
    yield peers
  except Exception as error:
    if not isinstance(error, PoisonJaxError):
      peers.await_verdict()
    raise
  peers.close()


def has_joined() -> bool:
  """Says whether this process has come to the roll call."""
  return _joined is not None


def join_to_leave(cluster: Cluster) -> None:
  """Comes to the roll call to tell of an error before it: `leave` is next.

  Raises:
    UserError, CheckFailed: see `Connected`; the others won't hear of it.
  """
  global _joined
  brief = dataclasses.replace(cluster, patience=hub_lib.FAREWELL)
  _joined = Connected(brief, StopSignals())


def leave(message: str, code: int) -> None:
  """Ends this process and tells its peers, if it has any, of its error."""
  if _joined is not None:
    _joined.fail(message, code)


def start_jax(cluster: Cluster, stop: StopSignals) -> None:
  """Joins JAX's own service; afterwards `jax.devices()` are all hosts'.

  From now on SIGTERM is JAX's: its preemption service has all processes save
  after the same step (docs.jax.dev, `jax.experimental.multihost_utils`).
  """
  jax.distributed.initialize(
    cluster.coordinator,
    cluster.count,
    cluster.number,
    cluster.local_devices,
    cluster_detection_method="deactivate",
  )
  stop.pass_on()


def _hush(*, all_of_it: bool) -> None:
  """Sends standard output nowhere, all of it or what libraries print.

  Process 0 tells all; but what Gloo prints isn't the run's.
  """
  sys.stdout.flush()
  if not all_of_it:
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 1)
  os.close(nowhere)


def _end_process(text: str, code: int) -> None:
  # At once: JAX's service is about to abort this process.
  if text:
    os.write(2, f"error: {' '.join(text.split())}\n".encode())
  os._exit(code)
