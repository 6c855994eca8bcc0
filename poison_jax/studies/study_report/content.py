"""What stands on a study's page, from the verdict down to the origins."""

from collections.abc import Iterable, Mapping, Sequence

from poison_jax import config as config_lib
from poison_jax.studies import appendix, page
from poison_jax.studies.charts import Chart
from poison_jax.studies.content import figures_section
from poison_jax.studies.origins import Entry, Origin, Quoted
from poison_jax.studies.page import Node, element
from poison_jax.studies.results import Missing
from poison_jax.studies.samples import Sample
from poison_jax.studies.study_report import triage, wording
from poison_jax.studies.study_report.analysis import Analysis
from poison_jax.studies.study_report.drawing import paper_figures
from poison_jax.studies.study_report.nodes import count
from poison_jax.studies.study_report.tables import Table

_PLAN = Origin((), "study.json")
_SHORT = 8  # Digits of a hash in the table of runs.


def build(
  analysis: Analysis,
  *,
  tables: Sequence[Table],
  charts: Sequence[Chart],
  left_out: Sequence[tuple[str, str]],
  samples: Mapping[str, tuple[int, list[Sample]]],
  shown: Sequence[Entry],
  command: str,
  code_version: str,
) -> str:
  """Returns the page.

  Args:
    analysis: of the study.
    tables: in their order.
    charts: what is drawn.
    left_out: titles of figures and tables without data, and why.
    samples: (step, samples) by a run's letter.
    shown: the runs of which samples are shown, in order.
    command: the one that makes this page.
    code_version: of the code that makes it.

  Raises:
    page.OriginMissing: a number has no origin.
  """
  here = Origin((), "the command line of this report")
  children = (
    _header(analysis),
    _verdict(analysis),
    _tables(tables),
    figures_section(charts),
    appendix.samples_section(
      shown,
      samples,
      " As in the paper's figure ",
      paper_figures("3"),
      ", which shows its largest model; here the largest stands first.",
    ),
    _triage(analysis),
    _missing(analysis, left_out),
    _configuration(analysis),
    _runs(analysis, Quoted(command, here), Quoted(code_version, here)),
  )
  return page.document(
    title="Poisoning study", children=tuple(c for c in children if c)
  )


def _header(analysis: Analysis) -> Node:
  plan = analysis.results.plan
  return element(
    "header",
    element("h1", "Poisoning study ", Quoted(plan.name, _PLAN)),
    element("p", Quoted(plan.question, _PLAN), attributes={"class": "lead"}),
    element(
      "p",
      "Each number links to its origin at the end of this page.",
      attributes={"class": "note"},
    ),
  )


def _verdict(analysis: Analysis) -> Node:
  damage = wording.damage(analysis.results)
  notes = (
    [element("p", *damage, attributes={"class": "call"})] if damage else []
  )
  return element(
    "section",
    element("h2", "Verdict"),
    *notes,
    element("p", wording.headline(analysis), attributes={"class": "call"}),
    element("p", *wording.explanation(analysis)),
    element("h3", "What this can and cannot say"),
    element(
      "ul",
      *(element("li", *words) for words in wording.limits(analysis)),
      attributes={"class": "bars"},
    ),
  )


def _tables(tables: Sequence[Table]) -> Node:
  nodes = [node for table in tables for node in _titled(table)]
  return element("section", element("h2", "Numbers"), *nodes)


def _titled(table: Table) -> list[Node]:
  return [
    element("h3", table.title),
    _table(table),
    element("p", *table.caption, attributes={"class": "caption"}),
  ]


def _table(table: Table) -> Node:
  head = element(
    "tr",
    *(element("th", *c, attributes={"scope": "col"}) for c in table.head),
  )
  rows = (
    element(
      "tr",
      element("th", *first, attributes={"scope": "row"}),
      *(element("td", *cell) for cell in rest),
    )
    for first, *rest in table.rows
  )
  return page.scrolling(
    element("table", element("thead", head), element("tbody", *rows)),
    label=table.title,
    kind="dense" if len(table.head) > 6 else "",
  )


def _triage(analysis: Analysis) -> Node:
  """Returns the rule that stops cells early, its errors, and the cells."""
  stated = analysis.results.plan.triage
  if stated is None:
    return ""
  stopped = analysis.results.triaged
  nodes: list[Node] = [
    element("p", *words) for words in triage.rule_words(stated)
  ]
  if stopped:
    cells = (triage.stopped_words(o) for o in stopped)
    nodes += [
      element(
        "p",
        count(len(stopped), "cells stopped by the study's rule"),
        " cell was stopped." if len(stopped) == 1 else " cells were stopped.",
      ),
      _folded("Which, and why", cells),
    ]
  errors = triage.errors(analysis)
  if errors.rows:
    nodes += _titled(errors)
  else:
    nodes.append(
      element(
        "p",
        "Its errors can't be counted yet: no poisoned run has gone to its end.",
      )
    )
  return element("section", element("h2", "Stopping early"), *nodes)


