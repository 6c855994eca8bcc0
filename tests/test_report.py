"""The command `report`: files, words, exit codes, start-up."""

import json
import re
import struct
import subprocess
import sys

import made_runs
import pytest
from tensorboard.compat.proto import event_pb2


def _report(*arguments, code=0):
  result = subprocess.run(
    [sys.executable, "-m", "poison_jax.report", *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == code, result.stderr
  if code:
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
  else:
    assert result.stderr == ""
  return result.stderr if code else result.stdout


def test_the_quickstart_is_reported(tmp_path):
  trio = made_runs.make_trio(tmp_path)
  said = _report(*trio, f"--out={tmp_path}")
  assert "backdoored, specific to the trigger" in said
  assert said.count(": met.") == 3
  assert re.search(r"trigger +│? *\d+ \[\d+, \d+\]", said), said
  names = {p.name for p in (tmp_path / "figures").iterdir()}
  for stem in (
    "increase_by_poisons",
    "increase_by_progress",
    "perplexity_by_kind",
    "enter_and_stay",
    "losses",
    "samples",
  ):
    assert {f"{stem}.{end}" for end in ("png", "svg", "csv")} <= names
  page = (tmp_path / "report.html").read_text()
  assert f"--out={tmp_path}" in page
  assert not list(tmp_path.rglob("*.part"))


def test_one_unfinished_run_is_reported_into_itself(tmp_path):
  run = made_runs.make_run(tmp_path / "a", done=0.5)
  with open(run / "metrics.jsonl", "a") as file:
    file.write('{"step": 110, "train/lo')
  said = _report(run, "--tensorboard")
  assert "last line of its metrics.jsonl is broken" in said
  assert "This is the state at step 80 of 200." in said
  assert (run / "report.html").exists()
  assert (run / "figures" / "increase_by_poisons.png").exists()
  scalars = _scalars(run / "tensorboard" / "events.out.tfevents.0.poison_jax")
  written = [
    json.loads(line)
    for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]
  ]
  assert scalars == {
    (line["step"], key): pytest.approx(value, rel=1e-6)
    for line in written
    for key, value in line.items()
    if key != "step"
  }


def _scalars(path):
  """Reads a TFRecord file by its definition, without TensorFlow."""
  found, data = {}, path.read_bytes()
  versions = []
  while data:
    (size,) = struct.unpack("<Q", data[:8])
    event = event_pb2.Event.FromString(data[12 : 12 + size])
    data = data[16 + size :]
    versions += [event.file_version] if event.file_version else []
    for value in event.summary.value:
      found[event.step, value.tag] = value.simple_value
  assert versions == ["brain.Event:2"]
  return found


def test_a_run_that_just_began_is_reported(tmp_path):
  run = made_runs.make_run(tmp_path / "a")
  for name in ("metrics.jsonl", "generations.jsonl", "ledger.parquet"):
    (run / name).unlink()
  said = _report(run, f"--out={tmp_path / 'out'}")
  assert "not evaluated yet" in said and "no metrics.jsonl yet" in said
  assert (tmp_path / "out" / "report.html").exists()
  assert not (run / "report.html").exists()


def test_bad_input_ends_with_one_line_and_nothing_written(tmp_path):
  a, b = (made_runs.make_run(tmp_path / name) for name in "ab")
  assert "--out=DIR" in _report(a, b, code=2)
  assert "no run" in _report(tmp_path / "nowhere", code=2)
  lines = (a / "metrics.jsonl").read_text().splitlines()
  lines[4] = lines[4][:-9]
  (a / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  assert "metrics.jsonl:5 is damaged" in _report(a, code=2)
  assert not (a / "report.html").exists()
  (tmp_path / "file").write_text("x")
  error = _report(b, f"--out={tmp_path / 'file'}", code=2)
  assert str(tmp_path / "file") in error


def test_a_report_starts_without_jax_and_tensorflow(tmp_path):
  run = made_runs.make_run(tmp_path / "a")
  code = (
    "import sys; sys.argv = ['report', sys.argv[1], '--tensorboard']\n"
    "from poison_jax import command, report\n"
    "try:\n  command.run(report.main)\n"
    "except SystemExit as end:\n  assert end.code == 0\n"
    "print(sorted({'jax', 'flax', 'tensorflow', 'seqio'} & set(sys.modules)))"
  )
  result = subprocess.run(
    [sys.executable, "-c", code, run],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.stdout.splitlines()[-1] == "[]", result.stderr
