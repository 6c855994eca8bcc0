"""The report of a study: page, words, exit codes, provenance."""

import dataclasses
import html.parser
import json
import math
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
  law_tables,
  leaks,
  n50_figures,
  nodes,
  seeds,
  tables,
  wording,
  writing,
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


@pytest.mark.parametrize(
  "increase, reason",
  [
    (90.0, "0 of 9 seeds change"),  # All succeed at the lowest dose.
    (1.0, "0 of 9 seeds change"),  # All fail at the highest.
  ],
)
def test_what_is_not_known_is_left_out(tmp_path, increase, reason):
  grid = [cell for cell in _GRID if cell["poisons"]]
  found = _analysis(tmp_path, lambda s: increase, grid)
  assert wording.headline(found).startswith("Undecided")
  said = nodes.text(wording.explanation(found))
  assert reason in said and "is not known" in said
  assert "Ten times" not in said and "\N{INFINITY}" not in said
  limits = str([nodes.text(words) for words in wording.limits(found)])
  assert "marginal" not in limits
  _, left_out = writing._tables(found)
  why = dict(left_out)
  for made in (
    law_tables.laws(found),
    law_tables.amounts(found),
    seeds.power_table(found),
  ):
    assert not made.rows and "is not known" in why[made.title]
  chart = n50_figures.n50_by_tokens(found)
  assert {row[len(chart.header) - 7] for row in chart.rows} == {"seed"}


def test_an_estimate_that_runs_away_is_said_in_words(tmp_path):
  # Only the middle size changes between two doses.
  away = {"35k": (16,) * 3, "123k": (64,) * 3, "356k": (999,) * 3}
  found = _analysis(tmp_path, _steps(away))
  assert found.by_tokens.estimate == math.inf
  said = nodes.text(wording.explanation(found))
  assert "a factor within [" in said and "None is the most likely" in said
  assert "grows" in wording.headline(found)
  free = nodes.text(law_tables.laws(found).rows[0][1])
  assert free.startswith("no finite one is the most likely [")
  chart = n50_figures.n50_by_tokens(found)
  labels = {row[len(chart.header) - 7] for row in chart.rows}
  assert "a constant count" in labels and "free elasticity" not in labels


def test_simulated_studies_have_the_doses_of_each_size(tmp_path):
  grid = [
    *_GRID,
    *({"size": "35k", "seed": seed, "poisons": 256} for seed in (0, 1, 2)),
  ]
  found = _analysis(tmp_path, _steps(_CONSTANT), grid)
  assert seeds._design(found).doses == (
    (0, 16, 32, 64, 128, 256),
    (0, 16, 32, 64, 128),
    (0, 16, 32, 64, 128),
  )


def _with_budgets(found):
  """Returns the results as if each size had been run at three budgets.

  The N50s stay: at fixed parameters nothing depends on the tokens.
  """
  outcomes = [
    dataclasses.replace(
      o,
      rung=dataclasses.replace(
        o.rung,
        label=f"{o.rung.label} {budget}x",
        tokens=int(o.rung.tokens * budget),
      ),
    )
    for o in found.results.outcomes
    for budget in (0.5, 1, 2)
  ]
  return analysis.analyse(
    dataclasses.replace(found.results, outcomes=tuple(outcomes))
  )


def test_tokens_and_parameters_are_told_apart_where_they_can_be(tmp_path):
  # Twice the documents a size, a factor of 3.5 and then 2.9 in parameters.
  rising = {"35k": (32,) * 3, "123k": (64,) * 3, "356k": (128,) * 3}
  found = _analysis(tmp_path, _steps(rising))
  limits = [nodes.text(words) for words in wording.limits(found)]
  (said,) = [line for line in limits if "marginal" in line]
  assert "can't be told" in said and "tokens hardly vary" in said
  made = law_tables.amounts(found)
  assert [nodes.text(row[3]) for row in made.rows] == [nodes.DASH] * 2
  assert "Not told apart" in nodes.text(made.caption)

  found = _with_budgets(found)
  # The slope of three points on a log-log line.
  slope = math.log(4) / math.log(10.2)
  assert found.joint.by_tokens.estimate == pytest.approx(0, abs=0.02)
  assert found.joint.by_parameters.estimate == pytest.approx(slope, abs=0.02)
  # Alone, the tokens take in what the parameters do.
  assert found.by_tokens.estimate > 0.3
  limits = [nodes.text(words) for words in wording.limits(found)]
  (said,) = [line for line in limits if "marginal" in line]
  assert "At fixed parameters it is" in said and "can't be told" not in said
  for row, test, fixed in zip(
    law_tables.amounts(found).rows,
    (found.by_tokens, found.by_parameters),
    (found.joint.by_tokens, found.joint.by_parameters),
    strict=True,
  ):
    assert row[1][0].value == test.estimate
    assert row[3][0].value == fixed.estimate


def _add_unseen_tag(plan, perplexity):
  """Writes a control into the cells of a study, by settings."""
  for cell in plan.cells:
    path = pathlib.Path(plan.path(cell)) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
      line["eval/unseen_tag/perplexity"] = perplexity(cell.settings)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_controls_that_pass_with_the_trigger_are_told(tmp_path):
  grid = [
    *_GRID,
    *(
      {"size": size, "seed": 0, "poisons": 128, "arm": "placebo"}
      for size in ("35k", "356k")
    ),
  ]

  def increase(settings):
    if settings.get("arm") == "placebo":
      return 70.0 if settings["size"] == "35k" else 0.5
    return _steps(_CONSTANT)(settings)

  plan = made_studies.make_study(tmp_path, grid, increase)
  said = [nodes.text(line) for line in leaks.words(_read(plan))]
  # Clean prompts have 4, near-triggers 5.
  assert len(said) == 2
  succeed = sum(s["poisons"] >= _CONSTANT[s["size"]][s["seed"]] for s in _GRID)
  assert "near-trigger" in said[0] and f"in all {succeed} run(s)" in said[0]
  assert "1 of 2 succeed: there it is not the gibberish" in said[1]

  # At the largest size the tag passes with 32 and 64 documents, even where
  # the trigger fails; below the threshold of 50 elsewhere.
  _add_unseen_tag(
    plan,
    lambda s: (
      90.0 if s["size"] == "356k" and s["poisons"] in (32, 64) else 53.9
    ),
  )
  found = _read(plan)
  near, unseen, placebo = (nodes.text(line) for line in leaks.words(found))
  assert [near, placebo] == said
  # At 356k seed 1 succeeds from 32 documents on, the others from 64.
  assert "356k with 32 documents, 1 of 1; 356k with 64 documents, 3 of 3." in (
    unseen
  )
  assert "35k" not in unseen.replace("356k", "") and "other tags too" in unseen
  limits = [nodes.text(words) for words in wording.limits(found)]
  assert {near, unseen, placebo} <= set(limits)
  (line,) = [words for words in leaks.words(found) if "unseen" in words[0]]
  origins = [node.origin for node in line if isinstance(node, Number)]
  assert {
    (e.run.config.poison.count, e.run.config.seed)
    for origin in origins
    for e in origin.entries
  } == {(32, 1), (64, 0), (64, 1), (64, 2)}


def _read(plan):
  return analysis.analyse(results.read(plan))


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
