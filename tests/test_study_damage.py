"""Studies with lost or damaged files, mixed code and pinned training seeds."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import made_studies
import pytest

from poison_jax.studies import outcomes, results
from poison_jax.studies.grid import endings, pricing
from poison_jax.studies.grid.axes import axis, product
from poison_jax.studies.grid.states import Kind
from poison_jax.studies.study_report import analysis, nodes, tables

_OTHER_CODE = "fedcba9876543210+000000000000"


def _grid(*doses):
  return product(axis("size", "35k"), axis("seed", 0), axis("poisons", *doses))


def _made(folder, **how):
  """Returns a finished study of two cells, and the second one's folder."""
  plan = made_studies.make_study(folder, _grid(0, 64), lambda s: 60.0, **how)
  return plan, pathlib.Path(plan.path(plan.cells[1]))


def _last_line(name, change):
  def damage(run):
    path = run / name
    *lines, last = path.read_text().splitlines()
    path.write_text("\n".join([*lines, change(last)]) + "\n")

  return damage


def _with(**fields):
  return lambda line: json.dumps(json.loads(line) | fields)


def _without(*fields):
  return lambda line: json.dumps(
    {k: v for k, v in json.loads(line).items() if k not in fields}
  )


def _cut(run):
  os.truncate(run / "metrics.jsonl", (run / "metrics.jsonl").stat().st_size - 9)


def _folder_instead(run):
  (run / "metrics.jsonl").unlink()
  (run / "metrics.jsonl").mkdir()


_LOST = "no evaluation at step 684, the run's last, though the cell is done"
_INCREASE = "eval/perplexity_increase"


@pytest.mark.parametrize(
  ("damage", "file", "says"),
  [
    (lambda run: (run / "metrics.jsonl").write_bytes(b""), "metrics", _LOST),
    (lambda run: (run / "metrics.jsonl").unlink(), "metrics", _LOST),
    (_cut, "metrics", _LOST),
    (
      lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\x00\n\xfe\n"),
      "metrics.jsonl:1",
      "is damaged",
    ),
    (_folder_instead, "metrics.jsonl", "can't be read: Is a directory"),
    (lambda run: (run / "ledger.parquet").unlink(), "ledger", "is missing"),
    (shutil.rmtree, "config.json", "is missing, though the cell is done"),
    (
      _last_line("metrics.jsonl", _with(step=685)),
      "metrics.jsonl",
      "it tells of step 685, and the run has 684",
    ),
    (_last_line("metrics.jsonl", _with(step=10**30)), "metrics", _LOST),
    *(
      (
        _last_line("metrics.jsonl", _with(**{_INCREASE: float(value)})),
        "metrics.jsonl:3",
        f"{_INCREASE} is {value}; not a finite number",
      )
      for value in ("inf", "nan")
    ),
    (
      _last_line("generations.jsonl", _without("excerpt")),
      "generations.jsonl:24",
      "needs its excerpt, trigger and text",
    ),
    (
      _last_line("generations.jsonl", _with(perplexity=float("nan"))),
      "generations.jsonl:24",
      "its perplexity is nan",
    ),
    (
      _last_line("generations.jsonl", _with(prompt="first")),
      "generations.jsonl:24",
      "its prompt is 'first'",
    ),
  ],
)
def test_a_finished_cell_with_a_damaged_file_is_told(
  tmp_path, damage, file, says
):
  plan, run = _made(tmp_path)
  damage(run)
  found = results.read(plan)
  (missing,) = found.damaged
  assert missing.cell == plan.cells[1]
  assert f"{run}/{file}" in missing.reason
  assert says in missing.reason
  assert "\n" not in missing.reason
  # The other one stands.
  assert [o.cell for o in found.outcomes] == [plan.cells[0]]


def test_a_file_without_permission_takes_its_own_cell_alone(
  tmp_path, monkeypatch
):
  plan, run = _made(tmp_path)
  real = results.runs_lib.read_run

  def read_run(path):
    if path == str(run):  # Root reads whatever its mode.
      raise PermissionError(13, "Permission denied", f"{path}/metrics.jsonl")
    return real(path)

  monkeypatch.setattr(results.runs_lib, "read_run", read_run)
  found = results.read(plan)
  (missing,) = found.damaged
  assert missing.reason == (
    f"{run}/metrics.jsonl can't be read: Permission denied"
  )
  assert len(found.outcomes) == 1


def test_a_cell_that_goes_on_may_lack_its_last_evaluation(tmp_path):
  plan, run = _made(tmp_path, done=lambda s: 0.5)
  _cut(run)
  found = results.read(plan)
  assert not found.damaged and len(found.unfinished) == 2
  (run / "ledger.parquet").unlink()
  (missing,) = results.read(plan).missing
  assert not missing.damaged


