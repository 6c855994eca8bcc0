"""Runs on several processes: what one process does, and one end for all.

Local processes stand in for hosts; JAX joins their CPU devices with Gloo.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import small_run

pytestmark = pytest.mark.slow

_ROOT = pathlib.Path(__file__).parent.parent
_DEVICES = 4
_RUN = {
  "runtime__mesh__data": 2,
  "runtime__mesh__fsdp": -1,
  "evaluation__times": 1,
  "checkpoint__every": 8,
  "checkpoint__keep_last": 3,
}
_LONG = {
  "train__steps": 100_000,
  "train__log_every": 10,
  "checkpoint__every": 20,
}


@pytest.fixture(name="store", scope="module")
def _store(tmp_path_factory):
  store = tmp_path_factory.mktemp("hosts") / "store"
  small_run.prepare(store)
  return store


def _port() -> int:
  """Returns a port that is free, as is the one below it."""
  while True:
    with socket.socket() as probe, socket.socket() as below:
      probe.bind(("", 0))
      port = probe.getsockname()[1]
      try:
        below.bind(("", port - 1))
        return port
      except OSError:  # Taken: the run would need both.
        continue


class _Hosts:
  """`count` processes of one run, four devices in all."""

  def __init__(self, count: int, workdir, *arguments, each=lambda _: ()):
    cluster = [f"--coordinator=localhost:{_port()}", f"--processes={count}"]
    self.processes = [
      subprocess.Popen(
        [
          *(sys.executable, "-m", "poison_jax.train", f"--workdir={workdir}"),
          *arguments,
          *each(number),
          *([*cluster, f"--process={number}"] if count > 1 else []),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env={
          **os.environ,
          "JAX_PLATFORMS": "cpu",
          "XLA_FLAGS": "--xla_backend_optimization_level=0 "
          "--xla_force_host_platform_device_count="
          f"{_DEVICES // count}",
        },
      )
      for number in range(count)
    ]

  def wait(self) -> list[tuple[int, str, str]]:
    """Returns exit code, output and errors of each."""
    try:
      said = [p.communicate(timeout=300) for p in self.processes]
    finally:
      for process in self.processes:
        process.kill()
    codes = [p.returncode for p in self.processes]
    return [(c, out, err) for c, (out, err) in zip(codes, said, strict=True)]

  def succeed(self) -> str:
    """Returns what process 0 printed; the others print nothing."""
    (_, out, _), *others = done = self.wait()
    assert [code for code, _, _ in done] == [0] * len(done), done
    assert [err for _, _, err in done] == [""] * len(done)
    assert [out for _, out, _ in others] == [""] * len(others)
    assert "[Gloo]" not in out
    return out


def _wait_for(path: pathlib.Path, hosts: _Hosts) -> None:
  while not path.exists():
    time.sleep(0.05)
    for process in hosts.processes:
      assert process.poll() is None, process.communicate()


def _lines(workdir: pathlib.Path, name: str = "metrics.jsonl") -> list[dict]:
  return [json.loads(s) for s in (workdir / name).read_text().splitlines()]


def _assert_same_run(found: pathlib.Path, expected: pathlib.Path) -> None:
  """Sums over devices come in another order: no more may differ."""
  for line, other in zip(_lines(found), _lines(expected), strict=True):
    assert line["step"] == other["step"]
    for key, value in other.items():
      if not key.startswith("time/") and value is not None:
        assert line[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
      if key == "train/loss":
        assert line[key] == pytest.approx(value, rel=1e-6)
  ledgers = [pq.read_table(w / "ledger.parquet") for w in (found, expected)]
  assert ledgers[0].equals(ledgers[1])
  texts = [
    [line.get("text") for line in _lines(w, "generations.jsonl")]
    for w in (found, expected)
  ]
  assert texts[0] == texts[1]


@pytest.fixture(name="one", scope="module")
def _one(store):
  """A run of one process."""
  workdir = store.parent / "one"
  _Hosts(1, workdir, *small_run.flags(store, **_RUN)).succeed()
  return workdir


@pytest.fixture(name="four", scope="module")
def _four(store):
  """The same of four."""
  workdir = store.parent / "four"
  out = _Hosts(4, workdir, *small_run.flags(store, **_RUN)).succeed()
  assert "4 cpu; mesh data 2, fsdp 2, tensor 1" in out
  return workdir


def test_four_processes_do_what_one_does(one, four):
  _assert_same_run(four, one)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_two_processes_stopped_by_a_signal_to_one_save_and_go_on(
  one, store, tmp_path, name
):
  workdir = tmp_path / "two"
  flags = small_run.flags(store, **_RUN)
  hosts = _Hosts(2, workdir, *flags)
  _wait_for(workdir / "metrics.jsonl", hosts)
  hosts.processes[1].send_signal(signal.Signals[name])
  done = hosts.wait()
  assert [code for code, _, _ in done] == [75, 75], done
  steps = {
    re.search(
      rf"stopped by {name} at step (\d+) of 24, saved; .* on all hosts\n", err
    )[1]
    for _, _, err in done
  }
  assert len(steps) == 1
  assert (workdir / "checkpoints" / steps.pop()).is_dir()
  assert "resuming at step" in _Hosts(2, workdir).succeed()
  _assert_same_run(workdir, one)


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4)])
def test_checkpoints_serve_any_number_of_processes(
  request, store, tmp_path, before, after
):
  whole = request.getfixturevalue({4: "four", 1: "one"}[before])
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  for folder in (workdir / "checkpoints").iterdir():
    if folder.name.isdigit() and int(folder.name) > 16:
      shutil.rmtree(folder)
  out = _Hosts(after, workdir).succeed()
  assert "resuming at step 16 of 24" in out
  _assert_same_run(workdir, whole)


def test_a_file_that_some_alone_read_is_passed_over_by_all(four, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(four, workdir)
  # The arrays of one process of the newest checkpoint.
  written = workdir / "checkpoints" / "24" / "state" / "ocdbt.process_3"
  for file in (written / "d").iterdir():
    file.unlink()
  out = _Hosts(4, workdir).succeed()
  assert "checkpoint of step 24 can't be read" in out
  assert "resuming at step 16 of 24" in out
  assert (workdir / "checkpoints" / "damaged-24-0").is_dir()
  _assert_same_run(workdir, four)


@pytest.mark.parametrize("victim", [0, 1])
def test_where_one_is_killed_all_stop_and_name_it(store, tmp_path, victim):
  workdir = tmp_path / "run"
  hosts = _Hosts(2, workdir, *small_run.flags(store, **{**_RUN, **_LONG}))
  _wait_for(workdir / "checkpoints" / "20", hosts)
  hosts.processes[victim].kill()
  code, _, err = hosts.wait()[1 - victim]
  if victim == 0 and code == -signal.SIGABRT:
    # JAX's service lived in it, and was the first to notice, this time.
    assert "JAX distributed service" in err
    return
  assert code == 75, err
  assert re.search(
    rf"error: process {victim} \(\S+\) is gone.*; the same command", err
  )


def test_a_checkpoint_that_one_cannot_write_ends_all(store, tmp_path):
  workdir = tmp_path / "run"
  hosts = _Hosts(2, workdir, *small_run.flags(store, **{**_RUN, **_LONG}))
  _wait_for(workdir / "checkpoints" / "20", hosts)
  (workdir / "metrics.jsonl").unlink()
  # The next checkpoint can't be made.
  shutil.rmtree(workdir / "checkpoints")
  (workdir / "checkpoints").write_text("no folder")
  done = hosts.wait()
  assert len({code for code, _, _ in done}) == 1
  assert done[0][0] == 2, done
  for _, _, err in done:
    assert "can't be written" in err


def test_hosts_that_differ_are_named_before_anything_is_written(
  store, tmp_path
):
  def batch(number):
    return [f"--config.train.batch={8 * (number + 1)}"]

  flags = small_run.flags(store, **_RUN)
  done = _Hosts(2, tmp_path / "run", *flags, each=batch).wait()
  host = socket.gethostname()
  for code, _, err in done:
    assert code == 3
    assert err == (
      f"error: process 1 ({host}) has config.train.batch 16, process 0 "
      f"({host}) 8: it must be the same on all hosts\n"
    )
  assert not (tmp_path / "run").exists()


def test_folders_that_are_not_one_are_noticed_before_training(store, tmp_path):
  def folder(number):
    return [f"--workdir={tmp_path}/run{number}"]

  flags = small_run.flags(store, **_RUN)
  for code, _, err in _Hosts(2, tmp_path / "run", *flags, each=folder).wait():
    assert code == 3
    assert f"has --workdir {tmp_path}/run1, process 0" in err
    assert err.count("\n") == 1


def test_a_store_is_not_made_by_many(store, tmp_path):
  flags = small_run.flags(store, corpus__store=tmp_path / "none")
  for code, _, err in _Hosts(2, tmp_path / "run", *flags).wait():
    assert code == 2
    assert err.count("\n") == 1 and "run python -m poison_jax.prepare" in err
  assert not (tmp_path / "run").exists()
