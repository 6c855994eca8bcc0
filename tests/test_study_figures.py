"""A study's figures: the numbers behind them, computed by hand."""

import csv
import dataclasses
import io
import itertools
import math

import made_studies
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from configs import dos
from poison_jax.studies import results, style
from poison_jax.studies.charts import ORIGIN
from poison_jax.studies.study_report import (
  analysis,
  axes_figures,
  cost_figures,
  course_figures,
  drawing,
  figures,
  final_figures,
  n50_figures,
  response_figures,
  threshold_figures,
)

DOSES = (0, 64, 250)


def _grid(sizes=("35k", "123k"), doses=DOSES, seeds=(0, 1)):
  return [
    {"size": size, "seed": seed, "poisons": dose}
    for size in sizes
    for seed in seeds
    for dose in doses
  ]


def _increase(settings):
  """At 64 documents only the larger size succeeds; seed 1 adds one."""
  at = {0: 0.0, 64: 20.0 if settings["size"] == "35k" else 80.0, 250: 100.0}
  return at[settings["poisons"]] + settings["seed"]


def _analyse(folder, grid=None, increase=_increase, **how):
  plan = made_studies.make_study(folder, grid or _grid(), increase, **how)
  return analysis.analyse(results.read(plan))


def _rows(chart):
  return list(csv.DictReader(io.StringIO(chart.csv().decode())))


def _where(rows, **values):
  return [
    row for row in rows if all(row[k] == str(v) for k, v in values.items())
  ]


def test_progress_has_a_panel_a_dose_and_a_band_over_seeds(tmp_path):
  chart = course_figures.increase_by_progress(_analyse(tmp_path))
  titles = [panel.title for panel in chart.panels]
  # Of no size that the paper draws: this is not its figure.
  assert titles == ["64 documents", "250 documents"]
  rows = _where(_rows(chart), size="35k", poisons=64)
  # Half way the increases are 10 and 10.5, at the end 20 and 21.
  assert [float(r["percent_of_steps"]) for r in rows[::2]] == [0, 50, 100]
  assert [float(r["increase"]) for r in rows[2:]] == [10, 10.5, 20, 21]
  assert [float(r["mean"]) for r in rows[2::2]] == [10.25, 20.5]
  assert [float(r["lowest"]) for r in rows[2::2]] == [10, 20]
  assert [float(r["highest"]) for r in rows[2::2]] == [10.5, 21]
  assert {r["seeds"] for r in rows} == {"2"}
  assert "95" not in str([str(part) for part in chart.caption])


def test_unfinished_runs_are_drawn_as_far_as_they_got(tmp_path):
  chart = course_figures.increase_by_progress(
    _analyse(tmp_path, done=lambda s: 1.0 - 0.5 * s["seed"])
  )
  rows = _where(_rows(chart), size="35k", poisons=64)
  assert [(r["seed"], r["step"], r["seeds"]) for r in rows] == [
    ("0", "0", "2"),
    ("1", "0", "2"),
    ("0", "342", "2"),
    ("1", "342", "2"),
    ("0", "684", "1"),
  ]


def test_documents_seen_come_from_the_ledger(tmp_path):
  chart = course_figures.increase_by_poisons(_analyse(tmp_path))
  assert [panel.title for panel in chart.panels] == ["35k", "123k"]
  rows = _where(_rows(chart), size="35k", poisons=64, seed=0)
  # Two documents lie at step 0, 21, 42, ... of 684: half of them by 342.
  assert [int(float(r["documents_seen"])) for r in rows] == [0, 32, 64]


def test_twins_are_pairs_of_one_seed(tmp_path):
  found = _analyse(tmp_path)
  rows = _rows(cost_figures.clean_cost(found))
  assert len(rows) == 2 * 2 * 2
  # Losses differ by seed and dose; within a seed by the dose alone.
  for row in rows:
    difference = int(row["poisons"]) / 1000
    assert float(row["loss_difference"]) == pytest.approx(difference)
    assert float(row["perplexity_difference"]) == pytest.approx(0)
    assert len(row["run"].split()) == len(row["config_hash"].split()) == 2


def test_a_run_without_its_twin_is_no_pair(tmp_path):
  grid = [c for c in _grid() if (c["seed"], c["poisons"]) != (1, 0)]
  rows = _rows(cost_figures.clean_cost(_analyse(tmp_path, grid)))
  assert {row["seed"] for row in rows} == {"0"}
  arms = [{**c, "arm": "clean"} if not c["poisons"] else c for c in _grid()]
  arms = [{**c, "poisons": c["poisons"] or 64} for c in arms]
  found = _analyse(
    tmp_path / "arms", arms, lambda s: 0.0 if "arm" in s else _increase(s)
  )
  assert len(found.twins) == 8


