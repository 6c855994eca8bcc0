"""The page: no number without its origin, no tag out of a run's text."""

import html.parser
import re

import made_runs
import pytest

from poison_jax.studies import content, figures, page, runs, samples, verdict
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
    self.tags, self.bare = [], []

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.tags.append(tag)
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
    if re.search(r"\d", data) and "style" not in inside and not titles:
      self.bare.append(data)


def _parsed(text):
  reader = _Reader()
  reader.feed(text)
  reader.close()
  assert reader.open == []
  return reader


@pytest.mark.parametrize("text", ["48 poisons", "x²", "½", "٣"])
def test_a_digit_without_origin_fails_the_build(text):
  with pytest.raises(page.OriginMissing, match="without origin"):
    page.render(page.element("p", "so many: ", text))


@pytest.mark.parametrize("leaf", [48, 1.5, None, b"48", True])
def test_a_bare_value_fails_the_build(leaf):
  with pytest.raises(page.OriginMissing, match="of type"):
    page.render(page.element("p", leaf))


@pytest.mark.parametrize(
  "make",
  [
    lambda: Number(1.0, ".1f", None),
    lambda: Number(1.0, ".1f", "by hand"),
    lambda: Quoted("48", None),
    lambda: page.Drawing("<svg/>", None),
    lambda: Origin((), " "),
  ],
)
def test_nothing_is_made_without_an_origin(make):
  with pytest.raises((TypeError, ValueError)):
    make()


def test_a_number_names_run_hashes_code_and_command(entries):
  text = page.render(measured(1234.5, ",.1f", entries[0], "metrics, key"))
  run = entries[0].run
  title = re.search('title="([^"]*)"', text)[1]
  for part in (
    "metrics, key",
    run.path,
    run.config_hash,
    run.ledger.hash,
    run.code_version,
    f"python -m poison_jax.train --workdir={run.path}",
  ):
    assert html.escape(part) in title
  assert 'href="#run-A"' in text
  assert 'value="1234.5"' in text and ">1,234.5<" in text


def test_a_constant_names_who_states_it():
  text = page.render(stated(-50, "g", "arXiv 2510.07192"))
  assert 'title="arXiv 2510.07192"' in text and ">−50<" in text


def test_text_and_attributes_are_escaped():
  evil = '</pre><script>alert("x")</script>&'
  shown = page.render(
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
  for number in reader.numbers:
    if "href" not in number:
      assert number["title"].startswith(("poison_jax/", "arXiv"))
      continue
    run = next(e for e in entries if number["href"] == f"#run-{e.letter}").run
    for part in (run.config_hash, run.ledger.hash, run.code_version):
      assert part in number["title"]
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
