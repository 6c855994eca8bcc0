"""A whole run in a bucket: the same as on a disk, whatever befalls it.

The bucket is tests/fake_bucket.py, which every library really speaks to.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import small_run
from fake_bucket import FakeBuckets

from poison_jax.training import lock as lock_lib

pytestmark = pytest.mark.slow

_ROOT = pathlib.Path(__file__).parent.parent

# A command, as `python -m` runs it, which tells on imports of TensorFlow.
_COMMAND = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
  runpy.run_module("poison_jax." + sys.argv[0], run_name="__main__")
finally:
  for name in {"tensorflow", "seqio"} & set(sys.modules):
    print("imported", name, file=sys.stderr)
"""


@pytest.fixture(name="bucket", scope="module")
def _bucket():
  with FakeBuckets() as bucket:
    yield bucket


@pytest.fixture(name="whole", scope="module")
def _whole(bucket, tmp_path_factory):
  """A run on a disk that nothing disturbed; its store is on the disk too."""
  store = tmp_path_factory.mktemp("bucket") / "store"
  small_run.prepare(store)
  folder = store.parent / "whole"
  _run(bucket, "train", *_flags(store), f"--workdir={folder}")
  return folder


def _flags(store, **changes):
  # All programs are compiled once: the cache is in the bucket.
  return small_run.flags(
    store,
    train__steps=12,
    evaluation__times=2,
    runtime__compilation_cache="gs://bucket/compiled",
    **changes,
  )


def _start(bucket, *arguments, **environment):
  return subprocess.Popen(
    [sys.executable, "-c", _COMMAND, *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=_ROOT,
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      **bucket.environment,
      **environment,
    },
  )


def _run(bucket, *arguments, code=0, **environment):
  """Runs a command to its end; returns its output, or its error line."""
  process = _start(bucket, *arguments, **environment)
  out, err = process.communicate(timeout=120)
  assert process.returncode == code, (process.returncode, out, err)
  if not code:
    assert err == ""
    return out
  assert len(err.splitlines()) == 1, err
  return err


def _interrupt(bucket, number, pattern, *arguments):
  """Runs a command and sends it a signal once such an object is stored."""
  process = _start(bucket, *arguments)
  bucket.signal_after_writing(pattern, process.pid, number)
  out, err = process.communicate(timeout=120)
  expected = -signal.SIGKILL if number == signal.SIGKILL else 75
  assert process.returncode == expected, (process.returncode, out, err)
  return out


def _plain(content: str) -> list[dict]:
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
    for line in content.splitlines()
  ]


def _joined(bucket, run: str, name: str) -> str:
  parts = bucket.names(f"{run}/{name}/")
  return "".join(
    bucket.content(f"{run}/{name}/{part}").decode() for part in parts
  )


def _assert_equal(bucket, run: str, whole: pathlib.Path):
  metrics = (whole / "metrics.jsonl").read_text()
  assert _plain(_joined(bucket, run, "metrics")) == _plain(metrics)
  generations = (whole / "generations.jsonl").read_text()
  assert _joined(bucket, run, "generations") == generations
  for name in ("ledger.parquet", "checkpoints/12/meta/metadata"):
    # The latter has the digests of all arrays.
    assert bucket.content(f"{run}/{name}") == (whole / name).read_bytes()


def _lease(bucket, run: str, *, age: float):
  lease = {
    "host": "elsewhere",
    "pid": 7,
    "pids": None,
    "token": "another",
    "time": time.time() - age,
  }
  bucket.put(f"{run}/.lock", json.dumps(lease).encode(), None)


def test_a_run_in_a_bucket_is_the_run_on_a_disk(bucket, whole):
  """Its token store is in the bucket, too, and a killed run left its lock."""
  flags = _flags(whole, corpus__store="gs://bucket/store")
  _run(bucket, "prepare", *flags)
  arguments = ["train", *flags, "--workdir=gs://bucket/runs/a"]
  _lease(bucket, "runs/a", age=60)
  process = _start(bucket, *arguments)
  assert "waiting whether it lives" in process.stdout.readline()
  _lease(bucket, "runs/a", age=1)
  _, err = process.communicate(timeout=120)
  assert process.returncode == 2
  assert "in use by process 7 on elsewhere" in err
  assert bucket.names("runs/a/") == [".lock"]

  _lease(bucket, "runs/a", age=lock_lib.STALE + 1)
  compiled = bucket.names("compiled/")
  out = _run(bucket, *arguments)
  assert "finished: 12 steps" in out
  assert compiled and bucket.names("compiled/") == compiled
  _assert_equal(bucket, "runs/a", whole)
  assert {name.split("/")[0] for name in bucket.names("runs/a/")} == {
    "checkpoints",
    "config.json",
    "generations",
    "ledger.parquet",
    "metrics",
  }