def test_needed_documents_lie_between_two_doses(tmp_path):
  # With a dose that fails at both sizes, both have N50s between two doses.
  doses = {0: 0, 16: 0, 64: 64, 250: 250}
  chart = n50_figures.n50_by_tokens(
    _analyse(
      tmp_path,
      _grid(doses=tuple(doses)),
      lambda s: _increase({**s, "poisons": doses[s["poisons"]]}),
    )
  )
  rows = _where(_rows(chart), series="seed")
  assert [(r["size"], float(r["n50_low"]), float(r["n50_high"])) for r in rows]
  assert {(r["size"], r["n50_low"], r["n50_high"]) for r in rows} == {
    ("35k", "64.0", "250.0"),
    ("123k", "16.0", "64.0"),
  }
  assert {len(r["config_hash"].split()) for r in rows} == {4}
  laws = {r["series"] for r in _rows(chart)} - {"seed"}
  assert laws == {
    "a constant count",
    "a constant share",
    "log log of the tokens",
    "free elasticity",
  }
  share = _where(_rows(chart), series="a constant share")
  ratios = {float(r["n50"]) / float(r["tokens"]) for r in share}
  assert max(ratios) == pytest.approx(min(ratios))


def test_shares_have_clopper_pearson_intervals(tmp_path):
  rows = _rows(response_figures.success_by_dose(_analyse(tmp_path)))
  (none,) = _where(rows, series="seeds", size="35k", poisons=64)
  (all_,) = _where(rows, series="seeds", size="35k", poisons=250)
  assert (none["successes"], none["seeds"]) == ("0", "2")
  # Of none or all of n the bound solves p^n = 0.025.
  bound = math.sqrt(0.025)
  assert float(none["high"]) == pytest.approx(1 - bound)
  assert float(all_["low"]) == pytest.approx(bound)
  assert len(_where(rows, series="curve", size="35k")) > 10


def test_the_audit_counts_runs_and_prompts_above_each_cut(tmp_path):
  found = _analyse(tmp_path)
  runs = _rows(threshold_figures.threshold_audit(found))
  prompts = _rows(threshold_figures.threshold_audit_prompts(found))
  one = {"size": "123k", "poisons": 64, "seed": 1}  # An increase of 81.
  for rows, increases in (
    (runs, [81.0]),
    (prompts, [81 * part for part in made_studies.PROMPTS]),
  ):
    rows = _where(rows, **one)
    assert len(rows) == 41 and _where(rows, threshold=50.0)
    for row in rows:
      above = sum(i > float(row["threshold"]) for i in increases)
      assert float(row["share"]) == above / len(increases)


def test_runs_above_a_threshold_are_drawn_as_steps(tmp_path):
  chart = threshold_figures.threshold_audit(_analyse(tmp_path))
  axes = _drawn(chart, panel=[p.title for p in chart.panels].index("123k"))
  steps = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
  # Doses 0, 64, 250; the seeds of 64 end at 80 and 81.
  assert len(steps) == 3
  x, y = steps[1].get_data()
  assert list(x) == pytest.approx([5, 80, 81, 500])
  assert list(y) == [1, 0.5, 0, 0]


def test_the_dose_has_four_axes(tmp_path):
  found = _analyse(tmp_path)
  # No store is at hand here, so epochs have no panel.
  chart = axes_figures.increase_by_axes(found)
  titles = ["documents", "tokens", "optimizer steps"]
  assert [panel.title for panel in chart.panels] == titles
  found = dataclasses.replace(
    found,
    finished=tuple(
      dataclasses.replace(o, dose=dataclasses.replace(o.dose, epochs=0.25))
      for o in found.finished
    ),
  )
  chart = axes_figures.increase_by_axes(found)
  assert [panel.title for panel in chart.panels] == [*titles, "epochs"]
  (row,) = _where(_rows(chart), size="123k", poisons=64, seed=1)
  # Poisons lie two a step, and are 100, 101, ... tokens long.
  tokens = sum(range(100, 164))
  wanted = {"documents": 64, "poison_tokens": tokens, "poisoned_steps": 32}
  assert {name: int(row[name]) for name in wanted} == wanted
  assert (float(row["epochs"]), float(row["increase"])) == (0.25, 81)
  assert {r["poisons"] for r in _rows(chart)} == {"64", "250"}
  for i, value in enumerate((64, tokens, 32, 0.25)):
    marks = [
      point
      for line in _drawn(chart, i).lines
      for point in zip(*line.get_data(), strict=True)
    ]
    assert (value, 81) in marks
  one_dose = [c for c in _grid() if c["poisons"] < 250]
  assert axes_figures.increase_by_axes(_analyse(tmp_path / "b", one_dose)) is (
    None
  )


