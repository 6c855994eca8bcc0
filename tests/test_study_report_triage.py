"""Cells that the study's rule stopped: censored, and told on the page."""

import concurrent.futures
import csv
import io
import pathlib
import re
import subprocess
import sys

import made_studies
import pytest

from poison_jax.data.folder import Folder
from poison_jax.studies import reporting, results
from poison_jax.studies.grid.study import Triage
from poison_jax.studies.statistics.sequential import Rule
from poison_jax.studies.statistics.thresholds_by_dose import Censored
from poison_jax.studies.study_report import (
  analysis,
  content,
  course_figures,
  figures,
  nodes,
  triage,
  wording,
)

# A made-up run is evaluated at 0, a half and all of its steps, where it has
# none, a half and all of its increase; 50 in perplexity are 1 nat.
_RULE = Rule(
  success_after=0.45,
  success_above=0.4,
  failure_after=0.35,
  failure_poisons=0.25,
  failure_below=0.125,
  consecutive=1,
)
_TRIAGE = Triage(_RULE, ({"poisons": 64}, {"poisons": 16, "seed": 1}))
_WHY = "success decided at step 342 of 684, +0.90 nats"
_DOSES = (0, 16, 32, 64, 128)
_GRID = [
  {"size": "35k", "seed": seed, "poisons": dose}
  for seed in (0, 1)
  for dose in _DOSES
]


def _steps(settings):
  return 90.0 if settings["poisons"] >= 64 else 1.0


def _study(folder, stopped, *, why=_WHY, done=0.5, stated=_TRIAGE, **how):
  """Returns the plan of a study of which the chosen cells were stopped."""
  plan = made_studies.make_study(
    folder,
    _GRID,
    how.pop("increase", _steps),
    done=lambda s: done if stopped(s) else how.get("others", 1.0),
    triage=stated,
  )
  made_studies.triage(plan, why, stopped)
  return plan


def _analyse(plan):
  return analysis.analyse(results.read(plan))


def _of_seed_0(*doses):
  return lambda s: s["seed"] == 0 and s["poisons"] in doses


def _page(found):
  return content.build(
    found,
    tables=[],
    charts=[],
    left_out=[],
    samples={},
    shown=[],
    command="x",
    code_version="y",
  )


def _plain(page):
  return re.sub(r"<[^>]*>", "", page).replace("&#x27;", "'")


def _section(page, title):
  _, _, after = page.partition(f"<h2>{title}</h2>")
  return after.partition("</section>")[0]


@pytest.mark.parametrize("done", [0.5, 1.0])
@pytest.mark.parametrize(
  "stopped, low, high",
  [((64,), 32, 128), ((32,), 16, 64), ((32, 64), 16, 128), ((128,), 32, 64)],
)
def test_a_stopped_run_widens_n50_and_never_moves_it(
  tmp_path, stopped, low, high, done
):
  found = _analyse(_study(tmp_path, _of_seed_0(*stopped), done=done))
  triaged, whole = found.ladders
  assert whole.n50 == Censored(32, 64, True, False)
  assert triaged.n50 == Censored(low, high, True, False)
  assert [o.planned for o in triaged.outcomes] == [
    dose for dose in _DOSES if dose not in stopped
  ]


@pytest.mark.parametrize("done", [0.5, 1.0])
def test_a_stopped_run_enters_no_share_twin_or_figure(tmp_path, done):
  found = _analyse(_study(tmp_path, _of_seed_0(64), done=done))
  (letter,) = (o.entry.letter for o in found.results.triaged)
  share = {group.dose: group.share for group in found.groups}[64]
  assert (share.successes, share.runs) == (1, 1)
  used = [o for group in found.groups for o in group.outcomes]
  used += [o for twins in found.twins for o in (twins.poisoned, twins.clean)]
  assert letter not in {o.entry.letter for o in used}
  charts, _ = figures.all_charts(found)
  assert {chart.name for chart in charts} >= {
    *("n50_by_tokens", "success_by_dose", "increase_by_progress"),
    *("increase_by_poisons", "increase_by_dose", "clean_cost"),
  }
  for chart in charts:
    assert letter not in {entry.letter for entry in chart.entries}, chart.name


def test_a_run_that_goes_on_stays_in_the_curves_over_training(tmp_path):
  plan = made_studies.make_study(
    tmp_path, _GRID, _steps, done=lambda s: 0.5 if s["seed"] else 1.0
  )
  chart = course_figures.increase_by_progress(_analyse(plan))
  rows = csv.DictReader(io.StringIO(chart.csv().decode()))
  seeds = {row["step"]: row["seeds"] for row in rows if row["poisons"] == "64"}
  assert seeds == {"0": "2", "342": "2", "684": "1"}


def test_only_stopped_cells_leave_the_study_finished(tmp_path):
  found = _analyse(_study(tmp_path, _of_seed_0(64, 128)))
  assert wording.is_complete(found.results)
  assert not wording.headline(found).startswith("So far")
  said = [nodes.text(words) for words in wording.limits(found)]
  assert said[0] == (
    "8 of 10 cells are finished, and all others were stopped early."
  )
  assert said[1].startswith(
    "2 cells were stopped early by the rule stated before the study: they "
    "count as censored."
  )
  page = _page(found)
  plain = _plain(page)
  for cell in (o.cell for o in found.results.triaged):
    line = f"{cell.label} ({cell.hash}): stopped early by the study's rule: "
    assert f"{line}{_WHY}" in _plain(_section(page, "Stopping early"))
  assert "What is missing" not in plain and "unfinished" not in plain
  assert "may change" not in plain


