"""The command from outside: kills, signals, damage, refusals, exit codes."""

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

import pytest
import small_run

_ROOT = pathlib.Path(__file__).parent.parent
_STEPS = 48
_MANY = {"train__steps": _STEPS, "train__log_every": 1}

# Runs the command where TensorFlow and seqio can't be imported.
_WITHOUT_TENSORFLOW = """
import importlib.machinery, runpy, sys
find = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
  if name.split(".")[0] not in (
    "tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio"):
    return find(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
sys.argv[0] = "train"
runpy.run_module("poison_jax.train", run_name="__main__")
"""


def _start(*arguments, limit: int | None = None, **environment):
  before = (
    ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "bash"] if limit else []
  )
  return subprocess.Popen(
    [*before, sys.executable, "-c", _WITHOUT_TENSORFLOW, *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=_ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
  )


def _train(*arguments, code: int, warnings: bool = False, **options):
  """Runs the command to its end; returns its output and its error line."""
  process = _start(*arguments, **options)
  out, err = process.communicate(timeout=120)
  assert process.returncode == code, (process.returncode, out, err)
  if code:
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("error: ")
  elif not warnings:
    assert err == ""
  return out, err


def _last_step(folder: pathlib.Path) -> int:
  file = folder / "metrics.jsonl"
  if not file.exists():
    return -1
  whole = [x for x in file.read_text().splitlines(True) if x.endswith("\n")]
  return json.loads(whole[-1])["step"] if whole else -1


def _lines(folder: pathlib.Path) -> list[dict]:
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
    for line in (folder / "metrics.jsonl").read_text().splitlines()
  ]


def _assert_equal_runs(folder, whole):
  assert _lines(folder) == _lines(whole)
  name = "generations.jsonl"
  assert (folder / name).read_text() == (whole / name).read_text()
  assert (folder / "ledger.parquet").read_bytes() == (
    whole / "ledger.parquet"
  ).read_bytes()


@pytest.fixture(name="store", scope="module")
def _store(tmp_path_factory):
  return tmp_path_factory.mktemp("train") / "store"


@pytest.fixture(name="whole", scope="module")
def _whole(store):
  """A run that nothing disturbed, whose store it prepared itself."""
  folder = store.parent / "whole"
  out, _ = _train(
    *small_run.flags(store, **_MANY), f"--workdir={folder}", code=0
  )
  assert "preparing the token store" in out and "finished: 48 steps" in out
  return folder


@pytest.fixture(name="copy")
def _copy(whole, tmp_path):
  """A copy of the whole run to do harm to."""
  return pathlib.Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.mark.slow
def test_a_run_leaves_what_others_read_and_says_when_it_is_finished(whole):
  assert {p.name for p in whole.iterdir()} == {
    ".lock",
    "config.json",
    "ledger.parquet",
    "metrics.jsonl",
    "generations.jsonl",
    "checkpoints",
  }
  lines = _lines(whole)
  assert [line["step"] for line in lines] == list(range(_STEPS + 1))
  assert lines[-1]["poisons_seen"] == small_run.OVERRIDES["poison.count"]
  assert lines[-1]["train/loss"] < lines[1]["train/loss"]
  for key in (
    "eval/clean/perplexity",
    "eval/triggered/perplexity",
    "eval/perplexity_increase",
    "eval/auroc",
    "eval/gibberish_loss",
    "eval/validation_loss",
  ):
    assert key in lines[0] and key in lines[-1]
  out, _ = _train(f"--workdir={whole}", code=0)
  assert "is finished: 48 steps" in out


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_is_the_undisturbed_run(
  store, whole, tmp_path
):
  folder = tmp_path / "run"
  arguments = [*small_run.flags(store, **_MANY), f"--workdir={folder}"]
  for at in (0, 10, 30):  # The first before there is a checkpoint.
    process = _start(*arguments)
    while _last_step(folder) < at and process.poll() is None:
      time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    arguments = [f"--workdir={folder}"]
  _train(*arguments, code=0)
  _assert_equal_runs(folder, whole)


# Runs the command, and sends itself a signal while the heavy imports run.
_SIGNALLED = """
import os, runpy, signal, sys
class Signals:
  def find_spec(self, module, path=None, target=None):
    if module == "jax":
      os.kill(os.getpid(), signal.NAME)
sys.meta_path.insert(0, Signals())
runpy.run_module("poison_jax.train", run_name="__main__")
"""


def _signalled(name, *arguments):
  return subprocess.Popen(
    [
      *(sys.executable, "-c", _SIGNALLED.replace("NAME", name)),
      *("--config=configs/tiny.py", *arguments),
    ],
    stderr=subprocess.PIPE,
    text=True,
    cwd=_ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )


def _cluster_of_two():
  with socket.socket() as probe:
    probe.bind(("", 0))
    port = probe.getsockname()[1]
  return f"--coordinator=localhost:{port}", "--processes=2"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_in_the_first_seconds_is_no_failure(tmp_path, name):
  process = _signalled(name, f"--workdir={tmp_path}/run")
  _, err = process.communicate(timeout=120)
  assert process.returncode == 75
  assert err == f"error: stopped by {name} before it began; start it again\n"
  assert not (tmp_path / "run").exists()


def test_such_a_signal_to_one_is_no_failure_of_the_others(tmp_path):
  flags = (f"--workdir={tmp_path}/run", *_cluster_of_two())
  other = _start("--config=configs/tiny.py", *flags, "--process=0")
  one = _signalled("SIGTERM", *flags, "--process=1")
  for process, named in ((one, "stopped"), (other, r"process 1 \(.*\): ")):
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert re.match(f"error: {named}.*start it again\n", err)