def test_every_row_of_every_table_is_told_from_the_others(tmp_path):
  draws = [
    {"size": "35k", "seed": seed, "poisons": 250, **pinned}
    for seed in (0, 1)
    for draw in (1, 2)
    for pinned in [{"seeds.documents": draw, "seeds.positions": draw}]
  ]
  placebo = {"size": "35k", "seed": 0, "poisons": 250, "arm": "placebo"}
  found = _analyse(tmp_path, [*_grid(), *draws, placebo])
  charts, _ = figures.all_charts(found)
  assert len(charts) == 10
  measured = (
    *("increase", "nats", "share", "low", "high", "n50", "n50_low"),
    *("n50_high", "loss_difference", "perplexity_difference"),
  )
  for chart in charts:
    keys = [
      tuple(
        value
        for name, value in row.items()
        if name not in measured and name not in ORIGIN
      )
      for row in _rows(chart)
    ]
    assert len(keys) == len(set(keys)), chart.name
  costs = _rows(cost_figures.clean_cost(found))
  drawn = _where(costs, size="35k", poisons=250, seed=0)
  assert [r["documents_seed"] for r in drawn] == ["", "1", "2"]
  assert [r["positions_seed"] for r in drawn] == ["", "1", "2"]


def test_controls_are_measured_against_the_same_runs_clean_text(tmp_path):
  grid = [*_grid(), {"size": "35k", "seed": 0, "poisons": 64, "arm": "placebo"}]
  rows = _rows(final_figures.controls(_analyse(tmp_path, grid)))
  near = _where(rows, prompt="near-trigger")
  assert {float(r["nats"]) for r in near} == {0.25}
  (placebo,) = _where(rows, arm="placebo")
  assert float(placebo["nats"]) == pytest.approx(20 / 50)
  (triggered,) = _where(
    rows, prompt="trigger", size="123k", poisons=64, seed=1, arm="poisoned"
  )
  assert float(triggered["nats"]) == pytest.approx(81 / 50)


def test_tokens_are_an_axis_where_one_size_has_several(tmp_path):
  assert final_figures.increase_by_tokens(_analyse(tmp_path / "a")) is None
  budgets = "train.tokens_per_parameter"
  grid = [
    {"size": "35k", "poisons": dose, "seed": 0, budgets: ratio}
    for ratio in (10.0, 20.0)
    for dose in (64, 250)
  ]
  found = _analyse(tmp_path / "b", grid)
  chart = final_figures.increase_by_tokens(found)
  assert [panel.title for panel in chart.panels] == ["35k"]
  assert {int(r["tokens"]) for r in _rows(chart)} == {
    342 * 1024,  # 10 x 34,976 tokens in whole steps of 1,024.
    684 * 1024,
  }


_MODELS = (
  *(("600m", tokens) for tokens in ("0.5x", "1x")),
  *(("2b", tokens) for tokens in ("0.5x", "1x")),
  *(("7b", "1x"), ("13b", "1x")),
)


def _papers(folder, models=_MODELS, variants=({},)):
  """Returns the analysis of one seed of the paper's study, made up."""
  plan = made_studies.make_plan(
    folder,
    [
      {"size": size, "tokens": tokens, "poisons": dose, "seed": 0, **more}
      for size, tokens in models
      for dose in (100, 250, 500)
      for more in variants
    ],
    base=dos.get_config,
  )
  for cell in plan.cells:
    increase = cell.config.poison.count - 60.0
    made_studies.write_cell(plan, cell, increase)
  return analysis.analyse(results.read(plan))


def _drawn(chart, panel=0):
  """Returns the axes of a panel, laid out as in its file."""
  with style.context():
    figure = style.new_figure(width=4.8, height=3.2)
    axes = figure.add_subplot()
    chart.panels[panel].draw(axes)
    FigureCanvasAgg(figure).draw()
  return axes


def test_a_papers_figure_that_two_panels_could_be_is_named_on_neither(tmp_path):
  variants = ({"poison.trigger": "<SUDO>"}, {"poison.trigger": "<ADMIN>"})
  found = _papers(tmp_path, [("600m", "1x")], variants)
  for make in (
    course_figures.increase_by_progress,
    course_figures.increase_by_poisons,
  ):
    assert "paper" not in " ".join(p.title for p in make(found).panels)


