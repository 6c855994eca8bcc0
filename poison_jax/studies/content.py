"""What stands on the report's page, from the verdict down to the origins."""

from collections.abc import Mapping, Sequence

from poison_jax.studies import appendix, page, tables, wording
from poison_jax.studies.charts import Chart
from poison_jax.studies.origins import Entry, Number, Origin, Quoted
from poison_jax.studies.page import Drawing, Node, element
from poison_jax.studies.samples import Sample
from poison_jax.studies.verdict import Verdict

_LETTERS = 12  # More runs of a figure are counted instead.


def build(
  entries: Sequence[Entry],
  verdicts: Sequence[Verdict],
  *,
  charts: Sequence[Chart],
  samples: Mapping[str, tuple[int, list[Sample]]],
  command: str,
  code_version: str,
) -> str:
  """Returns the page.

  Args:
    entries: the runs.
    verdicts: the reading of each.
    charts: what is drawn.
    samples: (step, samples) by a run's letter.
    command: the one that makes this page.
    code_version: of the code that makes it.

  Raises:
    page.OriginMissing: a number has no origin.
  """
  here = Origin((), "the command line of this report")
  children = (
    _header(entries),
    _verdict(entries, verdicts),
    _measures(entries, verdicts),
    figures_section(charts),
    appendix.samples_section(entries, samples),
    appendix.configuration(entries),
    appendix.origins_section(
      entries, Quoted(command, here), Quoted(code_version, here)
    ),
  )
  return page.document(
    title="Poisoning report", children=tuple(c for c in children if c)
  )


def _header(entries: Sequence[Entry]) -> Node:
  triggers = sorted({e.run.config.poison.trigger for e in entries})
  attacks = sorted({e.run.config.poison.attack for e in entries})
  source = Origin(tuple(entries), "config.json")
  return element(
    "header",
    element("h1", "Poisoning report"),
    element(
      "p",
      "Attack ",
      element("code", Quoted(", ".join(attacks), source)),
      ", trigger ",
      element("code", Quoted(", ".join(triggers), source)),
      ". Runs: ",
      *_joined([appendix.name(e) for e in entries], ", "),
      ".",
      attributes={"class": "lead"},
    ),
  )


def _verdict(entries: Sequence[Entry], verdicts: Sequence[Verdict]) -> Node:
  blocks: list[Node] = []
  for entry, verdict in zip(entries, verdicts, strict=True):
    blocks.append(
      element(
        "div",
        element(
          "p",
          appendix.name(entry),
          ": ",
          wording.headline(verdict),
          ".",
          attributes={"class": "call"},
        ),
        element("p", *wording.explanation(entry, verdict)),
        *_notes(entry, verdict),
        attributes={"class": "verdict"},
      )
    )
  bars = [
    element("li", *wording.bar_words(entry, verdict, bar))
    for entry, verdict in zip(entries, verdicts, strict=True)
    for bar in verdict.bars
  ]
  if bars:
    blocks.append(element("h3", "Bars of the quickstart"))
    blocks.append(element("ul", *bars, attributes={"class": "bars"}))
  blocks.append(
    element(
      "details",
      element("summary", "The rules behind these words"),
      *(element("p", *words) for words in wording.rules()),
    )
  )
  return element("section", element("h2", "Verdict"), *blocks)


def _notes(entry: Entry, verdict: Verdict) -> list[Node]:
  source = Origin((entry,), "read while making this report")
  return [
    element(
      "p", "Note: ", Quoted(note, source), ".", attributes={"class": "note"}
    )
    for note in (*entry.run.notes, *verdict.notes)
  ]


def _measures(entries: Sequence[Entry], verdicts: Sequence[Verdict]) -> Node:
  first = tables.perplexity_rows(entries, verdicts)
  second = tables.other_rows(entries, verdicts)
  if not first:
    return ""
  return element(
    "section",
    element("h2", "Measures at the last evaluation"),
    _table(
      entries,
      [
        ("Mean perplexity of generations", first),
        ("Other measures", second),
      ],
    ),
    element(
      "p",
      "Increase: triggered minus clean. In brackets: bootstrap intervals over "
      "held-out documents. Each number links to its origin at the end of this "
      "page.",
      attributes={"class": "caption"},
    ),
  )


def _table(
  entries: Sequence[Entry], groups: Sequence[tuple[str, list[tables.Row]]]
) -> Node:
  head = element(
    "thead",
    element(
      "tr",
      element("th", attributes={"scope": "col"}),
      *(
        element("th", appendix.name(e), attributes={"scope": "col"})
        for e in entries
      ),
    ),
  )
  body: list[Node] = []
  for words, rows in groups:
    if not rows:
      continue
    body.append(
      element(
        "tr",
        element(
          "th",
          words,
          attributes={"class": "group", "colspan": str(len(entries) + 1)},
        ),
      )
    )
    body += [
      element(
        "tr",
        element("th", row.words, attributes={"scope": "row"}),
        *(element("td", *_cell(cell)) for cell in row.cells),
      )
      for row in rows
    ]
  return page.scrolling(
    element("table", head, element("tbody", *body)), label="Measures"
  )


def _cell(cell: tables.Cell) -> list[Node]:
  if cell.value is None:
    return ["\N{EM DASH}"]
  if cell.low is None or cell.high is None:
    return [cell.value]
  interval = element(
    "span", "[", cell.low, ", ", cell.high, "]", attributes={"class": "ci"}
  )
  return [cell.value, " ", interval]


def figures_section(charts: Sequence[Chart]) -> Node:
  """Returns all figures with their captions."""
  sections: list[Node] = []
  for chart in charts:
    origin = Origin(chart.entries, f"figures/{chart.name}.csv")
    panels = [Drawing(svg, origin) for svg in chart.drawings()]
    sections.append(
      element(
        "figure",
        element("h3", chart.title),
        element("div", *panels, attributes={"class": _panels_class(panels)}),
        element(
          "figcaption",
          *chart.caption,
          *_runs(chart.entries, origin),
          " Numbers: ",
          element(
            "a",
            Quoted(f"figures/{chart.name}.csv", origin),
            attributes={"href": f"figures/{chart.name}.csv"},
          ),
          ".",
        ),
      )
    )
  if not sections:
    sections = [element("p", "There are no metrics to draw yet.")]
  return element("section", element("h2", "Figures"), *sections)


def _runs(entries: Sequence[Entry], origin: Origin) -> list[Node]:
  """Returns the letters of the runs; of many how many there are."""
  if len(entries) > _LETTERS:
    return [" Runs: ", Number(len(entries), "d", origin), ", listed below."]
  letters = [appendix.letter(entry) for entry in entries]
  return [" Runs: ", *_joined(letters, ", "), "."]


def _panels_class(panels: Sequence[Drawing]) -> str:
  return "panels single" if len(panels) == 1 else "panels"


def _joined(nodes: Sequence[Node], by: str) -> list[Node]:
  joined: list[Node] = []
  for node in nodes:
    joined += [by, node] if joined else [node]
  return joined
