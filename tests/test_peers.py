"""The roll call: who is missing, who differs, who fails, who is gone."""

import contextlib
import re
import signal
import socket
import threading
import time
import types

import pytest

from poison_jax.errors import CheckFailed, Stopped, UserError
from poison_jax.training import cluster as cluster_lib
from poison_jax.training import hub as hub_lib
from poison_jax.training.cluster import Cluster, find_cluster
from poison_jax.training.peers import Connected

_HOST = socket.gethostname()


@pytest.fixture(name="coordinator")
def _coordinator():
  """An address whose port and the one below were free just now."""
  while True:
    with socket.socket() as one, socket.socket() as two:
      one.bind(("", 0))
      with contextlib.suppress(OSError):
        two.bind(("", one.getsockname()[1] + 1))
        return f"localhost:{two.getsockname()[1]}"


class _Process:
  """A peer in a thread; `ended` is how its process would have ended."""

  def __init__(self, coordinator, number, count=2, *, patience=10.0, work=None):
    self.ended = self.error = self.result = self.peers = None
    self._over = threading.Event()
    self._stop = types.SimpleNamespace(received=None)

    def run():
      try:
        self.peers = Connected(
          Cluster(coordinator, count, number, patience),
          self._stop,
          end=self._end,
        )
        self.result = work(self.peers) if work else None
      except Exception as error:
        self.error = error
      if work or self.error:
        self._over.set()

    threading.Thread(target=run, daemon=True).start()

  def signal(self):
    self._stop.received = signal.SIGTERM

  def wait(self):
    assert self._over.wait(30)
    return self

  def _end(self, text, code):
    self.ended = self.ended or (text, code)
    self._over.set()
    if self.peers is not None:
      self.peers._wire.close()


def _vanish(process):
  """Cuts a process's connection, as the kernel does for one that is killed."""
  while process.peers is None:
    time.sleep(0.01)
  connection = process.peers._wire._connection
  process.peers._closing = True
  with socket.socket(fileno=connection.fileno()) as own:
    own.shutdown(socket.SHUT_RDWR)
    own.detach()


def test_all_hear_what_each_says(coordinator):
  def work(peers):
    peers.agree("code", {"version": "1"})
    said = peers.each("number", peers.number * 10)
    peers.close()
    return said

  processes = [_Process(coordinator, i, 3, work=work) for i in range(3)]
  for process in processes:
    assert process.wait().result == [0, 10, 20]
    assert process.error is None and process.ended is None


def test_one_that_differs_is_named_to_all(coordinator):
  def work(peers):
    number = str(peers.number)
    peers.agree("code", {"jax": "1", "batch": "8" if number == "0" else "16"})

  processes = [_Process(coordinator, i, work=work) for i in range(2)]
  for process in processes:
    error = process.wait().error
    assert isinstance(error, CheckFailed)
    assert str(error) == (
      f"process 1 ({_HOST}) has batch 16, process 0 ({_HOST}) 8: it must be "
      "the same on all hosts"
    )


def test_those_that_are_missing_are_named_to_those_that_are_there(coordinator):
  processes = [_Process(coordinator, i, 4, patience=0.5) for i in (0, 2)]
  for process in processes:
    text, code = process.wait().ended
    assert code == 3
    assert text == (
      "missing after 0 s: process 1, 3 of 4; there are: process 0 "
      f"({_HOST}), process 2 ({_HOST})"
    )


def test_late_ones_are_named_while_they_are_waited_for(
  coordinator, monkeypatch, capfd
):
  monkeypatch.setattr(hub_lib, "_REMINDER", 0.3)
  first = _Process(
    coordinator, 0, 3, patience=20, work=lambda p: p.each("x", 0)
  )
  second = _Process(coordinator, 2, 3, work=lambda p: p.each("x", 2))
  while (out := capfd.readouterr().out).count("\n") == 0:
    time.sleep(0.01)
  assert re.search(r"missing after \d+ s: process 1.* of 3; there are: ", out)
  assert "waiting for 20 s in all" in out
  _Process(coordinator, 1, 3, work=lambda p: p.each("x", 1))
  assert first.wait().result == second.wait().result == [0, 1, 2]
  assert first.ended is None


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_before_all_have_come_is_told_to_the_late(
  coordinator, monkeypatch, failing
):
  monkeypatch.setattr("poison_jax.training.peers._GRACE", 0.2)
  processes = {i: _Process(coordinator, i, 3) for i in (0, 1)}
  for process in processes.values():
    while process.peers is None:
      time.sleep(0.01)
  threading.Thread(
    target=processes[failing].peers.fail, args=("no such file", 2), daemon=True
  ).start()
  time.sleep(0.5)
  processes[2] = _Process(coordinator, 2, 3)
  for number, process in processes.items():
    text = "" if number == failing else f"process {failing} ({_HOST}): "
    assert process.wait().ended == (text + "no such file" * (text != ""), 2)