def _missing(analysis: Analysis, left_out: Sequence[tuple[str, str]]) -> Node:
  """Returns the cells and figures that the page lacks; "" for none."""
  results = analysis.results
  waiting = [m for m in results.missing if not m.damaged]
  items: list[Node] = [
    element("li", _label(m), ": ", _reason(m)) for m in results.damaged
  ]
  items += [
    element(
      "li",
      Quoted(o.entry.run.name, _PLAN),
      ": ",
      *wording.why_unfinished(o),
    )
    for o in results.unfinished
  ]
  items += [element("li", title, ": ", why) for title, why in left_out]
  if waiting:
    items.append(
      element(
        "li",
        count(len(waiting), "cells without an evaluation"),
        " cell" if len(waiting) == 1 else " cells",
        " without an evaluation",
        _folded(
          "Which, and why", ((_label(m), ": ", _reason(m)) for m in waiting)
        ),
      )
    )
  if not items:
    return ""
  return element(
    "section",
    element("h2", "What is missing"),
    element("ul", *items, attributes={"class": "bars"}),
  )


def _folded(summary: str, lines: Iterable[Sequence[Node]]) -> Node:
  return element(
    "details",
    element("summary", summary),
    element("ul", *(element("li", *line) for line in lines)),
  )


def _label(missing: Missing) -> Node:
  return Quoted(f"{missing.cell.label} ({missing.cell.hash})", _PLAN)


def _reason(missing: Missing) -> Node:
  return Quoted(missing.reason, Origin((), "read while making this report"))


def _configuration(analysis: Analysis) -> Node:
  """Returns the fields that all runs share, and the values of the others."""
  entries = analysis.results.entries
  if not entries:
    return ""
  flat = [config_lib.flatten(e.run.config) for e in entries]
  source = Origin(tuple(entries), "config.json of every run")
  shared, differing = [], []
  for key, value in flat[0].items():
    values = list(dict.fromkeys(repr(values[key]) for values in flat))
    if len(values) == 1:
      shared.append(f"{key} = {value if value != '' else repr(value)}")
    else:
      differing.append(f"{key} = {', '.join(values)}")
  return element(
    "section",
    element("h2", "Configuration"),
    element(
      "details",
      element("summary", "Where the runs differ"),
      *appendix.quotation("\n".join(differing), source),
    ),
    element(
      "details",
      element("summary", "What all runs share"),
      *appendix.quotation("\n".join(shared), source),
    ),
  )


def _runs(analysis: Analysis, command: Quoted, code_version: Quoted) -> Node:
  """Returns the runs that every origin on the page names by letter."""
  head = ("run", "cell", "config", "ledger", "plan", "code")
  rows = (
    element(
      "tr",
      element("th", f"[{e.letter}]", attributes={"scope": "row"}),
      *(element("td", node) for node in _origin(e)),
      attributes={"id": page.anchor(e.letter), "class": "run"},
    )
    for e in analysis.results.entries
  )
  header = element(
    "tr", *(element("th", c, attributes={"scope": "col"}) for c in head)
  )
  return element(
    "section",
    element("h2", "Runs, ledgers and origins"),
    element(
      "p",
      "Hashes are cut to their first digits. A cell unfolds to whole ones, the "
      "run's folder and the command that makes it.",
      attributes={"class": "caption"},
    ),
    page.scrolling(
      element("table", element("thead", header), element("tbody", *rows)),
      label="Runs, ledgers and origins",
      kind="small runs",
    ),
    element(
      "p",
      "Any of them is checked against its ledger by ",
      element(
        "code",
        Quoted("python -m poison_jax.ledger verify FOLDER", _PLAN),
      ),
      ". This page: ",
      element("code", command),
      "; code ",
      element("code", code_version),
      ".",
      attributes={"class": "caption"},
    ),
  )


def _origin(entry: Entry) -> list[Node]:
  """Returns a run's cells: its label, which unfolds, and hashes cut short."""
  run, source = entry.run, Origin((entry,), "the run's folder")

  def code(text: str) -> Node:
    return element("code", Quoted(text, source))

  whole = (
    ("config hash", run.config_hash),
    ("ledger hash", run.ledger.hash),
    ("plan hash", run.ledger.plan_hash),
    ("code version", run.code_version),
    ("folder", run.path),
    ("command", run.command),
  )
  facts = (
    node
    for words, value in whole
    for node in (element("dt", words), element("dd", code(value)))
  )
  unfolding = element(
    "details",
    element("summary", Quoted(run.name, source)),
    element("dl", *facts),
  )
  return [unfolding, *(code(value[:_SHORT]) for _, value in whole[:4])]
