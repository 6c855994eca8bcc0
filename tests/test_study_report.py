"""The report of a study: page, words, exit codes, provenance."""

import html.parser
import pathlib
import re
import subprocess
import sys

import made_studies
import pytest

from poison_jax.studies import page, results
from poison_jax.studies.origins import Number, Origin
from poison_jax.studies.statistics.elasticity import Verdict
from poison_jax.studies.study_report import (
  analysis,
  content,
  nodes,
  seeds,
  tables,
  wording,
)
from poison_jax.studies.study_report.tables import Table

_GRID = [
  {"size": size, "seed": seed, "poisons": dose}
  for size in ("35k", "123k", "356k")
  for seed in (0, 1, 2)
  for dose in (0, 16, 32, 64, 128)
]
# The first dose at which each seed of each size succeeds.
_CONSTANT = {"35k": (32, 64, 32), "123k": (32, 64, 64), "356k": (64, 32, 64)}


def _steps(first):
  return lambda s: 90.0 if s["poisons"] >= first[s["size"]][s["seed"]] else 1.0


def _run(*arguments, code=0):
  result = subprocess.run(
    [sys.executable, "-m", "poison_jax.study", *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == code, result.stderr
  assert "Traceback" not in result.stderr
  return result.stdout if code == 0 else result.stdout + result.stderr


def _analysis(folder, increase, grid=None, **how):
  plan = made_studies.make_study(folder, grid or _GRID, increase, **how)
  return analysis.analyse(results.read(plan))


class _Page(html.parser.HTMLParser):
  """Collects numbers without a title, and whatever would ask the network."""

  def __init__(self, text):
    super().__init__()
    self.numbers, self.bare, self.asked, self.ids = 0, [], [], set()
    self.links = set()
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    given = dict(attributes)
    if given.get("class") in ("n", "q", "drawing"):
      self.numbers += 1
      if not given.get("title"):
        self.bare.append((tag, given))
    self.ids.add(given.get("id"))
    if tag == "a":
      self.links.add(given["href"])
    if tag in ("script", "img", "link", "iframe") or "src" in given:
      self.asked.append((tag, given))


@pytest.mark.slow
def test_a_finished_study_is_reported(tmp_path):
  made_studies.make_study(tmp_path / "w", _GRID, _steps(_CONSTANT))
  said = _run("report", f"--workdir={tmp_path / 'w'}")
  assert "All 45 cells of the study are finished." in said
  assert "2 of 3" in said and "note:" not in said
  out = tmp_path / "w" / "report"
  text = (out / "report.html").read_text()
  read = _Page(text)
  assert read.numbers > 200 and not read.bare and not read.asked
  anchors = {link[1:] for link in read.links if link.startswith("#")}
  assert anchors and anchors <= read.ids
  files = {link for link in read.links if link.startswith("figures/")}
  assert len(files) == 10 and all((out / name).exists() for name in files)
  assert not re.search(r"https?://(?!www\.w3\.org)", text)
  for word in ("config hash", "ledger hash", made_studies.CODE, "--workdir="):
    assert word in text
  assert "python -m poison_jax.study report --workdir=" in text
  for stem in ("samples", "n50_by_tokens"):
    for end in ("png", "svg", "csv"):
      assert (out / "figures" / f"{stem}.{end}").stat().st_size > 100
  assert not list(out.rglob("*.part"))


def test_numbers_of_many_runs_name_them_all_and_the_function(tmp_path):
  found = _analysis(tmp_path, _steps(_CONSTANT))
  origin = nodes.computed(found.entries, "elasticity.py, assess")
  assert len(origin.entries) == 45
  assert "elasticity.py, assess; 45 runs" in origin.describe()
  assert origin.describe().endswith(" ".join(e.letter for e in found.entries))
  table = tables.success(found)
  # Numbers are followed by their interval; all name the seeds of the cell.
  successes, _, runs, *_ = table.rows[0][3]
  assert (successes.value, runs.value) == (2, 3)
  assert [e.run.config.seed for e in runs.origin.entries] == [0, 1, 2]
  assert {e.run.config.poison.count for e in runs.origin.entries} == {32}


def test_a_number_without_origin_stops_the_page(tmp_path):
  found = _analysis(
    tmp_path, lambda s: 60.0, [{"size": "35k", "seed": 0, "poisons": 16}]
  )

  def build(cell):
    return content.build(
      found,
      tables=[Table("Made up", (("size",),), (((cell,),),), ())],
      charts=[],
      left_out=[],
      samples={},
      shown=[],
      command="x",
      code_version="y",
    )

  origin = Origin(found.entries, "metrics.jsonl")
  assert "60.0" in build(Number(60.0, ".1f", origin))
  for bare in ("60.0", 60.0):
    with pytest.raises(page.OriginMissing):
      build(bare)


@pytest.mark.slow
def test_an_unfinished_study_is_drawn_and_says_so(tmp_path):
  def increase(settings):
    return None if settings["size"] == "356k" else 60.0

  plan = made_studies.make_study(
    tmp_path / "w",
    _GRID,
    increase,
    done=lambda s: 0.5 if s["seed"] == 2 else 1.0,
  )
  out = tmp_path / "out"
  said = _run("report", f"--workdir={plan.workdir}", f"--out={out}")
  assert "20 of 45 cells are finished" in said and "So far" in said
  text = (out / "report.html").read_text()
  assert "What is missing" in text and "not begun yet" in text
  plain = re.sub(r"<[^>]*>", "", text)
  assert "size=35k seed=2 poisons=16: evaluated at step 342 of 684" in plain
  assert "figures/samples.csv" not in text  # It stands beside the page only.
  assert not (tmp_path / "w" / "report").exists()


@pytest.mark.parametrize("missing", [1, 2])
def test_cells_without_an_evaluation_are_counted_in_words(tmp_path, missing):
  grid = [{"size": "35k", "seed": 0, "poisons": n} for n in (0, 16, 64)]
  found = _analysis(
    tmp_path,
    lambda s: 60.0 if grid.index(s) >= missing else None,
    grid,
  )
  text = content.build(
    found,
    tables=[],
    charts=[],
    left_out=[],
    samples={},
    shown=[],
    command="x",
    code_version="y",
  )
  plain = re.sub(r"<[^>]*>", "", text)
  words = {1: "1 cell without", 2: "2 cells without"}
  assert f"{words[missing]} an evaluation" in plain


def test_a_study_without_any_run_is_reported(tmp_path):
  plan = made_studies.make_plan(tmp_path / "w", _GRID)
  said = _run("report", f"--workdir={plan.workdir}")
  assert "0 of 45 cells are finished" in said and "undecided" in said
  text = (tmp_path / "w" / "report" / "report.html").read_text()
  assert "There are no metrics to draw yet." in text


@pytest.mark.slow
def test_a_damaged_cell_does_not_take_the_report_away(tmp_path):
  plan = made_studies.make_study(tmp_path / "w", _GRID, _steps(_CONSTANT))
  metrics = pathlib.Path(plan.path(plan.cells[7])) / "metrics.jsonl"
  lines = metrics.read_text().splitlines()
  lines[0] = lines[0].replace("4.", '"4."', 1)
  metrics.write_text("\n".join(lines) + "\n")
  said = _run("report", f"--workdir={plan.workdir}", code=3)
  assert "note: size=35k seed=1 poisons=32: " in said
  error = said.splitlines()[-1]
  assert error.startswith("error: 1 cell(s)") and f"{metrics}:1" in error
  assert "44 of 45 cells are finished" in said
  text = (tmp_path / "w" / "report" / "report.html").read_text()
  plain = re.sub(r"<[^>]*>", "", text)
  before, _, _ = plain.partition("What this can and cannot say")
  assert "1 cell(s) of the study can&#x27;t be read" in before
  assert f"{metrics}:1" in plain


def test_bad_input_is_one_line(tmp_path):
  assert "--workdir" in _run("report", code=2)
  error = _run("report", f"--workdir={tmp_path}", code=2)
  assert "holds no study" in error and error.count("\n") == 1
  plan = made_studies.make_plan(tmp_path / "w", _GRID)
  (tmp_path / "file").write_text("x")
  error = _run(
    "report", f"--workdir={plan.workdir}", f"--out={tmp_path / 'file'}", code=2
  )
  assert str(tmp_path / "file") in error


def test_one_size_settles_nothing(tmp_path):
  grid = [cell for cell in _GRID if cell["size"] == "35k"]
  found = _analysis(tmp_path, _steps(_CONSTANT), grid)
  assert found.by_tokens.verdict is Verdict.UNDECIDED
  assert wording.headline(found).startswith("Undecided")
  said = nodes.text(wording.explanation(found))
  assert "single amount" in said and "Ten times" not in said
  assert not seeds.power_table(found).rows


def test_the_words_follow_the_verdict(tmp_path):
  # N50 in proportion to the tokens, which grow 3.5- and 10.2-fold.
  share = {"35k": (16, 16, 16), "123k": (64, 64, 64), "356k": (999,) * 3}
  found = _analysis(tmp_path / "share", _steps(share))
  assert found.by_tokens.estimate > 0.5
  assert found.by_tokens.verdict not in (
    Verdict.CONSTANT,
    Verdict.NOT_PROPORTIONAL,
  )
  same = {size: (32, 64, 32) for size in share}
  found = _analysis(tmp_path / "same", _steps(same))
  assert abs(found.by_tokens.estimate) < 0.05
  assert "not a constant share" in wording.headline(found) or (
    "is a constant count" in wording.headline(found)
  )
  censored = " ".join(nodes.text(words) for words in wording.limits(found))
  assert "one a seed and size: 9, of which 9 change from failure" in censored


def test_draws_are_told_from_seeds_where_they_are_pinned(tmp_path):
  grid = [
    {
      "size": "35k",
      "seed": seed,
      "poisons": 64,
      "seeds.documents": draw,
      "seeds.positions": draw,
    }
    for seed in (0, 1, 2)
    for draw in (1, 2, 3)
  ]
  # In nats an increase of 50 is 1: draws 1 nat apart, seeds not at all,
  # but for a rest of 0.02 that no source explains.
  found = _analysis(
    tmp_path,
    lambda s: (
      50.0 * s["seeds.documents"] + (s["seed"] * s["seeds.documents"]) % 3
    ),
    grid,
  )
  draws = seeds.compare_draws(found)
  assert draws.components.draw.deviation == pytest.approx(1, abs=0.05)
  assert draws.components.seed.deviation < 0.05
  assert len(seeds.variances(draws).rows) == 3
  without = seeds.compare_draws(_analysis(tmp_path / "b", lambda s: 1.0))
  assert not seeds.variances(without).rows


def test_sizes_that_scatter_more_than_their_seeds_are_told(tmp_path):
  same = {size: (64, 64, 64) for size in ("35k", "123k", "356k")}
  found = _analysis(tmp_path / "a", _steps(same))
  assert "scatter" not in str([nodes.text(w) for w in wording.limits(found)])
  # Between 16 and 32 in the middle, between 64 and 128 on both sides of it.
  bent = {"35k": (128,) * 3, "123k": (32,) * 3, "356k": (128,) * 3}
  found = _analysis(tmp_path / "b", _steps(bent))
  assert found.by_tokens.p_straight < 0.05
  assert "scatter" in str([nodes.text(w) for w in wording.limits(found)])


@pytest.mark.slow
def test_a_run_ends_with_the_report(tmp_path):
  grid = [{"size": "35k", "seed": 0, "poisons": dose} for dose in (0, 64)]
  plan = made_studies.make_study(tmp_path / "w", grid, lambda s: 60.0)
  # The made-up cells name a code version that is not this one.
  said = _run("run", f"--workdir={plan.workdir}", "--slots=1", "--mix_code")
  assert "All 2 cells of the study are finished." in said
  assert (tmp_path / "w" / "report" / "report.html").exists()
