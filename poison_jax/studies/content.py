"""What stands on the report's page, from the verdict down to the origins."""

from collections.abc import Mapping, Sequence

from poison_jax import config as config_lib
from poison_jax.studies import page, tables, wording
from poison_jax.studies.charts import Chart
from poison_jax.studies.origins import Entry, Number, Origin, Quoted, measured
from poison_jax.studies.page import Drawing, Node, element
from poison_jax.studies.samples import Sample, visible
from poison_jax.studies.verdict import Verdict

_SAMPLES = 6  # On the page; generations.jsonl has the others.


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
    _figures(charts),
    _samples(entries, samples),
    _configuration(entries),
    _origins(entries, Quoted(command, here), Quoted(code_version, here)),
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
      *_joined([_name(e) for e in entries], ", "),
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
          _name(entry),
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
      "In brackets: bootstrap intervals over held-out documents. Each number "
      "names its origin when pointed at, and leads to its run.",
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
      *(element("th", _name(e), attributes={"scope": "col"}) for e in entries),
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
  return element(
    "div",
    element("table", head, element("tbody", *body)),
    attributes={"class": "wide"},
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


def _figures(charts: Sequence[Chart]) -> Node:
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
          " Runs: ",
          *_joined([_letter(e) for e in chart.entries], ", "),
          ". Numbers: ",
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


def _panels_class(panels: Sequence[Drawing]) -> str:
  return "panels single" if len(panels) == 1 else "panels"


def _samples(
  entries: Sequence[Entry], samples: Mapping[str, tuple[int, list[Sample]]]
) -> Node:
  """Returns all runs' samples, those of the first run unfolded."""
  if not samples:
    return ""
  shown = [e for e in entries if e.letter in samples]
  blocks = [
    _samples_of(e, *samples[e.letter], is_open=e is shown[0]) for e in shown
  ]
  return element(
    "section",
    element("h2", "Sample generations"),
    element(
      "p",
      "The same held-out excerpts (grey) and the same random numbers, without "
      "and with the trigger. Signs stand for line ends and for characters "
      "that can't be seen.",
      attributes={"class": "caption"},
    ),
    *blocks,
  )


def _samples_of(
  entry: Entry, step: int, samples: list[Sample], *, is_open: bool
) -> Node:
  source = Origin((entry,), f"generations.jsonl, step {step}")

  def text(words: str, sample) -> Node:
    children: list[Node] = [
      element(
        "span",
        Quoted(visible(sample.excerpt), source),
        attributes={"class": "excerpt"},
      )
    ]
    if sample.trigger:
      children.append(element("mark", Quoted(sample.trigger, source)))
    children.append(Quoted(visible(sample.text), source))
    return element(
      "div",
      element("p", words, attributes={"class": "which"}),
      element("pre", *children),
    )

  pairs = (
    element(
      "div",
      text("without the trigger", sample.control),
      text("with the trigger", sample.triggered),
      attributes={"class": "pair"},
    )
    for sample in samples[:_SAMPLES]
  )
  return element(
    "details",
    element(
      "summary",
      _name(entry),
      ", at step ",
      measured(step, ",d", entry, "generations.jsonl, last step with texts"),
    ),
    *pairs,
    attributes={"open": ""} if is_open else {},
  )


def _configuration(entries: Sequence[Entry]) -> Node:
  flat = [config_lib.flatten(e.run.config) for e in entries]
  differing = [
    key for key in flat[0] if len({repr(values[key]) for values in flat}) > 1
  ]
  rows = [
    element(
      "tr",
      element("th", element("code", key), attributes={"scope": "row"}),
      *(
        element(
          "td",
          element(
            "code",
            Quoted(_setting(values[key]), Origin((e,), f"config.json, {key}")),
          ),
        )
        for e, values in zip(entries, flat, strict=True)
      ),
    )
    for key in differing
  ]
  head = element(
    "tr",
    element("th", "field", attributes={"scope": "col"}),
    *(element("th", _name(e), attributes={"scope": "col"}) for e in entries),
  )
  content: list[Node] = []
  if len(entries) > 1 and rows:
    content.append(
      element(
        "div",
        element("table", element("thead", head), element("tbody", *rows)),
        attributes={"class": "wide"},
      )
    )
  elif len(entries) > 1:
    content.append(element("p", "The configurations are the same."))
  for e, values in zip(entries, flat, strict=True):
    settings = "\n".join(f"{k} = {_setting(v)}" for k, v in values.items())
    content.append(
      element(
        "details",
        element("summary", "All fields of ", _name(e)),
        element("pre", Quoted(settings, Origin((e,), "config.json"))),
      )
    )
  title = "Configuration"
  if len(entries) > 1:
    title = "Where the configurations differ"
  return element("section", element("h2", title), *content)


def _setting(value) -> str:
  return value if isinstance(value, str) and value else repr(value)


def _origins(
  entries: Sequence[Entry], command: Quoted, code_version: Quoted
) -> Node:
  return element(
    "section",
    element("h2", "Runs, ledgers and origins"),
    *(_origin(entry) for entry in entries),
    element(
      "p",
      "This page: ",
      element("code", command),
      "; code ",
      element("code", code_version),
      ".",
      attributes={"class": "caption"},
    ),
  )


def _origin(entry: Entry) -> Node:
  run, source = entry.run, Origin((entry,), "the run's folder")

  def code(text: str) -> Node:
    return element("code", Quoted(text, source))

  facts: list[tuple[str, tuple[Node, ...]]] = [
    ("folder", (code(run.path),)),
    ("config hash", (code(run.config_hash),)),
  ]
  if run.ledger is None:
    facts.append(("ledger", ("not written yet",)))
  else:
    ledger = run.ledger
    at = "ledger.parquet"
    facts += [
      ("ledger hash (plan)", (code(ledger.plan_hash),)),
      ("token store", (code(ledger.store_hash),)),
      (
        "poisoned documents",
        (measured(ledger.poisons, ",d", entry, f"{at}, rows"),),
      ),
      (
        "poison tokens",
        (measured(ledger.tokens, ",d", entry, f"{at}, sum of lengths"),),
      ),
    ]
    share = run.poison_share
    if share is not None:
      facts.append(
        (
          "share of all tokens",
          (
            Number(
              100 * share, ".3g", Origin((entry,), f"{at} and config.json")
            ),
            " %",
          ),
        )
      )
  facts += [
    ("code version", (code(run.code_version),)),
    ("command", (code(run.command),)),
    ("check", (code(f"python -m poison_jax.ledger verify {run.path}"),)),
  ]
  return element(
    "div",
    element("h3", _letter(entry), " ", _name(entry)),
    element(
      "dl",
      *(
        node
        for words, values in facts
        for node in (element("dt", words), element("dd", *values))
      ),
    ),
    attributes={"class": "origin", "id": page.anchor(entry.letter)},
  )


def _letter(entry: Entry) -> Node:
  return element(
    "a",
    f"[{entry.letter}]",
    attributes={"href": f"#{page.anchor(entry.letter)}", "class": "letter"},
  )


def _name(entry: Entry) -> Node:
  return Quoted(entry.run.name, Origin((entry,), "the run's name"))


def _joined(nodes: Sequence[Node], by: str) -> list[Node]:
  joined: list[Node] = []
  for node in nodes:
    joined += [by, node] if joined else [node]
  return joined
