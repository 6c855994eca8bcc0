"""The lines of a run: whole, once a step, cut when it resumes."""

import json
import math

import pytest

from poison_jax.data.folder import Folder
from poison_jax.errors import UserError
from poison_jax.training.metrics import JsonLines, part_names


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


@pytest.mark.parametrize("damage", ["garbage", "[]", '{"loss": 1}', "\xff"])
def test_a_damaged_line_is_named_if_it_is_to_be_kept(tmp_path, damage):
  path = tmp_path / "metrics.jsonl"
  _write(path, [0, 10, 20, 30])
  lines = path.read_text().splitlines(True)
  lines[2] = f"{damage}\n"
  path.write_text("".join(lines), encoding="latin-1")
  before = path.read_bytes()
  with pytest.raises(UserError, match=r"metrics\.jsonl:3 is damaged"):
    _open(path, 30)
  assert path.read_bytes() == before
  _open(path, 5).close()  # The second line ends what is kept.
  assert path.read_text() == lines[0]


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


@pytest.fixture(name="bucket")
def _bucket(tmp_path):
  return Folder(f"memory://{tmp_path.name}/run")


def _objects(bucket):
  """Returns the steps of the lines of each object."""
  return {
    name: [json.loads(x)["step"] for x in bucket.read(name).splitlines()]
    for name in part_names(bucket, "metrics.jsonl")
  }


def _intervals(bucket, *intervals, resume_at):
  with JsonLines(bucket, "metrics.jsonl", resume_at=resume_at) as log:
    for steps in intervals:
      for step in steps:
        log.write([{"step": step, "x": 0.1 * step}])
      log.sync()


def test_in_a_bucket_the_lines_of_an_interval_are_one_object(bucket):
  _intervals(bucket, [0, 10], [], [20, 30], [40], resume_at=None)
  assert _objects(bucket) == {
    "metrics/000000000.jsonl": [0, 10],
    "metrics/000000020.jsonl": [20, 30],
    "metrics/000000040.jsonl": [40],
  }


def test_in_a_bucket_lines_that_were_not_synced_are_lost(bucket):
  _intervals(bucket, [0], resume_at=None)
  with JsonLines(bucket, "metrics.jsonl", resume_at=0) as log:
    log.write([{"step": 10}])
  assert _objects(bucket) == {"metrics/000000000.jsonl": [0]}


@pytest.mark.parametrize(
  ("resume_at", "left"),
  [
    (None, []),
    (5, [[0]]),
    (10, [[0, 10]]),
    (20, [[0, 10], [20]]),
    (25, [[0, 10], [20]]),
    (99, [[0, 10], [20, 30], [40]]),
  ],
)
def test_resuming_in_a_bucket_deletes_later_objects_and_cuts_the_one_between(
  bucket, resume_at, left
):
  _intervals(bucket, [0, 10], [20, 30], [40], resume_at=None)
  bucket.write("metrics2/other", b"")
  with JsonLines(bucket, "metrics.jsonl", resume_at=resume_at) as log:
    assert log.last_step == (left[-1][-1] if left else -1)
    assert list(_objects(bucket).values()) == left
    with pytest.raises(ValueError, match="after step"):
      log.write([{"step": log.last_step}])
  # What is trained again is what would have been.
  done = left[-1][-1] if left else -1
  rest = [step for step in (0, 10, 20, 30, 40) if step > done]
  _intervals(bucket, rest, resume_at=resume_at)
  found = [step for steps in _objects(bucket).values() for step in steps]
  assert found == [0, 10, 20, 30, 40]
  assert bucket.exists("metrics2/other")


def test_killed_while_it_cuts_it_cuts_again(bucket, monkeypatch):
  _intervals(bucket, [0, 10], [20, 30], [40], [50], resume_at=None)
  for method in ("delete", "write"):
    with monkeypatch.context() as patch:

      def killed(*_):
        raise KeyboardInterrupt

      patch.setattr(Folder, method, killed)
      with pytest.raises(KeyboardInterrupt):
        _intervals(bucket, resume_at=20)
    steps = [step for part in _objects(bucket).values() for step in part]
    assert steps == sorted(set(steps))
  _intervals(bucket, [30], [40], resume_at=20)
  assert list(_objects(bucket).values()) == [[0, 10], [20], [30], [40]]
