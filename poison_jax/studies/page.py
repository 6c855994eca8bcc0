"""The report's page: HTML in which no number stands without its origin.

A page is a tree of `Element`s. Its leaves are plain strings, `Number`s,
`Quoted` text and `Drawing`s. A digit in a plain string fails the build:
numbers have to come as `Number` or `Quoted`, which can't be made without an
origin. The page is one file and asks the network for nothing.
"""

import dataclasses
import html
import pathlib
import re
from collections.abc import Mapping

from poison_jax.studies.origins import Number, Origin, Quoted

_VOID = frozenset({"meta", "br", "hr"})
# Attributes that hold what the reader sees, or a name; never a measurement.
_ATTRIBUTES = frozenset({"id", "class", "href", "scope", "colspan", "open"})


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
class Element:
  """An HTML element: its tag, attributes and what it holds."""

  tag: str
  attributes: Mapping[str, str]
  children: tuple["Node", ...]


Node = str | Number | Quoted | Drawing | Element


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


def render(node: Node) -> str:
  """Returns the HTML of a node.

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
      return _number(node)
    case Quoted():
      title = html.escape(node.origin.describe())
      return f'<span class="q" title="{title}">{html.escape(node.text)}</span>'
    case Drawing():
      title = html.escape(node.origin.describe())
      return f'<div class="drawing" title="{title}">{node.svg}</div>'
    case Element():
      opening = node.tag + "".join(
        f' {name}="{html.escape(value)}"'
        for name, value in node.attributes.items()
      )
      if node.tag in _VOID:
        return f"<{opening}>"
      inside = "".join(map(render, node.children))
      return f"<{opening}>{inside}</{node.tag}>"
  raise OriginMissing(
    f"{node!r} is of type {type(node).__name__}; a page takes strings, "
    "Number, Quoted, Drawing and Element"
  )


def document(*, title: str, children: tuple[Node, ...]) -> str:
  """Returns the whole page.

  Raises:
    OriginMissing: as `render`.
  """
  css = pathlib.Path(__file__).with_name("page.css").read_text(encoding="utf-8")
  css = re.sub(r"/\*.*?\*/\s*", "", css, flags=re.S).strip()
  body = "\n".join(map(render, children))
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark">\n'
    f"<title>{render(title)}</title>\n<style>\n{css}\n</style>\n</head>\n"
    f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
  )


def anchor(letter: str) -> str:
  """Returns the identifier of a run's entry among the origins."""
  return f"run-{letter}"


def _number(number: Number) -> str:
  title = html.escape(number.origin.describe())
  text = html.escape(str(number))
  value = html.escape(repr(float(number.value)))
  if not number.origin.entries:
    return f'<data class="n" value="{value}" title="{title}">{text}</data>'
  href = anchor(number.origin.entries[0].letter)
  return (
    f'<a class="n" href="#{href}" title="{title}">'
    f'<data value="{value}">{text}</data></a>'
  )
