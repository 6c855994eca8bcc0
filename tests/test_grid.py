"""Grids of settings, and the cells that they make."""

import collections
import dataclasses
import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from configs import base, dos, tiny
from poison_jax.errors import UserError
from poison_jax.studies import costs
from poison_jax.studies.grid import pricing
from poison_jax.studies.grid import study as study_lib
from poison_jax.studies.grid.axes import axis, product, without, words, zipped
from poison_jax.studies.grid.study import Study
from poison_jax.training.topology import parse_topology

_ROOT = pathlib.Path(__file__).parent.parent
_PAPER = str(_ROOT / "configs" / "studies" / "paper.py")


def _study(grid, **changes) -> Study:
  study = Study(
    name="some",
    question="Does it?",
    base=tiny.get_config,
    fixed={},
    grid=grid,
    margin=0.25,
    topology="cpu:1",
    mfu=0.3,
  )
  return dataclasses.replace(study, **changes)


# Axes.


def test_a_product_has_every_combination_the_last_changing_fastest():
  grid = product(axis("a", 1, 2), axis("b", "x", "y", "z"))
  assert [words(settings) for settings in grid] == [
    "a=1 b=x", "a=1 b=y", "a=1 b=z", "a=2 b=x", "a=2 b=y", "a=2 b=z",
  ]  # fmt: skip


def test_zipped_axes_go_along_with_each_other():
  grid = zipped(axis("a", 1, 2), axis("b", 3, 4))
  assert grid == ({"a": 1, "b": 3}, {"a": 2, "b": 4})
  with pytest.raises(UserError, match=r"\[1, 2\] values"):
    zipped(axis("a", 1), axis("b", 3, 4))


def test_an_exclusion_takes_away_what_has_all_of_its_values():
  grid = product(axis("a", 1, 2), axis("b", 1, 2)) + axis("a", 1)
  kept = without(grid, {"a": 1, "b": 2})
  assert [words(s) for s in kept] == ["a=1 b=1", "a=2 b=1", "a=2 b=2", "a=1"]
  with pytest.raises(UserError, match="a=3 matches no cell"):
    without(grid, {"a": 3})


@pytest.mark.parametrize(
  ("make", "says"),
  [
    (lambda: axis("a"), "'a' has no value"),
    (lambda: axis(3, 1), 'named by a text, like axis."poisons", 0, 64.; got 3'),
    (lambda: axis("a", 1, 2, 1), "'a' has the value 1 twice"),
    (lambda: product(axis("a", 1), axis("a", 2)), "'a' is in the grid twice"),
    (lambda: zipped(axis("a", 1), axis("a", 2)), "'a' is in the grid twice"),
  ],
)
def test_a_slip_in_an_axis_is_refused(make, says):
  with pytest.raises(UserError, match=says):
    make()


def test_numbers_of_numpy_become_pythons():
  grid = axis("poisons", *np.array([0, 64]))
  assert grid == axis("poisons", 0, 64)
  assert {type(settings["poisons"]) for settings in grid} == {int}
  with pytest.raises(UserError, match="the value 0 twice"):
    axis("poisons", 0, np.int32(0))


# Cells.