def test_stopped_cells_are_told_from_unfinished_and_missing_ones(tmp_path):
  found = _analyse(_study(tmp_path, _of_seed_0(64), others=0.5))
  assert not wording.is_complete(found.results)
  assert wording.headline(found).startswith("So far")
  first, second, *_ = (nodes.text(words) for words in wording.limits(found))
  assert first.startswith("0 of 10 cells are finished; verdict and tables")
  assert "also show 9 unfinished ones" in first
  assert second.startswith("1 cell was stopped early")
  page = _page(found)
  missing = _plain(_section(page, "What is missing"))
  assert missing.count("evaluated at step 342") == 9
  assert "seed=0 poisons=64:" not in missing and _WHY not in missing
  stopping = _plain(_section(page, "Stopping early"))
  assert _WHY in stopping and "can't be counted yet" in stopping


def test_the_page_states_the_rule_with_the_studys_numbers(tmp_path):
  why = "failure decided at step 342 of 684, -0.02 nats"
  found = _analyse(_study(tmp_path, _of_seed_0(32), why=why))
  section = _section(_page(found), "Stopping early")
  plain = _plain(section)
  for words in (
    "in each of its last 1 evaluation(s)",
    "none before 45 % of the training",
    "exceeds 0.4 nats",
    "none before 35 % of the training or before 25 % of the poisoned documents",
    "lies below 0.125 nats",
    "these settings, which the study's curves need: poisons=64; poisons=16 "
    "seed=1.",
    "step 342 of 684, \N{MINUS SIGN}0.02 nats",
  ):
    assert words in plain
  for field in (
    *("success_after", "success_above", "failure_after", "failure_poisons"),
    *("failure_below", "consecutive"),
  ):
    assert f'title="study.json, triage.rule.{field}"' in section
  assert 'title="study.json, triage.spared"' in section
  spares_none = _study(tmp_path / "b", lambda s: False, stated=Triage(_RULE))
  assert "no other cell is spared" in _plain(_page(_analyse(spares_none)))


def test_without_a_rule_nothing_of_it_is_said(tmp_path):
  found = _analyse(_study(tmp_path, lambda s: False, stated=None))
  plain = _plain(_page(found)).lower()
  for words in ("stopping early", "stopped", "the rule stated", "spared"):
    assert words not in plain


def test_the_rules_errors_are_counted_on_runs_that_ended(tmp_path):
  # At the half of the steps, in nats: 0.01 (failure), 0.3 (goes on), 0.45
  # (success, which 45 at the end is not), 0.9 (success).
  increase = {0: 0.0, 16: 1.0, 32: 30.0, 64: 45.0, 128: 90.0}
  plan = _study(
    tmp_path,
    lambda s: s == {"size": "35k", "seed": 1, "poisons": 128},
    increase=lambda s: increase[s["poisons"]],
  )
  table = triage.errors(_analyse(plan))
  (row,) = table.rows
  # Of seed 0 all four, of seed 1 without the one that was stopped; runs
  # without poison are not asked.
  assert [nodes.text(cell) for cell in row] == ["35k", "7", "5", "2", "36"]
  assert row[4][0].value == pytest.approx(100 * 5 * 0.5 / 7)
  assert row[1][0].origin.source.endswith("sequential.py, errors")
  assert len(row[1][0].origin.entries) == 7


def _report(plan, out):
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "poison_jax.study", "report"),
      *(f"--workdir={plan.workdir}", f"--out={out}"),
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _files(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in pathlib.Path(folder).rglob("*")
    if path.is_file()
  }


@pytest.mark.slow
def test_reports_that_are_made_at_once_leave_a_whole_one(tmp_path):
  plan = _study(tmp_path / "w", _of_seed_0(64))
  alone, shared = tmp_path / "alone", tmp_path / "share"
  for outs in ([alone], [shared, shared]):
    processes = [_report(plan, out) for out in outs]
    for process in processes:
      said, _ = process.communicate(timeout=300)
      assert process.returncode == 0, said
  expected, found = _files(alone), _files(shared)
  # The folder's name is the only difference: no partial file, none cut off.
  assert found.keys() == expected.keys() and len(found) > 10
  for name, data in found.items():
    data = data.replace(str(shared).encode(), str(alone).encode())
    assert data == expected[name], name


def test_writers_of_one_report_leave_whole_files_at_every_moment(tmp_path):
  # Of each writer files of one letter, so that a mixed or cut one shows; each
  # page names the figures that it needs.
  names, size, rounds = ("a.png", "b.csv"), 100_000, 60
  pages = {"P" * size, "Q" * size}

  def write(page):
    for _ in range(rounds):
      figures_of = {name: page[:1].encode() * size for name in names}
      reporting.publish(Folder(str(tmp_path)), page, figures=figures_of)

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    writers = [pool.submit(write, page) for page in pages]
    while not all(writer.done() for writer in writers):
      if (tmp_path / "report.html").exists():
        assert (tmp_path / "report.html").read_text() in pages
        for name in names:
          assert (tmp_path / "figures" / name).read_text() in pages
  for writer in writers:
    writer.result()
  assert _files(tmp_path).keys() == {
    "report.html",
    *(f"figures/{name}" for name in names),
  }


def test_a_page_is_written_after_the_figures_that_it_names(
  tmp_path, monkeypatch
):
  written = []
  monkeypatch.setattr(
    Folder, "write", lambda self, name, content: written.append(name)
  )
  reporting.publish(
    Folder(str(tmp_path)), "x", figures={"a.png": b"", "b": b""}
  )
  assert written == ["figures/a.png", "figures/b", "report.html"]
