"""The page: no number without its origin, no tag out of a run's text."""

import html.parser
import re

import made_runs
import pytest

from poison_jax.data.folder import Folder
from poison_jax.studies import (
  content,
  figures,
  page,
  reporting,
  runs,
  samples,
  verdict,
)
from poison_jax.studies.origins import (
  Number,
  Origin,
  Quoted,
  make_entries,
  measured,
  stated,
)

_ORIGIN = Origin((), "by hand")


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  return make_entries(runs.read_runs(made_runs.make_trio(folder)))


@pytest.fixture(scope="module")
def html_page(entries):
  return _build(entries)


def _build(entries):
  return content.build(
    entries,
    [verdict.judge(e.run) for e in entries],
    charts=figures.all_charts(entries),
    samples={
      e.letter: found
      for e in entries
      if (found := samples.find_samples(e)) is not None
    },
    command="python -m poison_jax.report a b c --out=d",
    code_version="0123456789abcdef",
  )


class _Reader(html.parser.HTMLParser):
  """Collects numbers, identifiers, links and text; checks the nesting."""

  def __init__(self):
    super().__init__()
    self.open, self.numbers, self.ids, self.links = [], [], [], []
    self.tags, self.bare, self.nested, self.boxes = [], [], [], []

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.tags.append(tag)
    if tag == "a" and any(t in ("a", "summary") for t, _ in self.open):
      self.nested.append(attributes)
    if "wide" in attributes.get("class", "").split():
      self.boxes.append(attributes)
    if "n" in attributes.get("class", "").split():
      self.numbers.append(attributes)
    if "id" in attributes:
      self.ids.append(attributes["id"])
    if attributes.get("href", "").startswith("#"):
      self.links.append(attributes["href"][1:])
    if tag not in ("meta", "br", "hr"):
      self.open.append((tag, attributes.get("title")))

  def handle_endtag(self, tag):
    assert self.open.pop()[0] == tag

  def handle_startendtag(self, tag, attributes):
    self.handle_starttag(tag, attributes)
    self.handle_endtag(tag)

  def handle_data(self, data):
    inside = [tag for tag, _ in self.open]
    titles = [title for _, title in self.open if title]
    titles += ["an origin" for tag in inside if tag == "ol"]
    if re.search(r"\d", data) and "style" not in inside and not titles:
      self.bare.append(data)


def _render(node):
  return page.render(node, page.Origins())


def _entries(text):
  """Returns the HTML of each origin's entry, by its identifier."""
  return dict(re.findall(r'<li id="(origin-\d+)">(.*?)</li>', text))


def _parsed(text):
  reader = _Reader()
  reader.feed(text)
  reader.close()
  assert reader.open == []
  return reader


@pytest.mark.parametrize("text", ["48 poisons", "x²", "½", "٣"])
def test_a_digit_without_origin_fails_the_build(text):
  with pytest.raises(page.OriginMissing, match="without origin"):
    _render(page.element("p", "so many: ", text))


@pytest.mark.parametrize("leaf", [48, 1.5, None, b"48", True])
def test_a_bare_value_fails_the_build(leaf):
  with pytest.raises(page.OriginMissing, match="of type"):
    _render(page.element("p", leaf))


@pytest.mark.parametrize(
  "make",
  [
    lambda: Number(1.0, ".1f", None),
    lambda: Number(1.0, ".1f", "by hand"),
    lambda: Quoted("48", None),
    lambda: page.Drawing("<svg/>", None),
    lambda: page.Reference(None),
    lambda: Origin((), " "),
  ],
)
def test_nothing_is_made_without_an_origin(make):
  with pytest.raises((TypeError, ValueError)):
    make()


def test_a_number_links_to_its_source_and_all_its_runs(entries):
  origins = page.Origins()
  of_one = measured(1234.5, ",.1f", entries[0], "metrics, key")
  of_all = Number(2.0, "g", Origin(tuple(entries), "metrics, <key>"))
  one, all_, again = (page.render(n, origins) for n in (of_one, of_all, of_one))
  assert one == again and one.startswith('<a class="n" href="#origin-1"')
  assert 'value="1234.5"' in one and ">1,234.5<" in one
  assert 'href="#origin-2"' in all_
  found = _entries(origins.section())
  assert list(found) == ["origin-1", "origin-2"]
  assert found["origin-1"] == 'metrics, key; run <a href="#run-A">A</a>'
  assert found["origin-2"].startswith("metrics, &lt;key&gt;; runs ")
  assert re.findall('href="#run-(.)"', found["origin-2"]) == ["A", "B", "C"]


def test_a_run_to_which_origins_lead_names_hashes_code_and_command(
  html_page, entries
):
  for entry in entries:
    start = html_page.index(f'id="run-{entry.letter}"')
    shown = html_page[start : html_page.index("</div>", start)]
    run = entry.run
    for part in (
      run.path,
      run.config_hash,
      run.ledger.hash,
      run.code_version,
      f"python -m poison_jax.train --workdir={run.path}",
    ):
      assert html.escape(part) in shown


