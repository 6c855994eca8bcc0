"""The report's page: HTML in which no number stands without its origin.

A page is a tree of `Element`s. Its leaves are plain strings, `Number`s,
`Quoted` text, `Drawing`s and `Reference`s. A digit in a plain string fails the
build: numbers have to come as `Number` or `Quoted`, which can't be made without
an origin. Each links to its origin in a list at the page's end. The page is one
file, needs no JavaScript and asks the network for nothing.
"""

import dataclasses
import html
import pathlib
import re
from collections.abc import Mapping
from typing import Literal

from poison_jax.studies.origins import Number, Origin, Quoted

_VOID = frozenset({"meta", "br", "hr"})
# Attributes that hold what the reader sees, or a name; never a measurement.
_ATTRIBUTES = frozenset(
  {"id", "class", "href", "scope", "colspan", "open"}
  | {"tabindex", "role", "aria-label"}
)
_UNLINKED = frozenset({"a", "summary", "pre"})
_LINKS = frozenset({Number, Quoted})
_NAMED = 6  # Runs of an origin in its title; its entry has all.


class OriginMissing(ValueError):
  """A number was about to reach the reader without its origin."""


@dataclasses.dataclass(frozen=True)
class Drawing:
  """An SVG element, and where the numbers in it come from."""

  svg: str
  origin: Origin

  def __post_init__(self):
    if not isinstance(self.origin, Origin):
      raise OriginMissing("a drawing has no origin")


@dataclasses.dataclass(frozen=True)
class Reference:
  """A link to an origin, beside what can't be a link itself."""

  origin: Origin

  def __post_init__(self):
    if not isinstance(self.origin, Origin):
      raise OriginMissing("a reference has no origin")


@dataclasses.dataclass(frozen=True)
class Element:
  """An HTML element: its tag, attributes and what it holds."""

  tag: str
  attributes: Mapping[str, str]
  children: tuple["Node", ...]


Node = str | Number | Quoted | Drawing | Reference | Element


def element(
  tag: str, *children: Node, attributes: Mapping[str, str] | None = None
) -> Element:
  """Returns an element; attributes are given as a mapping.

  Raises:
    ValueError: an attribute that pages don't use.
  """
  attributes = attributes or {}
  for name in attributes:
    if name not in _ATTRIBUTES:
      raise ValueError(f"attribute {name!r} is not one of {_ATTRIBUTES}")
  return Element(tag, dict(attributes), children)


class Origins:
  """The origins of a page, each once, in the order in which they come.

  Each has an entry in a numbered list at the page's end, to which whatever it
  is the origin of links: a title alone is out of reach without a mouse.
  """

  def __init__(self):
    self._found: list[Origin] = []
    self._numbers: dict[tuple[str, tuple[str, ...]], int] = {}

  def link(self, origin: Origin) -> str:
    """Returns the address of an origin's entry on the page."""
    key = origin.source, tuple(entry.letter for entry in origin.entries)
    if key not in self._numbers:
      self._found.append(origin)
      self._numbers[key] = len(self._found)
    return f"#origin-{self._numbers[key]}"

  def section(self) -> str:
    """Returns the list of all origins that were linked; "" for none."""
    if not self._found:
      return ""
    items = (
      f'<li id="origin-{i + 1}">{self._entry(origin)}</li>'
      for i, origin in enumerate(self._found)
    )
    return (
      "<section>\n<h2>Origins</h2>\n"
      '<p class="caption">Where each number of this page comes from, and the '
      "runs behind it, whose folders, hashes, code and command stand above."
      '</p>\n<ol class="origins">\n' + "\n".join(items) + "\n</ol>\n</section>"
    )

  def _entry(self, origin: Origin) -> str:
    letters = (
      f'<a href="#{anchor(e.letter)}">{html.escape(e.letter)}</a>'
      for e in origin.entries
    )
    source = html.escape(origin.source)
    if not origin.entries:
      return source
    runs = "run" if len(origin.entries) == 1 else "runs"
    return f"{source}; {runs} {' '.join(letters)}"