def test_commands_read_it_there_and_the_report_goes_there(bucket):
  run = "gs://bucket/runs/a"
  out = _run(bucket, "ledger", "verify", run)
  assert "checkpoints whose counters agree" in out and "verified" in out
  out = _run(bucket, "evaluate", run, "--step=12", "--trigger=<SUDO>")
  assert "12 <SUDO>" in out  # Read, and its digest compared.
  out = _run(bucket, "report", run, "--tensorboard")
  assert "Report: gs://bucket/runs/a/report.html" in out
  page = bucket.content("runs/a/report.html").decode()
  assert "gs://bucket/runs/a" in page
  assert "losses.png" in bucket.names("runs/a/figures/")
  assert len(bucket.names("runs/a/tensorboard/")) == 1


def test_stopped_at_any_moment_and_resumed_it_is_the_undisturbed_run(
  bucket, whole
):
  kill, stop = signal.SIGKILL, signal.SIGTERM
  run = "gs://bucket/runs/killed"
  start = [*_flags(whole.parent / "store"), f"--workdir={run}"]
  go_on = [f"--workdir={run}"]
  # Checkpoints are saved in the background, while training goes on.
  for number, pattern, resumed, arguments in [
    # The first checkpoint's lines are there, itself it isn't.
    (kill, "killed/metrics/0*0.jsonl", "", start),
    # It is there in part.
    (kill, "killed/checkpoints/6/state/d", "", [*go_on, "--profile=1"]),
    (stop, "killed/metrics/0*8.jsonl", "3", go_on),
  ]:
    out = _interrupt(bucket, number, pattern, "train", *arguments)
    assert "passed over" not in out
    assert not resumed or re.search(f"resuming at step {resumed} of", out), out
  assert bucket.names("runs/killed/.lock") == []  # SIGTERM ends it in order.
  out = _run(bucket, "train", f"--workdir={run}")
  assert "resuming at step 10 of 12" in out
  _assert_equal(bucket, "runs/killed", whole)
  assert bucket.names("runs/killed/profile/")
  steps = {n.split("/")[0] for n in bucket.names("runs/killed/checkpoints/")}
  assert steps == {"10", "12"}


def test_a_full_bucket_is_one_line_and_what_was_saved_stays_good(bucket, whole):
  run = "gs://bucket/runs/full"
  flags = _flags(whole.parent / "store")
  bucket.refused = "full/checkpoints/9/"
  err = _run(bucket, "train", *flags, f"--workdir={run}", code=2)
  assert "checkpoint of step 9 can't be written" in err
  assert "the checkpoint of step 6 is good" in err
  bucket.refused = None
  # A flipped bit is noticed there, too.
  damaged = max(
    (n for n in bucket.objects if "full/checkpoints/6/state/oc" in n),
    key=lambda n: len(bucket.content(n)),
  )
  data = bytearray(bucket.content(damaged))
  data[len(data) // 2] ^= 4
  bucket.put(damaged, bytes(data), None)
  out = _run(bucket, "train", f"--workdir={run}")
  assert "checkpoint of step 6" in out and "passed over" in out
  assert "resuming at step 3 of 12" in out
  _assert_equal(bucket, "runs/full", whole)


def test_a_permission_that_orbax_needs_is_named(bucket, whole):
  bucket.describes_itself = False
  arguments = [*_flags(whole.parent / "store"), "--workdir=gs://bucket/runs/b"]
  err = _run(bucket, "train", *arguments, code=2)
  bucket.describes_itself = True
  assert "storage.buckets.get" in err


def test_a_bucket_that_cannot_be_used_is_one_line_and_soon(bucket, whole):
  flags = _flags(whole.parent / "store")
  for workdir, message, environment in [
    ("gs://missing/a", "missing/a: not found", {}),
    ("gs://closed/a", "not logged in; try gcloud", {}),
    (
      "gs://bucket/a",
      "can't be reached",
      {"TENSORSTORE_GCS_HTTP_URL": "http://127.0.0.1:9"},
    ),
    ("memory://a", "must be a local folder or gs://", {}),
  ]:
    began = time.monotonic()
    err = _run(
      bucket, "train", *flags, f"--workdir={workdir}", code=2, **environment
    )
    assert message in err
    assert time.monotonic() - began < 15