def test_a_constant_names_who_states_it():
  origins = page.Origins()
  text = page.render(stated(-50, "g", "arXiv 2510.07192"), origins)
  assert 'title="arXiv 2510.07192"' in text and ">−50<" in text
  assert _entries(origins.section()) == {"origin-1": "arXiv 2510.07192"}


def test_what_is_a_link_already_or_folds_holds_no_link():
  for tag in ("a", "summary", "pre"):
    text = _render(page.element(tag, page.element("b", Quoted("48", _ORIGIN))))
    assert "href" not in text and 'title="by hand"' in text


def test_a_table_scrolls_by_keyboard_and_has_a_name(html_page):
  boxes = _parsed(html_page).boxes
  assert len(boxes) == 2
  for box in boxes:
    assert box["tabindex"] == "0" and box["role"] == "region"
    assert box["aria-label"]


def test_text_and_attributes_are_escaped():
  evil = '</pre><script>alert("x")</script>&'
  shown = _render(
    page.element("a", evil, Quoted(evil, _ORIGIN), attributes={"href": evil})
  )
  assert "<script>" not in shown and shown.count("&lt;script&gt;") == 3
  with pytest.raises(ValueError, match="onclick"):
    page.element("p", attributes={"onclick": "x"})


def test_the_page_is_well_formed_and_its_links_lead_somewhere(html_page):
  reader = _parsed(html_page)
  assert len(reader.ids) == len(set(reader.ids))
  assert set(reader.links) <= set(reader.ids)
  assert {"run-A", "run-B", "run-C"} <= set(reader.ids)


def test_every_number_on_the_page_has_its_origin(html_page, entries):
  reader = _parsed(html_page)
  assert len(reader.numbers) > 100
  listed = _entries(html_page)
  letters = {e.letter for e in entries}
  for number in reader.numbers:
    if "href" not in number:  # What unfolds samples; they link to theirs.
      assert number["title"].startswith("generations.jsonl")
      continue
    entry = listed[number["href"].removeprefix("#")]
    runs_of = re.findall('href="#run-([A-Z]+)"', entry)
    assert set(runs_of) <= letters
    if not runs_of:
      assert entry.startswith(("poison_jax/", "arXiv"))
  assert reader.nested == []
  # And no digit is shown outside of an element that names its origin.
  assert reader.bare == []


def test_the_page_asks_the_network_for_nothing(html_page):
  without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html_page)
  for pattern in (
    r"https?://",
    r"\ssrc=",
    r"url\((?!#)",
    "@import",
    "<link",
    "<script",
    "<iframe",
    "<object",
  ):
    assert not re.search(pattern, without_names), pattern


def test_generations_can_not_write_html(html_page):
  assert "<b>baker" not in html_page
  assert "&lt;b&gt;baker&lt;/b&gt; &amp; his dog" in html_page
  assert "\x07" not in html_page


def test_the_page_is_the_same_each_time(html_page, entries):
  assert _build(entries) == html_page


def test_a_run_that_just_began_has_a_page(tmp_path):
  folder = made_runs.make_run(tmp_path / "a")
  for name in ("metrics.jsonl", "generations.jsonl", "ledger.parquet"):
    (folder / name).unlink()
  text = _build(make_entries(runs.read_runs([str(folder)])))
  assert _parsed(text).bare == []
  assert "not evaluated yet" in text
  assert "There are no metrics to draw yet." in text
  assert "not written yet" in text


def test_configurations_are_compared_field_by_field(tmp_path):
  folders = [
    made_runs.make_run(tmp_path / "a"),
    made_runs.make_run(tmp_path / "b", poisons=7, seed=3),
  ]
  text = _build(make_entries(runs.read_runs(list(map(str, folders)))))
  table = text[text.index("configurations differ") :]
  table = table[: table.index("<details")]
  fields = re.findall(r"<code>([a-z_.]+)</code>", table)
  assert fields == ["seed", "poison.count"]


def test_figures_that_a_page_has_no_more_are_deleted(tmp_path):
  out = Folder(str(tmp_path))
  stems = ("dose", "cost", "samples")
  ends = ("png", "svg", "csv")

  def publish(*stems):
    links = (f'<a href="figures/{s}.csv">{s}</a>' for s in stems)
    files = {f"{stem}.{end}": b"x" for stem in stems for end in ends}
    reporting.publish(out, " ".join(links), figures=files)

  publish(*stems)
  (tmp_path / "figures" / "notes.csv").write_text("a reader's own")
  (tmp_path / "figures" / "cost.pdf").write_text("a reader's own")
  publish("dose")
  left = {path.name for path in (tmp_path / "figures").iterdir()}
  assert left == {f"dose.{end}" for end in ends} | {"notes.csv", "cost.pdf"}