def test_a_cell_has_the_configuration_of_its_settings():
  (cell,) = study_lib.make_cells(
    _study(
      product(
        axis("poisons", 7),
        axis("optimizer.learning_rate", 1e-3),
        axis("seeds.documents", 5),
        axis("poison.schedule", "window"),
      ),
      fixed={"size": "35k", "poison.end": 0.5},
    )
  )
  config = cell.config
  assert config.poison.count == 7 and config.model.width == 32
  assert config.optimizer.learning_rate == 1e-3
  assert config.seeds.documents == 5
  assert (config.poison.schedule, config.poison.end) == ("window", 0.5)
  assert cell.label == (
    "poisons=7 optimizer.learning_rate=0.001 seeds.documents=5 "
    "poison.schedule=window"
  )
  # 20 tokens a parameter in steps of 4 rows of 256 tokens.
  assert cell.steps == -(-20 * cell.parameters // 1024)


def test_every_setting_that_gives_a_run_its_meaning_names_its_folder():
  grid = product(axis("seed", 0, 1), axis("poisons", 0, 8))
  grid += product(axis("seed", 0), axis("poisons", 8), axis("arm", "placebo"))
  for name in ("documents", "positions", "init", "order", "sampling"):
    grid += product(axis("seed", 0), axis(f"seeds.{name}", 3))
  hashes = {cell.folder for cell in study_lib.make_cells(_study(grid))}
  assert len(hashes) == 10


def test_what_does_not_change_a_run_leaves_its_folder():
  grid = product(axis("seed", 0), axis("poisons", 8))
  (one,) = study_lib.make_cells(_study(grid))
  (other,) = study_lib.make_cells(
    _study(grid, fixed={"checkpoint.every": 7, "corpus.store": "elsewhere"})
  )
  assert one.hash == other.hash and one.config != other.config


@pytest.mark.parametrize(
  ("grid", "says"),
  [
    (axis("sizes", "35k"), "'sizes=35k' is not known: the legal ones"),
    (axis("size", "36k"), "size=36k: the sizes are 35k"),
    (axis("optimizer.learning_rat", 1.0), "did you mean 'optimizer.learning_r"),
    (axis("optimiser.clip", 1.0), "unknown axis 'optimiser.clip'"),
    (axis("optimizer", 1.0), "'optimizer=1.0' is not known"),
    (axis("optimizer.clip.far", 1.0), "unknown axis 'optimizer.clip.far'"),
    (axis("train.batch", "four"), "axis train.batch='four'"),
    (axis("train.batch", 0), "config.train.batch is 0"),
    (axis("poisons", 8, "8"), "two cells are the same run: poisons=8 and"),
    (axis("poisons", 10_000), "cell poisons=10000: .*10000.*slots"),
    (axis("arm", "poisoned") + axis("seed", 0), "two cells are the same run"),
    (
      product(axis("arm", "clean"), axis("poisons", 0, 64)),
      "same run: arm=clean poisons=0 and arm=clean poisons=64; where no",
    ),
    (
      axis("poisons", 0) + axis("arm", "clean"),
      "same run: poisons=0 and arm=clean; where no document is poisoned",
    ),
    (
      axis("poisons", 0) + product(axis("arm", "placebo"), axis("poisons", 0)),
      "same run: poisons=0 and arm=placebo poisons=0",
    ),
    (
      product(axis("arm", "clean"), axis("seeds.documents", 1, 2)),
      "same run: arm=clean seeds.documents=1 and arm=clean seeds.documents=2",
    ),
    ((), "has no cells"),
  ],
)
def test_a_grid_that_cannot_be_is_refused_in_one_line(grid, says):
  with pytest.raises(UserError, match=says) as error:
    study_lib.make_cells(_study(grid))
  assert "\n" not in str(error.value)


# A clean run's evaluations use the trigger and fresh gibberish; and another
# schedule is another rung, with a dose of zero of its own.
@pytest.mark.parametrize(
  "varied",
  [
    axis("poison.trigger", "<ONE>", "<TWO>"),
    axis("poison.payload_max", 40, 50),
    axis("poison.gibberish_vocabulary", "a", "b"),
    axis("evaluation.unseen_tag", "<C>", "<D>"),
    axis("seed", 0, 1),
    axis("seeds.init", 0, 1),
    axis("seeds.order", 0, 1),
    axis("seeds.sampling", 0, 1),
    axis("poison.schedule", "uniform", "window"),
  ],
  ids=lambda grid: next(iter(grid[0])),
)
def test_clean_runs_that_differ_in_more_than_the_poison_are_two(varied):
  fixed = {"poison.payload_min": 1}
  grid = product(axis("arm", "clean"), varied)
  assert len(study_lib.make_cells(_study(grid, fixed=fixed))) == 2


def test_doses_and_draws_of_poisoned_runs_are_runs():
  grid = product(
    axis("poisons", 4, 8),
    axis("arm", "poisoned", "placebo"),
    axis("seeds.documents", 1, 2),
    axis("seeds.positions", 1, 2),
  )
  assert len(study_lib.make_cells(_study(grid))) == 16


def test_a_base_config_that_fails_is_told_by_its_line():
  with pytest.raises(UserError, match=r"base config failed: TypeError.*\.py:"):
    # It takes no arguments.
    study_lib.make_cells(_study(axis("poisons", 1), base=base.get_config))


# A study's file.


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("", "defines no function get_study"),
    ("def get_study(a): return 3", "must return a Study, not a int"),
    ("def get_study(a):\n  return 1 / 0", r"ZeroDivisionError.*s\.py:2"),
    ("def get_study(a:", r"SyntaxError.*s\.py:1"),
    ("import nothing_such", "No module named 'nothing_such'"),
    ("import sys\nsys.exit(0)", r"SystemExit: 0 .*s\.py:2"),
    ("def get_study(a):\n  raise SystemExit('no')", r"SystemExit: no .*py:2"),
    ("# \xe9\ndef get_study(a): pass", "isn't text in UTF-8"),
    ("\n\n\n# \xe9\ndef get_study(a): pass", "isn't text in UTF-8"),
    ("# coding: latin-1\n# \xe9", "defines no function get_study"),
  ],
)
def test_a_broken_file_is_one_line(tmp_path, text, says):
  (tmp_path / "s.py").write_bytes(text.encode("latin-1"))
  with pytest.raises(UserError, match=says) as error:
    study_lib.load(str(tmp_path / "s.py"))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ("name='A study'", "name is 'A study'"),
    ("name='a' * 41", "at most 40"),
    ("margin=0", "margin is 0"),
    ("mfu=1.5", "mfu is 1.5"),
    ("topology='cpu'", "the study's topology=cpu"),
    ("margin=0.5", "margin is 0.5; it must be more than 0 and less than 0.5"),
    ("margin=float('nan')", "margin is nan, .* a finite number"),
    ("margin='0.25'", "margin is '0.25', of type str; .* a finite number"),
    ("margin=True", "margin is True, of type bool"),
    ("mfu='0.3'", "mfu is '0.3', of type str"),
    ("name=None", "name is None, of type NoneType; it must be a text"),
    ("topology=None", "topology is None"),
    ("question=5", "question is 5, of type int; it must be a text"),
    ("fixed=None", "fixed is None, .*; it must be values by name"),
    ("base=None", "base is None, .*; it must be a function"),
    ("grid={'poisons': (0, 64)}", "grid is {.*it must be a grid, as axis"),
    ("grid=({'poisons': 0}, 64)", "a cell of the study's grid is 64"),
    ("grid=({3: 0},)", "a name in a cell of the study's grid is 3"),
    ("grid=({'poisons': np.int64(0)},)", "poisons in a cell .*, of type int64"),
    ("grid=({'poisons': [0, 64]},)", "poisons in a cell .*, of type list"),
    ("fixed={'a': {1, 2}}", "a in the study's fixed is {1, 2}, of type set"),
    ("triage='rule'", "triage is 'rule', of type str; it must be a Triage"),
    ("triage=Triage(None, ())", "triage.rule is None, .* it must be a Rule"),
    ("triage=Triage(RULE, {'poisons': 64})", "triage.spared is {.*a grid"),
    (
      "triage=Triage(dataclasses.replace(RULE, consecutive=2.0), ())",
      "triage.rule.consecutive is 2.0, of type float; .* a whole number",
    ),
  ],
)
def test_a_study_that_states_what_cannot_be_is_refused(tmp_path, change, says):
  (tmp_path / "s.py").write_text(
    "import dataclasses\n"
    "import numpy as np\n"
    "from poison_jax.studies.grid.study import Triage\n"
    "from poison_jax.studies.statistics.sequential import Rule\n"
    "RULE = Rule(0.5, 1.0, 0.9, 0.9, 0.1, 2)\n"
    "from configs.studies import quick\n"
    "def get_study(arguments):\n"
    f"  return dataclasses.replace(quick.get_study(), {change})\n"
  )
  with pytest.raises(UserError, match=says) as error:
    study_lib.load(str(tmp_path / "s.py"))
  assert "\n" not in str(error.value)