def test_without_process_0_nobody_waits_for_ever(coordinator):
  error = _Process(coordinator, 1, patience=0.5).wait().error
  assert isinstance(error, CheckFailed)
  assert "can't reach process 0 at localhost:" in str(error)


def test_a_signal_ends_the_waiting(coordinator):
  process = _Process(coordinator, 1)
  process.signal()
  assert isinstance(process.wait().error, Stopped)


def test_a_number_that_is_taken_or_too_many_processes_are_refused(coordinator):
  first = _Process(coordinator, 0, patience=5)
  while first.peers is None:
    time.sleep(0.01)
  text, code = _Process(coordinator, 0 + 1, count=3).wait().ended
  assert code == 3 and "process 0 counts 2 processes" in text
  second = _Process(coordinator, 1)
  while second.peers is None:
    time.sleep(0.01)
  text, code = _Process(coordinator, 1).wait().ended
  assert code == 3 and f"process 1 ({_HOST}) has come already" in text
  assert first.ended is None


def test_an_error_of_one_ends_all_with_its_message_and_code(
  coordinator, monkeypatch
):
  monkeypatch.setattr("poison_jax.training.peers._GRACE", 0.2)
  tidied = []
  processes = [_Process(coordinator, i, 3) for i in range(3)]
  for process in processes:
    while process.peers is None:
      time.sleep(0.01)
  processes[0].peers.before_end.append(lambda: tidied.append("lease"))
  processes[1].peers.fail("no space left", 2)
  for number in (0, 2):
    assert processes[number].wait().ended == (
      f"process 1 ({_HOST}): no space left",
      2,
    )
  assert processes[1].ended == ("", 2)
  assert "lease" in tidied


def test_an_own_error_comes_before_the_end_of_process_0(coordinator):
  processes = [_Process(coordinator, i) for i in range(2)]
  for process in processes:
    while process.peers is None:
      time.sleep(0.01)
  peers = processes[1].peers
  send = peers._wire.send

  def send_and_see_the_other_go(message):
    send(message)
    with socket.socket(fileno=peers._wire._connection.fileno()) as own:
      own.shutdown(socket.SHUT_RDWR)
      own.detach()
    time.sleep(0.3)

  peers._wire.send = send_and_see_the_other_go
  peers.fail("no space left", 2)
  peers._wire.send = send  # Its beats go on, in this test.
  assert processes[1].ended == ("", 2)


def test_process_0_tells_its_error_before_it_ends(coordinator, monkeypatch):
  monkeypatch.setattr("poison_jax.training.peers._GRACE", 0.2)
  processes = [_Process(coordinator, i) for i in range(2)]
  for process in processes:
    while process.peers is None:
      time.sleep(0.01)
  processes[0].peers.fail("the ledger is damaged", 3)
  assert processes[1].wait().ended == (
    f"process 0 ({_HOST}): the ledger is damaged",
    3,
  )


def test_one_that_is_killed_is_named_to_the_others(coordinator):
  processes = [_Process(coordinator, i, 3) for i in range(3)]
  for process in processes:
    while process.peers is None:
      time.sleep(0.01)
  _vanish(processes[2])
  for number in (0, 1):
    text, code = processes[number].wait().ended
    assert code == 75
    assert text.startswith(f"process 2 ({_HOST}) is gone")
    assert "goes on from the last checkpoint" in text


def test_silence_counts_as_gone(coordinator, monkeypatch):
  monkeypatch.setattr(hub_lib, "SILENCE", 0.5)  # And a beat is 5 s.
  processes = [_Process(coordinator, i) for i in range(2)]
  assert [p.wait().ended[1] for p in processes] == [75, 75]


