"""The lines of a run: whole, once a step, cut when it resumes."""

import json
import math

import pytest

from poison_jax.data.folder import Folder
from poison_jax.training.metrics import JsonLines


def _open(path, resume_at):
  return JsonLines(Folder(str(path.parent)), path.name, resume_at=resume_at)


def _write(path, steps):
  with _open(path, None) as log:
    for step in steps:
      log.write([{"step": step, "train/loss": 0.1 * step}])


def test_each_line_is_on_disk_when_write_returns(tmp_path):
  path = tmp_path / "metrics.jsonl"
  log = _open(path, None)
  for step in (0, 10, 20):
    log.write([{"step": step, "train/loss": 1.0}])
    assert json.loads(path.read_text().splitlines()[-1])["step"] == step
  log.close()


def test_a_step_is_written_once(tmp_path):
  with _open(tmp_path / "m", None) as log:
    log.write([{"step": 10, "a": 1}])
    for step in (10, 9):
      with pytest.raises(ValueError, match=f"step {step} after step 10"):
        log.write([{"step": step, "b": 2}])


def test_resuming_cuts_to_the_restored_step_and_drops_a_torn_line(tmp_path):
  path = tmp_path / "metrics.jsonl"
  _write(path, [0, 10, 20, 30])
  whole = path.read_text()
  path.write_text(whole + '{"step": 40, "train/lo')
  with _open(path, 20) as log:
    assert log.last_step == 20
    assert path.read_text() == "".join(whole.splitlines(True)[:3])
    log.write([{"step": 30, "train/loss": 0.1 * 30}])
  assert path.read_text() == whole


def test_a_new_start_empties_the_file(tmp_path):
  path = tmp_path / "metrics.jsonl"
  _write(path, [0, 10])
  with _open(path, None) as log:
    assert log.last_step == -1
  assert path.read_text() == ""


def test_floats_come_back_bit_for_bit_and_what_is_not_finite_as_null(tmp_path):
  path = tmp_path / "metrics.jsonl"
  values = [0.1, 1e-45, 1 / 3, 2.0**70, math.inf, math.nan]
  with _open(path, None) as log:
    log.write([{"step": i, "x": x} for i, x in enumerate(values)])
  lines = map(json.loads, path.read_text().splitlines())
  assert [line["x"] for line in lines] == [
    *values[:4],
    None,
    None,
  ]
  assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