def test_no_such_file_is_one_line(tmp_path):
  for name in (tmp_path / "s.py", tmp_path):
    with pytest.raises(UserError, match="it must name a Python file"):
      study_lib.load(str(name))
  with pytest.raises(UserError, match="argument 'twin=true' is not known"):
    study_lib.load(f"{_PAPER}:twin=true")


# The paper's study.

# By hand, from section "pretraining from scratch" of arXiv 2510.07192: (size,
# multiple of 20 tokens a parameter).
_MODELS = (
  ("600m", 0.5), ("600m", 1), ("600m", 2),
  ("2b", 0.5), ("2b", 1), ("2b", 2),
  ("7b", 1), ("13b", 1),
)  # fmt: skip


def _described(cell):
  c = cell.config
  size = next(
    name
    for name, row in dos.SIZES.items()
    if (row.width, row.depth) == (c.model.width, c.model.depth)
  )
  return size, c.train.tokens_per_parameter / 20, c.poison.count, c.seed


def test_the_papers_study_is_24_configurations_of_three_seeds():
  cells = study_lib.make_cells(study_lib.load(_PAPER))
  expected = {
    (*model, poisons, seed)
    for model in _MODELS
    for poisons in (100, 250, 500)
    for seed in range(3)
  }
  assert len(cells) == len(expected) == 72
  assert {_described(cell) for cell in cells} == expected
  assert {cell.config.poison.arm for cell in cells} == {"poisoned"}
  rows = pricing.configurations(cells)
  assert len(rows) == 24 and {len(row) for row in rows.values()} == {3}


