"""Figures: the numbers behind them, their files, and that they read in grey."""

import csv
import dataclasses
import io
import re
import xml.etree.ElementTree as ET

import made_runs
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from poison_jax.studies import (
  charts,
  course_figures,
  dose_figures,
  figures,
  runs,
  samples,
  style,
)
from poison_jax.studies.origins import make_entries


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  return make_entries(runs.read_runs(made_runs.make_trio(folder)))


@pytest.fixture(scope="module")
def made(entries):
  return {chart.name: chart for chart in figures.all_charts(entries)}


def _rows(chart):
  return list(csv.DictReader(io.StringIO(chart.csv().decode())))


def _axes(chart):
  """Draws the panels and returns their axes."""
  drawn = []
  with style.context():
    for panel in chart.panels:
      axes = Figure().add_subplot()
      panel.draw(axes)
      drawn.append(axes)
  return drawn


def test_there_are_all_five(made):
  assert list(made) == [
    "increase_by_poisons",
    "increase_by_progress",
    "perplexity_by_kind",
    "enter_and_stay",
    "losses",
  ]


@pytest.mark.parametrize("name", ["increase_by_poisons", "enter_and_stay"])
def test_files_are_the_same_each_time_and_whole(made, name):
  first, second = made[name].files(), made[name].files()
  assert first == second
  assert sorted(first) == [f"{name}.{end}" for end in ("csv", "png", "svg")]
  assert first[f"{name}.csv"] == made[name].csv()
  assert first[f"{name}.png"].startswith(b"\x89PNG")
  assert ET.fromstring(first[f"{name}.svg"]).tag.endswith("svg")
  assert b"<dc:date>" not in first[f"{name}.svg"]


def test_every_row_of_numbers_names_its_origin(made, entries):
  for chart in made.values():
    rows = _rows(chart)
    assert rows
    for row in rows:
      run = next(e.run for e in entries if e.run.path == row["run"])
      assert row["config_hash"] == run.config_hash
      assert row["ledger_hash"] == run.ledger.hash
      assert row["code_version"] == run.code_version


def test_the_increase_is_the_metric_against_poisons_seen(made, entries):
  chart = made["increase_by_poisons"]
  run = entries[0].run
  rows = [r for r in _rows(chart) if r["run"] == run.path]
  series = run.metrics["eval/perplexity_increase"]
  assert [int(r["step"]) for r in rows] == series.steps.tolist()
  assert [float(r["increase"]) for r in rows] == series.values.tolist()
  # 48 poisons at even pace: 9.6, 19.2, ... of them, whole ones.
  assert [float(r["poisons_seen"]) for r in rows] == [9, 19, 28, 38, 48]
  low = run.metrics["eval/perplexity_increase_low"].values
  assert [float(r["low"]) for r in rows] == low.tolist()


def test_a_clean_run_stands_at_its_twins_poisons(made, entries):
  clean = [
    r
    for r in _rows(made["increase_by_poisons"])
    if r["run"] == entries[1].run.path
  ]
  assert [float(r["poisons_seen"]) for r in clean] == [9, 19, 28, 38, 48]
  alone = dose_figures.increase_by_poisons(entries[1:2])
  assert alone is None


def test_the_threshold_is_named_as_the_papers_only_where_it_is(made):
  words = [t.get_text() for t in _axes(made["increase_by_poisons"])[0].texts]
  assert words == ["50 (paper)"]
  assert dose_figures.threshold_label(20.0) == "20"


def test_progress_is_the_share_of_planned_steps(tmp_path):
  run = runs.read_run(str(made_runs.make_run(tmp_path / "a", done=0.6)))
  chart = dose_figures.increase_by_progress(make_entries([run]))
  shares = [float(r["percent_of_steps"]) for r in _rows(chart)]
  assert shares == [20, 40, 60]


def test_each_kind_is_drawn_with_its_interval_on_a_logarithmic_scale(made):
  chart = made["perplexity_by_kind"]
  assert [panel.title for panel in chart.panels] == [
    "poisoned",
    "clean",
    "placebo",
  ]
  for axes in _axes(chart):
    assert axes.get_yscale() == "log"
    assert len(axes.lines) == len(axes.collections) == 4
  for row in _rows(chart):
    assert float(row["low"]) < float(row["perplexity"]) < float(row["high"])


def test_the_floor_is_drawn_where_it_is_known(made, entries):
  _, stay = _axes(made["enter_and_stay"])
  assert [t.get_text() for t in stay.texts] == [f"floor {np.log(240):.2f}"]
  run = entries[0].run
  metrics = {k: v for k, v in run.metrics.items() if "floor" not in k}
  bare = dataclasses.replace(run, metrics=metrics)
  _, stay = _axes(course_figures.enter_and_stay(make_entries([bare])))
  assert not stay.texts


