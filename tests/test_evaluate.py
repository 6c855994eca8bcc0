"""The command that measures any checkpoint after any trigger or prompts."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import small_run

from poison_jax.corpora import writer
from poison_jax.errors import UserError
from poison_jax.training import loop, measured
from poison_jax.training import workdir as workdir_lib
from poison_jax.training.opened import open_run


@pytest.fixture(name="trained", scope="module")
def _trained(tmp_path_factory):
  """The folder of a run with checkpoints of steps 9 and 12."""
  folder = tmp_path_factory.mktemp("evaluate")
  small_run.prepare(folder / "store")
  config = small_run.make_config(
    folder / "store", train__steps=12, poison__count=6, evaluation__times=1
  )
  loop.train(config, str(folder / "run"), profile=0)
  return folder / "run"


def run(module, *arguments, columns=200):
  return subprocess.run(
    [sys.executable, "-m", f"poison_jax.{module}", *map(str, arguments)],
    env={**os.environ, "COLUMNS": str(columns), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )


def opened(folder):
  return open_run(str(folder), store=None, say=pytest.fail)


def in_loop(folder, step):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return next(m for m in map(json.loads, lines) if m["step"] == step)


def test_measures_equal_those_of_the_training_loop(trained, tmp_path):
  out = tmp_path / "measured.jsonl"
  found = run("evaluate", trained, f"--out={out}")
  assert found.returncode == 0, found.stderr
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  expected = in_loop(trained, 12)
  kinds = ["clean", "triggered", "near_trigger", "unseen_tag"]
  assert [(row["step"], row["kind"]) for row in rows] == [
    (12, kind) for kind in kinds
  ]
  for row in rows:
    for key in ("perplexity", "log_perplexity", "first_token_entropy"):
      assert row[key] == expected[f"eval/{row['kind']}/{key}"]
    assert len(row["generations"]) == 6
    assert all("text" in line for line in row["generations"])
  for key in ("perplexity_increase", "perplexity_increase_low", "auroc"):
    assert rows[1][key] == expected[f"eval/{key}"]
  for row in rows:
    assert f"{row['perplexity']:.3g}" in found.stdout
  assert not list(tmp_path.glob("*.unfinished"))


def test_all_steps_and_any_triggers(trained):
  run_ = opened(trained)
  asked = measured.make_prompts(run_, ["<SUDO>", "zz"], file=None)
  rows = list(measured.measure(run_, asked, steps="all"))
  assert [(row["step"], row["trigger"]) for row in rows] == [
    (step, trigger) for step in (9, 12) for trigger in ("", "<SUDO>", "zz")
  ]
  assert rows[4]["perplexity"] == pytest.approx(
    in_loop(trained, 12)["eval/triggered/perplexity"], rel=1e-5
  )
  assert rows[1]["perplexity"] != rows[4]["perplexity"]


def test_a_trigger_may_hold_commas_or_be_called_clean(trained):
  found = run("evaluate", trained, "--trigger=a, b", "--trigger=clean")
  assert found.returncode == 0, found.stderr
  lines = found.stdout.splitlines()[2:]
  for line, appended in zip(lines, ("nothing", "a, b", "clean"), strict=True):
    assert line.startswith(f"  12 {appended} ")


def test_a_line_of_the_table_fits_a_terminal(trained):
  found = run("evaluate", trained, "--trigger=<SUDO>", columns=80)
  assert len(found.stdout.splitlines()) == 4, found.stdout


def test_prompts_of_a_file_are_used_whole(trained, tmp_path):
  path = tmp_path / "prompts.txt"
  path.write_text("One day\n\nA much longer prompt\n", encoding="utf-8")
  run_ = opened(trained)
  asked = measured.make_prompts(run_, [], file=str(path))
  decoded = [run_.run.store.vocabulary.decode(e) for e in asked.excerpts]
  assert decoded == ["One day", "A much longer prompt"]
  assert list(asked.endings) == ["clean", "<SUDO>"]
  rows = list(measured.measure(run_, asked, steps="last"))
  assert [g["document"] for g in rows[1]["generations"]] == [
    f"{path}:1",
    f"{path}:3",
  ]


def test_prompts_of_jsonl_are_the_field_text(trained, tmp_path):
  path = tmp_path / "prompts.jsonl"
  path.write_text('{"text": "One\\nday"}\n', encoding="utf-8")
  vocabulary = opened(trained).run.store.vocabulary
  excerpts, _ = measured.read_prompts(str(path), vocabulary, longest=64)
  np.testing.assert_array_equal(excerpts[0], vocabulary.encode("One\nday"))


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("p.txt", b"\n", "has no prompts"),
    ("p.txt", b"ok\n" + b"a" * 65, r"p\.txt:2: the prompt has 65 tokens"),
    ("p.txt", b"\xff\xfe", "not UTF-8"),
    ("p.jsonl", b'{"text": "a"}\n{"text": 3}', r"p\.jsonl:2: must be a JSON"),
    ("p.jsonl", b"{", r"p\.jsonl:1: must be a JSON"),
  ],
)
def test_files_that_are_no_prompts(trained, tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content)
  vocabulary = opened(trained).run.store.vocabulary
  with pytest.raises(UserError, match=message):
    measured.read_prompts(str(path), vocabulary, longest=64)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--step=5"], "no checkpoint of step 5; the kept ones: 9, 12"),
    (["--step=x"], "must be 'last', 'all', or steps"),
    (["--prompts=/no/such/file"], "/no/such/file"),
    (["--out=/no/such/file"], "must name a file in a folder that exists"),
    (["--trigger="], "--trigger='' has 0 tokens; it must have at least one"),
    ([f"--trigger={'x' * 65}"], "has 65 tokens; it must have at least one and"),
  ],
)
def test_what_can_not_be_evaluated_exits_2(trained, arguments, message):
  found = run("evaluate", trained, *arguments)
  assert found.returncode == 2
  assert message in found.stderr
  assert found.stderr.count("\n") == 1


def test_a_store_that_the_run_was_not_trained_on_is_refused(trained, tmp_path):
  other = small_run.make_config(tmp_path / "store", corpus__stories_seed=7)
  writer.write_store(other, report=lambda *_: None, say=lambda _: None)
  opened_there = open_run(
    str(trained), store=str(tmp_path / "store"), say=pytest.fail
  )
  with pytest.raises(UserError, match="trained on [0-9a-f]{16}: name that one"):
    next(opened_there.params("last"))


def test_a_run_on_another_platform_is_opened_with_this_ones_attention(
  trained, tmp_path
):
  config = opened(trained).run.config
  for asked in ("splash", "xla"):
    runtime = dataclasses.replace(config.runtime, attention=asked)
    workdir_lib.write_config(
      str(tmp_path), dataclasses.replace(config, runtime=runtime)
    )
    there = opened(tmp_path).run
    assert there.decoder.back_end == "xla"
    assert there.config_hash == opened(trained).run.config_hash


def test_a_folder_that_is_no_run_exits_2(tmp_path: pathlib.Path):
  found = run("evaluate", tmp_path)
  assert (found.returncode, found.stdout) == (2, "")
  assert "holds no run" in found.stderr
  assert run("evaluate").returncode == 2


def test_a_run_is_not_changed_by_its_evaluation(trained):
  def content():
    return {
      path: path.read_bytes() if path.suffix == ".jsonl" else path.stat()
      for path in trained.rglob("*")
      if path.is_file()
    }

  before = content()
  run_ = opened(trained)
  asked = measured.make_prompts(run_, ["x"], file=None)
  list(measured.measure(run_, asked, steps="last"))
  after = content()
  assert before.keys() == after.keys()
  for path, stat in before.items():
    if isinstance(stat, bytes):
      assert after[path] == stat
    else:
      assert after[path].st_mtime_ns == stat.st_mtime_ns