def test_check_reads_what_is_given_and_trains_nothing(tmp_path):
  flags = ("--check", f"--workdir={tmp_path}/run")
  assert _train(*flags, "--config=configs/tiny.py", code=0) == ("", "")
  for wrong in ("--config.train.stepz=3", "--config.train.steps=-1"):
    _, err = _train(*flags, "--config=configs/tiny.py", wrong, code=2)
    assert "train.step" in err
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_before_the_roll_call_ends_all(tmp_path, failing):
  flags = (f"--workdir={tmp_path}/run", *_cluster_of_two())
  configs = ["tiny.py", "tiny.py"]
  configs[failing] = "nope.py"
  processes = [
    _start(f"--config=configs/{config}", *flags, f"--process={i}")
    for i, config in enumerate(configs)
  ]
  for i, process in enumerate(processes):
    _, err = process.communicate(timeout=60)  # And not after 100 s.
    assert process.returncode == 2
    named = "" if i == failing else rf"process {failing} \(.*\): "
    assert re.match(f"error: {named}--config=configs/nope.py: no such", err)


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(store, whole, tmp_path):
  folder = tmp_path / "run"
  process = _start(*small_run.flags(store, **_MANY), f"--workdir={folder}")
  while _last_step(folder) < 7 and process.poll() is None:
    time.sleep(0.002)
  process.terminate()
  _, err = process.communicate(timeout=120)
  assert process.returncode == 75, err
  assert err.startswith("error: stopped by SIGTERM at step ")
  assert f"poison_jax.train --workdir={folder}" in err
  assert len(err.strip().splitlines()) == 1
  # A flipped bit in what it saved: passed over, and made up for.
  newest = max((folder / "checkpoints").iterdir(), key=lambda p: int(p.name))
  _flip_a_bit(newest)
  out, _ = _train(f"--workdir={folder}", code=0)
  assert f"checkpoint of step {newest.name}" in out and "passed over" in out
  _assert_equal_runs(folder, whole)


def _flip_a_bit(checkpoint: pathlib.Path):
  file = max(
    checkpoint.glob("state/**/d/*"), key=lambda path: path.stat().st_size
  )
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 4
  file.write_bytes(data)


@pytest.mark.slow
def test_without_a_good_checkpoint_it_stops_and_touches_nothing(copy):
  for checkpoint in (copy / "checkpoints").iterdir():
    _flip_a_bit(checkpoint)
  before = (copy / "metrics.jsonl").read_bytes()
  _, err = _train(f"--workdir={copy}", code=3)
  assert "none of the checkpoints" in err
  assert (copy / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_it_goes_on_with_other_devices_and_another_mesh(copy, whole):
  shutil.rmtree(copy / "checkpoints" / "48")
  config = json.loads((copy / "config.json").read_text())
  config["config"]["runtime"]["mesh"] = {"data": 2, "fsdp": 1, "tensor": 2}
  (copy / "config.json").write_text(json.dumps(config))
  out, _ = _train(
    f"--workdir={copy}",
    code=0,
    warnings=True,  # XLA's partitioner has its own opinion of the mesh.
    XLA_FLAGS="--xla_force_host_platform_device_count=4",
  )
  assert "mesh data 2, fsdp 1, tensor 2" in out
  assert "resuming at step 45" in out
  assert _lines(copy)[:46] == _lines(whole)[:46]
  for line, expected in zip(_lines(copy), _lines(whole), strict=True):
    assert (
      line["train/poison_tokens_seen"] == (expected["train/poison_tokens_seen"])
    )
    if "train/loss" in line:
      assert line["train/loss"] == pytest.approx(
        expected["train/loss"], rel=1e-5
      )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("kibibytes", "message"),
  # metrics.jsonl has 27 KiB at the end; of a checkpoint's 72 KiB TensorStore
  # puts, as its threads come, 45 at least into one file.
  [(8, "File too large: .*jsonl"), (30, "step 48 can't .*step 45 is good")],
)
def test_a_full_disk_is_one_line_and_what_was_saved_stays_good(
  copy, whole, kibibytes, message
):
  """A limit on the size of a file stands in for the full disk."""
  shutil.rmtree(copy / "checkpoints" / "48")
  _, err = _train(f"--workdir={copy}", code=2, limit=kibibytes)
  assert re.search(message, err), err
  out, _ = _train(f"--workdir={copy}", code=0)
  assert "resuming at step 45" in out
  _assert_equal_runs(copy, whole)


@pytest.mark.slow
def test_input_that_cannot_be_used_is_one_line_and_leaves_nothing(
  store, tmp_path
):
  small_run.prepare(store)
  folder = tmp_path / "run"
  new = [*small_run.flags(store), f"--workdir={folder}"]
  for arguments, message in [
    ([f"--workdir={folder}"], "holds no run"),
    (small_run.flags(store), "--workdir=FOLDER"),
    ([*new, "--config.poison.count=1000"], "has 192 slots"),
    ([*new, "--config.runtime.mesh.data=3"], "there are 1 devices"),
    ([*new, "--config.runtime.attention=splash"], "splash needs a TPU"),
    ([*new, "--config.corpus.stories=301"], "there 300, now 301"),
    ([*new, "--config.evaluation.prompts=5000"], "5000"),
    ([f"--workdir={__file__}/x", *small_run.flags(store)], "Not a directory"),
  ]:
    _, err = _train(*arguments, code=2)
    assert message in err
    assert not folder.exists()