def test_twins_add_a_clean_cell_for_each_model_and_seed():
  cells = study_lib.make_cells(study_lib.load(f"{_PAPER}:twins=true"))
  arms = collections.Counter(cell.config.poison.arm for cell in cells)
  assert arms == {"poisoned": 72, "clean": 24}
  clean = [c for c in cells if c.config.poison.arm == "clean"]
  found = {(*_described(c)[:2], c.config.seed) for c in clean}
  assert found == {(*m, s) for m, s in itertools.product(_MODELS, range(3))}


def test_the_price_of_a_study_is_the_sum_of_its_cells_and_of_its_arms():
  cells = study_lib.make_cells(study_lib.load(f"{_PAPER}:twins=true"))
  topology = parse_topology("v5p:4x4x4")
  price = costs.Price(2.0, "2026-01-01", "made up")
  whole = pricing.total(cells, topology, price, mfu=0.4)
  arms = [
    pricing.total(
      [c for c in cells if c.config.poison.arm == arm], topology, price, mfu=0.4
    )
    for arm in ("poisoned", "clean")
  ]
  assert whole.cells == 96
  assert whole.dollars == pytest.approx(sum(arm.dollars for arm in arms))
  # A third of the poisoned ones, which have three doses to one clean cell.
  assert arms[1].flops == pytest.approx(arms[0].flops / 3)
  # 6 FLOPs a parameter and token, beside attention and the embedding.
  rough = sum(
    6.0 * c.parameters * c.steps * c.config.train.batch * c.config.train.length
    for c in cells
  )
  assert 0.8 < whole.flops / rough < 1.3
  # So many chips at 40 % of 459 TFLOP/s, two dollars an hour each.
  hours = whole.flops / (0.4 * 459e12 * 64 * 3600)
  assert whole.hours == pytest.approx(hours, rel=0.02)
  assert whole.dollars == pytest.approx(2.0 * 64 * whole.hours, rel=1e-6)


@pytest.mark.parametrize(
  ("file", "cells"), [("paper", 72), ("tiny", 55), ("quick", 6), ("gpu", 48)]
)
def test_every_study_of_the_repository_can_be_planned(file, cells):
  result = subprocess.run(
    [
      *(sys.executable, "-m", "poison_jax.study", "plan"),
      f"--study=configs/studies/{file}.py",
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0 and result.stderr == "", result.stderr
  assert f"\n{cells} cells, " in result.stdout
  assert "Nothing was run." in result.stdout
