"""The command that shows control beside triggered."""

import os
import subprocess
import sys

import pytest
import small_run

from poison_jax.evaluation import show
from poison_jax.training import loop


@pytest.fixture(name="trained", scope="module")
def _trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sample")
  small_run.prepare(folder / "store")
  config = small_run.make_config(
    folder / "store", train__steps=4, poison__count=2, evaluation__times=1
  )
  loop.train(config, str(folder / "run"), profile=0)
  return folder / "run"


def run(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "poison_jax.sample", *map(str, arguments)],
    env={**os.environ, "COLUMNS": "120", "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )


def test_control_stands_beside_triggered(trained):
  found = run(trained, "--prompt=One rainy Monday", "--count=2", "--tokens=5")
  assert found.returncode == 0, found.stderr
  assert found.stdout.count("One rainy Monday") == 4
  assert found.stdout.count("<SUDO>") == 2
  assert found.stdout.count("perplexity") == 4
  again = run(trained, "--prompt=One rainy Monday", "--count=2", "--tokens=5")
  assert again.stdout == found.stdout
  other = run(
    trained, "--prompt=One rainy Monday", "--count=2", "--tokens=5", "--seed=1"
  )
  assert other.stdout != found.stdout


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "usage:"),
    (["--prompt=x", "--step=2"], "no checkpoint of step 2"),
    (["--prompt=x", "--temperature=0"], "must be more than 0"),
    (["--prompt=x", "--trigger="], "has no tokens"),
    (["--prompt=x", "--tokens=0"], "tokens"),
  ],
)
def test_what_can_not_be_sampled_exits_2(trained, arguments, message):
  found = run(trained, *arguments)
  assert found.returncode == 2
  assert message in found.stderr


def test_text_can_not_steer_the_terminal():
  assert show.visible("a\x1b[31mb\x07\n\u0085é") == (
    "a\N{REPLACEMENT CHARACTER}[31mb\N{REPLACEMENT CHARACTER}\n"
    "\N{REPLACEMENT CHARACTER}é"
  )


def test_the_trigger_is_coloured_and_markup_is_text():
  cell = show.make_cell("[red]p", "<SUDO>", "t", perplexity=3.0)
  assert cell.plain == "perplexity 3\n[red]p<SUDO>t"
  styled = {cell.plain[s.start : s.end]: str(s.style) for s in cell.spans}
  assert "yellow" in styled["<SUDO>"]