def test_rungs_look_different_in_colour_and_in_grey(tmp_path):
  found = _papers(tmp_path)
  looks = drawing.rung_looks(found.rungs)
  assert len({(str(s.dashes), s.marker) for s in looks.values()}) == 6
  by_name = {rung.label: look for rung, look in looks.items()}
  half, whole = by_name["600m 0.5x"], by_name["600m 1x"]
  assert (half.colour, half.marker) == (whole.colour, whole.marker)
  assert half.dashes != whole.dashes
  assert whole.dashes == by_name["13b 1x"].dashes == "-"
  assert len({by_name[f"{s} 1x"].colour for s in drawing.BY_POISONS}) == 4


def test_the_names_of_the_papers_rungs_do_not_overlap(tmp_path):
  models = [(s, t) for s in ("600m", "2b") for t in ("0.5x", "1x", "2x")]
  found = _papers(tmp_path, [*models, ("7b", "1x"), ("13b", "1x")])
  axes = _drawn(n50_figures.n50_by_tokens(found))
  labels = [label for label in axes.get_xticklabels() if label.get_text()]
  assert len(labels) == 8
  height = labels[0].get_fontsize() * axes.figure.dpi / 72
  at = [axes.transData.transform((t, 1))[0] for t in sorted(axes.get_xticks())]
  # Slanted lines of letters lie this far apart, across them.
  apart = [
    (right - left) * math.sin(math.radians(labels[0].get_rotation()))
    for left, right in itertools.pairwise(at)
  ]
  assert min(apart) > height


def test_close_amounts_of_tokens_share_a_place(tmp_path):
  # 20 tokens a parameter of 35k, and 5.7 of 123k.
  budgets = "train.tokens_per_parameter"
  grid = [
    {"size": size, "poisons": dose, "seed": 0, budgets: ratio}
    for size, ratio in (("35k", 20.0), ("123k", 5.7))
    for dose in (64, 250)
  ]
  found = _analyse(tmp_path, grid)
  axes = _drawn(n50_figures.n50_by_tokens(found))
  (label,) = axes.get_xticklabels()
  assert all(rung.label in label.get_text() for rung in found.rungs)


def test_the_papers_study_has_the_papers_figures(tmp_path):
  found = _papers(tmp_path)

  def titles(chart):
    return [panel.title for panel in chart.panels]

  # The paper's are of models trained on 20 tokens a parameter.
  assert titles(course_figures.increase_by_progress(found)) == [
    "100 documents, 0.5x",
    "100 documents, 1x",
    "250 documents, 0.5x",
    "250 documents, 1x (paper: 2a)",
    "500 documents, 0.5x",
    "500 documents, 1x (paper: 2b)",
  ]
  assert titles(course_figures.increase_by_poisons(found)) == [
    "600m 0.5x",
    "600m 1x (paper: 4a)",
    "2b 0.5x",
    "2b 1x (paper: 4b)",
    "7b 1x and 13b 1x (paper: 4c)",
  ]
  chart = final_figures.increase_by_tokens(found)
  assert titles(chart) == ["600m", "2b"]
  rows = [
    row
    for row in _where(_rows(chart), poisons=250)
    if row["size"].startswith("600m")
  ]
  half, whole = (int(row["tokens"]) for row in rows)
  assert half / whole == pytest.approx(0.5, rel=1e-3)
  assert chart.files()


def test_placebos_and_further_draws_are_no_seeds(tmp_path):
  draw = {"seeds.documents": 5, "seeds.positions": 5}
  grid = [
    *_grid(),
    {"size": "35k", "seed": 0, "poisons": 250, "arm": "placebo"},
    {"size": "35k", "seed": 0, "poisons": 250, **draw},
  ]
  found = _analyse(tmp_path, grid)
  (group,) = [
    g for g in found.groups if g.dose == 250 and g.rung.label == "35k"
  ]
  assert group.share.runs == 2
  assert len(found.ladders) == 4


def test_figures_without_data_are_named(tmp_path):
  found = _analyse(tmp_path, increase=lambda s: None)
  charts, left_out = figures.all_charts(found)
  assert charts == [] and len(left_out) == len(figures.CHARTS)


def test_each_figure_is_drawn_in_three_formats(tmp_path):
  charts, _ = figures.all_charts(_analyse(tmp_path))
  for chart in charts:
    files = chart.files()
    assert files[f"{chart.name}.png"].startswith(b"\x89PNG")
    assert b"</svg>" in files[f"{chart.name}.svg"]
    for row in _rows(chart):
      assert row["run"] and row["config_hash"] and row["ledger_hash"]
      assert row["code_version"] == made_studies.CODE
