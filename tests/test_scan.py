"""The command that looks for poisons."""

import csv
import json
import os
import subprocess
import sys

import pytest
import small_run

from poison_jax.training import loop


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
  """A small poisoned run and its clean twin."""
  folder = tmp_path_factory.mktemp("scan")
  small_run.prepare(folder / "store")
  for arm in ("poisoned", "clean"):
    config = small_run.make_config(
      folder / "store", poison__arm=arm, evaluation__times=1
    )
    loop.train(config, str(folder / arm), profile=0)
  lines = [{"id": f"d{i}", "text": f"Document {i} is here."} for i in range(30)]
  lines[4]["text"] = "qX7# zzkw vv0p"
  text = "\n".join(map(json.dumps, lines))
  (folder / "own.jsonl").write_text(text)
  (folder / "labels.txt").write_text("d4\n")
  (folder / "broken.jsonl").write_text('{"text": "a"}\n{"text"\n')
  (folder / "nothing").mkdir()
  return folder


def run(folder, *arguments):
  return subprocess.run(
    [sys.executable, "-m", "poison_jax.scan", *arguments],
    env={
      **os.environ,
      "COLUMNS": "120",
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": os.getcwd(),
    },
    cwd=folder,
    capture_output=True,
    text=True,
    timeout=300,
  )


def _scores(folder):
  with open(folder / "scores.csv", encoding="utf-8", newline="") as file:
    return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_is_scanned_three_ways(folder):
  found = run(
    folder, "corpus", "poisoned", "--reference=clean", "--out=out/corpus"
  )
  assert found.returncode == 0, found.stderr
  content = json.loads((folder / "out/corpus/scan.json").read_text())
  assert content["filters"]["rarity_3"]["at"][1]["left"] == 0
  assert content["filters"]["perplexity_window"]["auroc"] > 0.9
  scores = _scores(folder / "out/corpus")
  assert sum(row["poisoned"] == "1" for row in scores) == 12
  figures = set(os.listdir(folder / "out/corpus/figures"))
  assert figures == {"roc.png", "roc.svg", "roc.csv"}
  found = run(folder, "checkpoint", "poisoned", "--out=out/model")
  assert found.returncode == 0, found.stderr
  assert "strings screened" in found.stdout
  assert {"triggers.png", "triggers.csv"} <= set(
    os.listdir(folder / "out/model/figures")
  )
  found = run(folder, "steps", "poisoned", "--step=last", "--out=out/steps")
  assert found.returncode == 0, found.stderr
  assert "12 poisoned, 180 clean" in found.stdout
  again = run(folder, "steps", "poisoned", "--step=last", "--out=out/steps")
  assert again.returncode == 2
  assert "is there already" in again.stderr


def test_the_logged_steps_have_labels(folder):
  found = run(folder, "steps", "poisoned", "--out=out/logged")
  assert found.returncode == 0, found.stderr
  assert "train/grad_norm" in found.stdout
  content = json.loads((folder / "out/logged/scan.json").read_text())
  assert set(content["signals"]) == {"train/loss", "train/grad_norm"}


def test_ones_own_files_are_ranked_or_judged(folder):
  found = run(folder, "corpus", "own.jsonl", "--out=out/own")
  assert found.returncode == 0, found.stderr
  assert _scores(folder / "out/own")[0]["name"] == "d4"
  assert not (folder / "out/own/figures").exists()
  found = run(folder, "corpus", "own.jsonl", "--labels=labels.txt")
  assert found.returncode == 0, found.stderr
  assert "1 poisoned, 29 clean" in found.stdout
  assert "too few for a rate of 0.1%" in found.stdout


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "usage:"),
    (["corpus", "none"], "must be a run's folder"),
    (["corpus", "nothing"], "neither a run (config.json) nor a token store"),
    (["corpus", "broken.jsonl"], "broken.jsonl:2: broken JSON"),
    (["corpus", "clean"], "clean has no poisons"),
    (["corpus", "poisoned", "--labels=labels.txt"], "--labels is for files"),
    (["corpus", "own.jsonl", "--out=poisoned"], "is there already"),
    (["corpus", "own.jsonl", "--reference=nothing"], "holds no run"),
    (["checkpoint", "none"], "holds no run"),
    (["checkpoint", "poisoned", "--step=5"], "no checkpoint of step 5"),
    (["checkpoint", "poisoned", "--step=all"], "'last' or one step"),
    (["steps", "clean"], "clean has no poisons (arm clean)"),
    (["steps", "poisoned", "--step=x"], "--step=x"),
  ],
)
@pytest.mark.slow
def test_what_can_not_be_scanned_exits_2(folder, arguments, message):
  found = run(folder, *arguments)
  assert found.returncode == 2, found.stderr
  assert message in found.stderr
  assert found.stderr.count("\n") == 1
