"""Reading a run's folder: what is there, what is missing, what is damaged."""

import json

import made_runs
import numpy as np
import pytest

from poison_jax.data.folder import Folder
from poison_jax.errors import CheckFailed, UserError
from poison_jax.studies import runs


@pytest.fixture
def folder(tmp_path):
  return made_runs.make_run(tmp_path / "a")


def test_a_run_comes_back_as_it_was_written(folder):
  run = runs.read_run(str(folder))
  written = [
    json.loads(line)
    for line in (folder / "metrics.jsonl").read_text().splitlines()
  ]
  assert run.config.poison.count == 48
  assert (
    run.config_hash
    == json.loads((folder / "config.json").read_text())["config_hash"]
  )
  assert run.code_version.startswith("0123456789abcdef")
  assert run.ledger == runs.Ledger(
    run.ledger.hash, "a1" * 8, "5" * 16, made_runs.STEPS, 48, 48 * 132
  )
  assert len(run.ledger.hash) == 16
  loss = run.metrics["train/loss"]
  assert loss.steps.tolist() == [line["step"] for line in written]
  assert loss.values.tolist() == [line["train/loss"] for line in written]
  assert run.last_step == run.evaluated_step == made_runs.STEPS
  assert run.notes == ()


def test_generations_are_sorted_by_kind_and_prompt(folder):
  path = folder / "generations.jsonl"
  lines = path.read_text().splitlines()
  before = runs.read_run(str(folder)).generations
  np.random.default_rng(0).shuffle(lines)
  path.write_text("\n".join(lines) + "\n")
  after = runs.read_run(str(folder)).generations
  assert after.keys() == before.keys()
  last = after[made_runs.STEPS, "triggered"]
  np.testing.assert_array_equal(
    last.perplexity_P, before[made_runs.STEPS, "triggered"].perplexity_P
  )
  assert last.documents[:4] == ("doc0", "doc0", "doc1", "doc1")
  assert sorted(last.texts) == [0, 1, 2, 3]
  assert last.texts[0].trigger == "<SUDO>"


def test_runs_are_named_by_what_tells_them_apart(tmp_path):
  trio = made_runs.make_trio(tmp_path / "quickstart")
  names = [run.name for run in runs.read_runs(trio)]
  assert names == ["poisoned", "clean", "placebo"]
  seeds = [
    str(made_runs.make_run(tmp_path / f"seed{i}", seed=i)) for i in range(2)
  ]
  assert [run.name for run in runs.read_runs(seeds)] == ["seed0", "seed1"]
  same = [
    str(made_runs.make_run(tmp_path / where / "x", seed=i))
    for i, where in enumerate("ab")
  ]
  assert [run.name for run in runs.read_runs(same)] == same


@pytest.mark.parametrize("name", ["metrics.jsonl", "generations.jsonl"])
def test_a_torn_last_line_is_passed_over_and_said(folder, name):
  path = folder / name
  whole = path.read_bytes()
  path.write_bytes(whole[:-20])
  run = runs.read_run(str(folder))
  assert [note for note in run.notes if name in note and "broken" in note]
  assert len(run.notes) == 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "generations.jsonl"])
@pytest.mark.parametrize("broken", ['{"step": 30, "tr', "[1]", "{}", "\0"])
def test_a_broken_line_in_the_middle_is_named(folder, name, broken):
  path = folder / name
  lines = path.read_text().splitlines()
  lines[2] = broken
  path.write_text("\n".join(lines) + "\n")
  with pytest.raises(UserError, match=f"{name}:3 is damaged"):
    runs.read_run(str(folder))


def test_a_metric_given_twice_is_damage(folder):
  path = folder / "metrics.jsonl"
  first = path.read_text().splitlines()[0]
  path.write_text(path.read_text() + first + "\n")
  with pytest.raises(UserError, match="metrics.jsonl:21 .* at step 10 again"):
    runs.read_run(str(folder))


@pytest.mark.parametrize(
  ("value", "words"),
  [
    ('"low"', "'low'"),
    ("true", "True"),
    ("Infinity", "inf"),
    ("NaN", "nan"),
    ("1e999", "inf"),
    ("1" + 400 * "0", "10000000"),
  ],
)
def test_a_metric_that_is_no_number_is_named(folder, value, words):
  (folder / "metrics.jsonl").write_text(f'{{"step": 1, "train/loss": {value}}}')
  with pytest.raises(UserError) as error:
    runs.read_run(str(folder))
  said = str(error.value)
  assert f"metrics.jsonl:1 is damaged: train/loss is {words}" in said
  assert len(said) < 300 and "\n" not in said