def test_beats_keep_a_quiet_run_alive(coordinator, monkeypatch):
  monkeypatch.setattr(hub_lib, "BEAT", 0.1)
  monkeypatch.setattr(hub_lib, "SILENCE", 1.0)
  processes = [_Process(coordinator, i) for i in range(2)]
  time.sleep(2.5)
  assert [p.ended for p in processes] == [None, None]


def test_strangers_are_sent_away(coordinator):
  first = _Process(coordinator, 0, patience=20)
  while first.peers is None:
    time.sleep(0.01)
  port = int(coordinator.rpartition(":")[2]) - 1
  for words in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2[]", b"\0\0\0\4null"):
    with (
      socket.create_connection(("localhost", port), timeout=5) as stranger,
      contextlib.suppress(OSError),  # Sent away before it is done.
    ):
      stranger.sendall(words)
      stranger.shutdown(socket.SHUT_WR)
      assert stranger.recv(100) == b""
  second = _Process(coordinator, 1, work=lambda peers: peers.each("x", 1))
  first.peers.each("x", 0)
  assert second.wait().result == [0, 1]


def test_a_port_that_is_taken_is_one_line(coordinator):
  with socket.socket() as other:
    other.bind(("", int(coordinator.rpartition(":")[2]) - 1))
    other.listen()
    error = _Process(coordinator, 0).wait().error
  assert isinstance(error, UserError) and "can't listen on port" in str(error)


@pytest.mark.parametrize(
  ("flags", "says"),
  [
    (("a:8000", 2, None), "go together"),
    (("a", 2, 0), "must be HOST:PORT"),
    (("a:80", 2, 0), "must be HOST:PORT"),
    (("a:70000", 2, 0), "from 1025 to 65535"),
    (("a:8000", 2, 2), "--process=2 must be from 0 to 1"),
  ],
)
def test_flags_that_make_no_cluster_are_refused(flags, says):
  with pytest.raises(UserError, match=says):
    find_cluster(*flags, patience=100)


def test_flags_make_a_cluster_of_more_than_one():
  found = find_cluster("10.0.0.2:8482", 4, 3, patience=100)
  assert found == Cluster("10.0.0.2:8482", 4, 3, 100)
  assert found.address == ("10.0.0.2", 8481)
  assert find_cluster("10.0.0.2:8482", 1, 0, patience=100) is None


_SLURM = {
  "SLURM_JOB_ID": "5000",
  "SLURM_STEP_NODELIST": "node[07-08]",
  "SLURM_NTASKS": "16",
  "SLURM_PROCID": "9",
  "SLURM_LOCALID": "1",
  "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
}


def _slurm(monkeypatch, **changes):
  for name, value in {**_SLURM, **changes}.items():
    monkeypatch.setenv(name, value)


def test_slurm_tells_of_a_process_for_each_gpu(monkeypatch):
  _slurm(monkeypatch)
  port = 5000 % 4096 + 61440
  found = find_cluster(None, None, None, patience=100)
  assert found == Cluster(f"node07:{port}", 16, 9, 100, (1,), ports_below=4096)
  # Job 5001 has the next port: no job's roll call may be there.
  assert found.address == ("node07", port - 4096)


@pytest.mark.parametrize("tasks", ["1", "1(x2)"])
def test_slurms_only_task_on_a_node_has_all_its_gpus(monkeypatch, tasks):
  _slurm(
    monkeypatch,
    SLURM_NTASKS="2",
    SLURM_PROCID="1",
    SLURM_LOCALID="0",
    SLURM_STEP_TASKS_PER_NODE=tasks,
  )
  assert find_cluster(None, None, None, patience=100).local_devices is None


def test_one_process_alone_is_no_cluster(monkeypatch):
  assert find_cluster(None, None, None, patience=100) is None
  _slurm(monkeypatch, SLURM_NTASKS="1", SLURM_PROCID="0")
  assert find_cluster(None, None, None, patience=100) is None


def test_a_detection_that_fails_is_one_line(monkeypatch):
  def fail(*_):
    raise RuntimeError("metadata is silent")

  monkeypatch.setattr(
    cluster_lib.clusters.ClusterEnv,
    "auto_detect_unset_distributed_params",
    fail,
  )
  with pytest.raises(CheckFailed, match="silent; give --coordinator"):
    find_cluster(None, None, None, patience=100)