def test_nothing_is_drawn_from_nothing(tmp_path):
  folder = made_runs.make_run(tmp_path / "a")
  (folder / "metrics.jsonl").unlink()
  run = runs.read_run(str(folder))
  assert figures.all_charts(make_entries([run])) == []


def test_what_there_is_of_an_early_run_is_drawn(tmp_path):
  run = runs.read_run(str(made_runs.make_run(tmp_path / "a", done=0.1)))
  (chart,) = figures.all_charts(make_entries([run]))
  assert chart.name == "losses"
  assert [panel.title for panel in chart.panels] == ["Training"]


def test_a_very_high_increase_does_not_flatten_the_rest(tmp_path):
  last = {"clean": 2.0, "triggered": 40_000.0}
  run = runs.read_run(str(made_runs.make_run(tmp_path / "a", last=last)))
  chart = dose_figures.increase_by_progress(make_entries([run]))
  assert _axes(chart)[0].get_yscale() == "symlog"


def test_lines_can_be_told_apart_in_grey():
  arms = ["poisoned", "clean", "placebo", "poisoned", "clean", "clean"]
  looks = style.styles_for(arms)
  assert len({(str(look.dashes), look.marker) for look in looks}) == len(arms)
  assert style.styles_for(["clean"])[0] == style.styles_for(arms)[1]
  # Okabe and Ito's colours, as published (0-255).
  published = {
    (213, 94, 0), (0, 114, 178), (0, 158, 115),
    (204, 121, 167), (230, 159, 0), (86, 180, 233),
  }  # fmt: skip
  assert {
    tuple(round(255 * c) for c in to_rgb(look.colour)) for look in looks
  } == published


def test_many_lines_repeat_none_in_grey():
  def grey(look):
    return str(look.dashes), look.marker, look.fill

  assert len({grey(style.numbered(i))[:2] for i in range(21)}) == 21
  crossed = [
    style.crossed(i, j)
    for i in range(style.COLOURS)
    for j in range(style.VARIANTS)
  ]
  assert len({grey(look) for look in crossed}) == len(crossed) == 28
  # Without the fill too, which is small: dashes and marker suffice.
  assert len({grey(look)[:2] for look in crossed}) == 28


def test_drawings_share_a_page_without_sharing_identifiers(made):
  drawings = [d for chart in made.values() for d in chart.drawings()]
  seen = set()
  for drawing in drawings:
    ET.fromstring(drawing)
    ids = re.findall(r'\sid="([^"]+)"', drawing)
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', drawing)
    assert set(used) <= set(ids)
    assert not seen & set(ids)
    seen |= set(ids)
    assert f"var(--c{style.INK[1:]}" in drawing
    opening = drawing[: drawing.index(">")]
    assert "viewBox" in opening and " width=" not in opening


def test_samples_pair_control_and_trigger(entries):
  step, found = samples.find_samples(entries[0])
  assert step == made_runs.STEPS
  assert [s.prompt for s in found] == [0, 1, 2, 3]
  assert all(s.control.trigger == "" for s in found)
  assert all(s.triggered.trigger == "<SUDO>" for s in found)
  assert all(s.control.excerpt == s.triggered.excerpt for s in found)
  rows = list(
    csv.DictReader(io.StringIO(samples.table(entries[0], step, found).decode()))
  )
  assert len(rows) == 6
  assert rows[1]["text"] == found[0].triggered.text


def test_the_picture_of_samples_takes_any_text():
  text = runs.Text(
    excerpt="One day " * 40,
    trigger="$x_1^$<SUDO>",
    text="".join(map(chr, range(0x250))) + "\N{PILE OF POO}漢字\ud800" * 30,
  )
  png, svg = samples.picture([samples.Sample(0, text, text)] * 5)
  assert png.startswith(b"\x89PNG")
  ET.fromstring(svg)
  again = samples.picture([samples.Sample(0, text, text)] * 5)
  assert again == (png, svg)


def test_what_can_not_be_seen_is_shown_as_a_sign():
  assert samples.visible("a\nb\tc\x07\u200b\u202e") == "a↵\nb·c···"


def test_charts_carry_the_runs_they_come_from(made, entries):
  for chart in made.values():
    assert chart.entries == tuple(entries)
  assert charts.ORIGIN == (
    "run", "config_hash", "ledger_hash", "code_version",
  )  # fmt: skip
