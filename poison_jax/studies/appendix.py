"""The end of the report's page: samples, configurations, origins."""

from collections.abc import Mapping, Sequence

from poison_jax import config as config_lib
from poison_jax.studies import page
from poison_jax.studies.origins import Entry, Number, Origin, Quoted, measured
from poison_jax.studies.page import Node, Reference, element, scrolling
from poison_jax.studies.samples import Sample, visible

_SAMPLES = 6  # On the page; generations.jsonl has the others.


def samples_section(
  entries: Sequence[Entry],
  samples: Mapping[str, tuple[int, list[Sample]]],
  *words: Node,
) -> Node:
  """Returns all runs' samples, those of the first run unfolded.

  Args:
    entries: the runs, in order.
    samples: (step, samples) by a run's letter.
    words: what more there is to say of them.
  """
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
      *words,
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
      element(
        "p", words, " ", Reference(source), attributes={"class": "which"}
      ),
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
      name(entry),
      ", at step ",
      measured(step, ",d", entry, "generations.jsonl, last step with texts"),
    ),
    *pairs,
    attributes={"open": ""} if is_open else {},
  )


def configuration(entries: Sequence[Entry]) -> Node:
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
    *(element("th", name(e), attributes={"scope": "col"}) for e in entries),
  )
  content: list[Node] = []
  if len(entries) > 1 and rows:
    content.append(
      scrolling(
        element("table", element("thead", head), element("tbody", *rows)),
        label="Configurations",
      )
    )
  elif len(entries) > 1:
    content.append(element("p", "The configurations are the same."))
  for e, values in zip(entries, flat, strict=True):
    settings = "\n".join(f"{k} = {_setting(v)}" for k, v in values.items())
    content.append(
      element(
        "details",
        element("summary", "All fields of ", name(e)),
        *quotation(settings, Origin((e,), "config.json")),
      )
    )
  title = "Configuration"
  if len(entries) > 1:
    title = "Where the configurations differ"
  return element("section", element("h2", title), *content)


def quotation(text: str, origin: Origin) -> tuple[Node, Node]:
  """Returns preformatted text, and above it the link to its origin."""
  return (
    element("p", Reference(origin), attributes={"class": "which"}),
    element("pre", Quoted(text, origin)),
  )


def _setting(value) -> str:
  return value if isinstance(value, str) and value else repr(value)


def origins_section(
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
      ("ledger hash", (code(ledger.hash),)),
      ("plan hash", (code(ledger.plan_hash),)),
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
    element("h3", letter(entry), " ", name(entry)),
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


def letter(entry: Entry) -> Node:
  return element(
    "a",
    f"[{entry.letter}]",
    attributes={"href": f"#{page.anchor(entry.letter)}", "class": "letter"},
  )


def name(entry: Entry) -> Node:
  return Quoted(entry.run.name, Origin((entry,), "the run's name"))