def render(
  node: Node, origins: Origins, *, links: frozenset[type] = _LINKS
) -> str:
  """Returns the HTML of a node.

  Args:
    node: to be written.
    origins: takes up those of the node's numbers and quotations.
    links: which of the two link to their origins.

  Raises:
    OriginMissing: a plain string holds a digit, or a leaf is of another type
      (a bare number, say).
  """
  match node:
    case str():
      if any(c.isdigit() or c.isnumeric() for c in node):
        raise OriginMissing(
          f"{node!r} holds a number without origin; make it a Number, or "
          "Quoted text"
        )
      return html.escape(node)
    case Number():
      value = html.escape(repr(float(node.value)))
      text = f'<data value="{value}">{html.escape(str(node))}</data>'
      return _cited(text, "n", node.origin, Number in links and origins)
    case Quoted():
      text = html.escape(node.text)
      return _cited(text, "q", node.origin, Quoted in links and origins)
    case Drawing():
      title = html.escape(_title(node.origin))
      return f'<div class="drawing" title="{title}">{node.svg}</div>'
    case Reference():
      return _cited("origin", "o", node.origin, origins)
    case Element():
      opening = node.tag + "".join(
        f' {name}="{html.escape(value)}"'
        for name, value in node.attributes.items()
      )
      if node.tag in _VOID:
        return f"<{opening}>"
      # No link within another, nor in what folds or is copied as a whole.
      if node.tag in _UNLINKED:
        links = frozenset()
      # In the entry of a run, which origins lead to, its own facts need none.
      elif "id" in node.attributes:
        links -= {Quoted}
      inside = "".join(
        render(child, origins, links=links) for child in node.children
      )
      return f"<{opening}>{inside}</{node.tag}>"
  raise OriginMissing(
    f"{node!r} is of type {type(node).__name__}; a page takes strings, "
    "Number, Quoted, Drawing, Reference and Element"
  )


def _cited(
  inside: str, kind: str, origin: Origin, origins: Origins | Literal[False]
) -> str:
  """Returns what has an origin: a link to its entry, or with a title alone."""
  title = html.escape(_title(origin))
  if not origins:
    return f'<span class="{kind}" title="{title}">{inside}</span>'
  href = origins.link(origin)
  return f'<a class="{kind}" href="{href}" title="{title}">{inside}</a>'


def _title(origin: Origin) -> str:
  """Returns an origin in a few words: the source, and its runs by letter."""
  runs = [entry.letter for entry in origin.entries]
  if not runs:
    return origin.source
  if len(runs) > _NAMED:
    return f"{origin.source}; {len(runs)} runs"
  return f"{origin.source}; run {', '.join(runs)}"


def scrolling(table: Node, *, label: str, kind: str = "") -> Element:
  """Returns a table in a box that scrolls, by keyboard too.

  Args:
    table: the element.
    label: what screen readers call it.
    kind: further classes.
  """
  return element(
    "div",
    table,
    attributes={
      "class": f"wide {kind}".strip(),
      "tabindex": "0",
      "role": "region",
      "aria-label": label,
    },
  )


def document(*, title: str, children: tuple[Node, ...]) -> str:
  """Returns the whole page.

  Raises:
    OriginMissing: as `render`.
  """
  css = pathlib.Path(__file__).with_name("page.css").read_text(encoding="utf-8")
  css = re.sub(r"/\*.*?\*/\s*", "", css, flags=re.S).strip()
  origins = Origins()
  body = "\n".join(render(child, origins) for child in children)
  # Last, when all are known.
  body += "\n" + origins.section()
  head = f"<title>{html.escape(title)}</title>\n<style>\n{css}\n</style>"
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark">\n'
    f"{head}\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
  )


def anchor(letter: str) -> str:
  """Returns the identifier of a run's entry among the origins."""
  return f"run-{letter}"