@pytest.mark.parametrize(
  ("kind", "damaged"), [(Kind.FAILED, True), (Kind.RUNNING, False)]
)
def test_a_lost_cell_is_damaged_until_it_runs_again(
  tmp_path, monkeypatch, kind, damaged
):
  # Its ending says done; a dispatcher may take it for failed, or retry it.
  plan, run = _made(tmp_path)
  (run / "metrics.jsonl").write_bytes(b"")
  real = results.states.read_state
  monkeypatch.setattr(
    results.states,
    "read_state",
    lambda plan, cell, owners: dataclasses.replace(
      real(plan, cell, owners),
      **({"kind": kind} if cell == plan.cells[1] else {}),
    ),
  )
  (missing,) = results.read(plan).missing
  assert missing.damaged == damaged and missing.cell == plan.cells[1]


@pytest.mark.slow
def test_the_report_is_made_without_a_lost_cell_and_ends_in_an_error(tmp_path):
  plan, run = _made(tmp_path / "w")
  (run / "metrics.jsonl").write_bytes(b"")
  result = subprocess.run(
    [
      *(sys.executable, "-m", "poison_jax.study", "report"),
      f"--workdir={plan.workdir}",
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 3, result.stderr
  assert result.stderr.count("\n") == 1
  assert f"{run}/metrics.jsonl" in result.stderr
  assert "delete it and give run --retry" in result.stderr
  assert "1 of 2 cells are finished" in result.stdout
  assert (tmp_path / "w" / "report" / "report.html").exists()


# Code.


def _trained_by(plan, cell, *versions):
  endings.write(
    plan.workdir,
    cell.hash,
    endings.Ending(endings.DONE, 0, "", versions, 60.0, 1.0, "vm"),
  )


def test_an_origin_names_all_code_that_trained_the_cell(tmp_path):
  plan, _ = _made(tmp_path)
  _trained_by(plan, plan.cells[1], _OTHER_CODE, made_studies.CODE)
  found = analysis.analyse(results.read(plan))
  one, other = (o.entry for o in found.results.outcomes)
  assert f"code {made_studies.CODE};" in one.describe()
  assert f"code {_OTHER_CODE} {made_studies.CODE};" in other.describe()
  said = nodes.text(tables.success(found).caption)
  assert "More than one version of the code trained these cells" in said
  mine, others = (v.partition("+")[0] for v in (made_studies.CODE, _OTHER_CODE))
  assert f"{mine} (2 cell(s)); {others} (1 cell(s))" in said


def test_the_code_that_trained_a_cell_counts_and_not_what_began_it(tmp_path):
  plan, _ = _made(tmp_path)
  for cell in plan.cells:
    _trained_by(plan, cell, _OTHER_CODE)  # Its config.json names another.
  found = analysis.analyse(results.read(plan))
  versions = {o.entry.run.code_version for o in found.results.outcomes}
  assert versions == {_OTHER_CODE}
  assert not tables.mixed_code(found)


def test_another_commit_of_the_same_code_is_no_mix(tmp_path):
  plan, _ = _made(tmp_path)
  _trained_by(plan, plan.cells[1], made_studies.CODE[:17] + "1" * 12)
  assert not tables.mixed_code(analysis.analyse(results.read(plan)))


# Seeds of the training.


def _seeded(folder, seeds, increase=lambda s: 60.0):
  grid = product(_grid(0, 64), seeds)
  plan = made_studies.make_study(folder, grid, increase)
  return plan, results.read(plan)


@pytest.mark.parametrize("name", ["seeds.init", "seeds.order"])
def test_a_pinned_training_seed_is_a_replicate_and_no_rung(tmp_path, name):
  plan, found = _seeded(
    tmp_path,
    axis(name, 1, 2, 3),
    lambda s: 60.0 if s["poisons"] and s[name] > 1 else 1.0,
  )
  rows = pricing.configurations(plan.cells)
  assert [len(cells) for cells in rows.values()] == [3, 3]
  assert [r.label for r in outcomes.rungs(found.outcomes)] == ["35k"]
  studied = analysis.analyse(found)
  short = name.removeprefix("seeds.")
  assert [m.seed for m in studied.ladders] == [
    f"0 {short}={i}" for i in (1, 2, 3)
  ]
  assert [g.share.runs for g in studied.groups] == [3, 3]
  assert studied.groups[1].share.successes == 2
  assert len(studied.twins) == 3
  head = [nodes.text(cell) for cell in tables.needed(studied).head]
  assert head[2:5] == [f"seed 0 {short}={i}" for i in (1, 2, 3)]


def test_seeds_that_all_cells_share_leave_the_runs_seed(tmp_path):
  # As where cells share the order of their rows to train together.
  _, found = _seeded(tmp_path, axis("seeds.order", 7))
  assert [o.seed for o in found.outcomes] == [0, 0]


def test_some_pinned_seeds_among_free_ones_can_be_sorted(tmp_path):
  _, found = _seeded(tmp_path, axis("seeds.init", None, 1))
  assert sorted({o.seed for o in found.outcomes}) == ["0", "0 init=1"]


def test_prompts_of_other_seeds_are_no_further_training(tmp_path):
  _, found = _seeded(tmp_path, axis("seeds.sampling", 1, 2, 3))
  assert [r.label for r in outcomes.rungs(found.outcomes)] == ["35k"]
  studied = analysis.analyse(found)
  assert [g.share.runs for g in studied.groups] == [1, 1]