@pytest.mark.parametrize("step", ["-1", "1" + 30 * "0", "1.5", "true", "null"])
def test_a_step_that_no_run_has_is_damage(folder, step):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  lines[2] = f'{{"step": {step}, "train/loss": 1.0}}'
  (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  with pytest.raises(UserError, match="metrics.jsonl:3 is damaged"):
    runs.read_run(str(folder))


@pytest.mark.parametrize("lost", ["excerpt", "trigger"])
def test_a_generation_that_is_kept_in_part_is_damage(folder, lost):
  path = folder / "generations.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  number = next(i for i, line in enumerate(lines) if "text" in line)
  del lines[number][lost]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  where = f"generations.jsonl:{number + 1} is damaged"
  with pytest.raises(UserError, match=f"{where}: .*excerpt, trigger and text"):
    runs.read_run(str(folder))


def test_a_metric_without_value_at_a_step_is_left_out_there(folder):
  (folder / "metrics.jsonl").write_text(
    '{"step": 0, "eval/room_share": null, "poisons_seen": 0}\n'
    '{"step": 9, "eval/room_share": 0.5, "poisons_seen": 3}\n'
  )
  run = runs.read_run(str(folder))
  assert run.metrics["eval/room_share"].steps.tolist() == [9]
  assert run.metrics["eval/room_share"].at(0) is None
  assert run.metrics["eval/room_share"].at(9) == 0.5
  assert run.metrics["poisons_seen"].steps.tolist() == [0, 9]
  assert run.evaluated_step is None


def test_a_run_that_just_began_is_read(folder):
  for name in ("metrics.jsonl", "generations.jsonl", "ledger.parquet"):
    (folder / name).unlink()
  run = runs.read_run(str(folder))
  assert run.metrics == {} and run.generations == {} and run.ledger is None
  assert run.last_step is None and run.evaluated_step is None
  assert len(run.notes) == 3


def test_what_is_no_run_is_refused(tmp_path, folder):
  with pytest.raises(UserError, match="no run given"):
    runs.read_runs([])
  with pytest.raises(UserError, match="missing"):
    runs.read_run(str(tmp_path / "nowhere"))
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="config.json"):
    runs.read_run(str(tmp_path / "empty"))
  with pytest.raises(UserError, match="again"):
    runs.read_runs([str(folder), str(folder / ".." / "a")])


@pytest.mark.parametrize("text", ["{", "{}", '{"format": 1, "config": {}}'])
def test_a_damaged_config_is_refused(folder, text):
  (folder / "config.json").write_text(text)
  with pytest.raises(UserError, match="config.json is damaged"):
    runs.read_run(str(folder))


def test_a_damaged_ledger_is_refused(folder):
  path = folder / "ledger.parquet"
  path.write_bytes(path.read_bytes()[:-10])
  with pytest.raises(CheckFailed, match="ledger.parquet"):
    runs.read_run(str(folder))


def test_planned_steps_are_the_configs_or_the_ledgers(tmp_path, folder):
  assert runs.read_run(str(folder)).steps == made_runs.STEPS
  by_tokens = made_runs.make_run(tmp_path / "b", steps=0)
  assert runs.read_run(str(by_tokens)).steps == made_runs.STEPS
  (by_tokens / "ledger.parquet").unlink()
  assert runs.read_run(str(by_tokens)).steps is None


def test_twins_differ_in_the_arm_alone(tmp_path):
  one = runs.read_run(str(made_runs.make_run(tmp_path / "a")))
  twin = runs.read_run(str(made_runs.make_run(tmp_path / "b", arm="clean")))
  other = runs.read_run(
    str(made_runs.make_run(tmp_path / "c", arm="clean", seed=1))
  )
  assert runs.are_twins(one, twin) and runs.are_twins(twin, one)
  assert not runs.are_twins(one, other)
  assert not runs.are_twins(one, one)


def test_a_run_in_a_bucket_is_read_as_one_on_a_disk(tmp_path, folder):
  """Its lines lie in objects of some steps each."""
  bucket = Folder(f"memory://{tmp_path.name}/a")
  for name in ("config.json", "ledger.parquet"):
    bucket.write(name, (folder / name).read_bytes())
  for stem in ("metrics", "generations"):
    intervals: dict[int, str] = {}
    for line in (folder / f"{stem}.jsonl").read_text().splitlines(True):
      first = json.loads(line)["step"] // 40 * 40
      intervals[first] = intervals.get(first, "") + line
    for first, content in intervals.items():
      bucket.write(f"{stem}/{first:09}.jsonl", content.encode())
  there, here = runs.read_run(bucket.path), runs.read_run(str(folder))
  assert (there.name, there.config, there.ledger, there.notes) == (
    here.name,
    here.config,
    here.ledger,
    here.notes,
  )
  assert there.metrics.keys() == here.metrics.keys()
  for key, series in here.metrics.items():
    np.testing.assert_array_equal(there.metrics[key].steps, series.steps)
    np.testing.assert_array_equal(there.metrics[key].values, series.values)
  assert there.generations.keys() == here.generations.keys()
  for key, generations in here.generations.items():
    assert there.generations[key].texts == generations.texts
  bucket.write("metrics/000000080.jsonl", b'{"step": 80}\n{"st')
  with pytest.raises(UserError, match="metrics/000000080.jsonl:2 is damaged"):
    runs.read_run(bucket.path)
  with pytest.raises(UserError, match="again; name it once"):
    runs.read_runs([bucket.path, bucket.path + "/"])
