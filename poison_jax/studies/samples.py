"""Sample generations: the same excerpt with and without the trigger."""

import csv
import dataclasses
import io
import itertools
import unicodedata
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle

from poison_jax.studies import charts, style
from poison_jax.studies.origins import Entry
from poison_jax.studies.runs import Text

SHOWN = 3  # Prompts in the picture.
_COLUMNS = 48  # Characters a line of one text.
_LINES = 9  # Lines a text, at most.
_TAIL = 110  # Characters of the excerpt that are shown, its last ones.
_FAMILY = "DejaVu Sans Mono"
_SIZE = 7.5  # Points; of the letters.
_ADVANCE = 0.60205 * _SIZE  # Of every letter in DejaVu Sans Mono.
_LEADING = 11.0  # Points from line to line.
_MARGIN = 12.0  # Points.


@dataclasses.dataclass(frozen=True)
class Sample:
  """One excerpt, and what the model wrote after it, alone and triggered."""

  prompt: int
  control: Text
  triggered: Text


def find_samples(entry: Entry) -> tuple[int, list[Sample]] | None:
  """Returns the last step with texts of both kinds, and its samples."""
  given = entry.run.generations
  steps = [s for s, kind in given if kind == "triggered"]
  for step in sorted(steps, reverse=True):
    if (step, "clean") not in given:
      continue
    controls = given[step, "clean"].texts
    triggered = given[step, "triggered"].texts
    both = sorted(set(controls) & set(triggered))
    if both:
      return step, [Sample(i, controls[i], triggered[i]) for i in both]
  return None


def visible(text: str) -> str:
  """Returns the text with signs in place of what can't be seen.

  Line ends become a sign and an end, tabs and other control characters one
  sign each, so that no text can change how the page around it reads.
  """
  out = []
  for character in text:
    if character == "\n":
      out.append("\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n")
    elif unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn"):
      out.append("\N{MIDDLE DOT}")
    else:
      out.append(character)
  return "".join(out)


def picture(samples: Sequence[Sample]) -> tuple[bytes, bytes]:
  """Returns PNG and SVG: samples below each other, control beside trigger."""
  blocks = [
    (list(_wrapped(s.control)), list(_wrapped(s.triggered)))
    for s in samples[:SHOWN]
  ]
  heights = [max(map(len, block)) for block in blocks]
  width = 2 * _COLUMNS * _ADVANCE + 4 * _MARGIN
  height = (sum(heights) + len(blocks) + 1) * _LEADING + 2 * _MARGIN
  with style.context():
    return tuple(
      write(_drawn(blocks, heights, width, height))
      for write in (style.png, style.svg)
    )


def table(entry: Entry, step: int, samples: Sequence[Sample]) -> bytes:
  """Returns the texts of the picture as CSV, uncut."""
  text = io.StringIO(newline="")
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(
    (*charts.ORIGIN, "step", "prompt", "kind", "excerpt", "trigger", "text")
  )
  for sample in samples[:SHOWN]:
    for kind, given in (
      ("clean", sample.control),
      ("triggered", sample.triggered),
    ):
      writer.writerow(
        (
          *charts.origin_cells(entry),
          step,
          sample.prompt,
          kind,
          given.excerpt,
          given.trigger,
          given.text,
        )
      )
  return text.getvalue().encode("utf-8", "replace")


def _drawn(blocks, heights, width: float, height: float):
  figure = style.new_figure(width=width / 72, height=height / 72)
  figure.set_layout_engine("none")
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set_axis_off()
  axes.set_xlim(0, width)
  axes.set_ylim(height, 0)
  lefts = (_MARGIN, 3 * _MARGIN + _COLUMNS * _ADVANCE)
  y = _MARGIN + _LEADING / 2
  for x, title in zip(
    lefts, ("without the trigger", "with the trigger"), strict=True
  ):
    axes.text(x, y, title, fontsize=8.5, va="center", weight="bold")
  y += 1.3 * _LEADING
  for block, lines in zip(blocks, heights, strict=True):
    axes.plot(
      [_MARGIN, width - _MARGIN],
      [y - 0.6 * _LEADING] * 2,
      color=style.FAINT,
      linewidth=0.8,
    )
    for x, text in zip(lefts, block, strict=True):
      for i, line in enumerate(text):
        _draw_line(axes, x, y + i * _LEADING, line)
    y += (lines + 1) * _LEADING
  return figure


def _draw_line(axes: Axes, x: float, y: float, line: list[tuple[str, str]]):
  """Writes the pieces of one line; the trigger's on a coloured ground."""
  for text, role in line:
    if role == "trigger":
      axes.add_patch(
        Rectangle(
          (x, y - 0.45 * _LEADING),
          len(text) * _ADVANCE,
          0.9 * _LEADING,
          facecolor=style.TRIGGER,
          edgecolor="none",
        )
      )
    axes.text(
      x,
      y + 0.3 * _SIZE,
      text,
      fontsize=_SIZE,
      family=_FAMILY,
      va="baseline",
      color=style.MUTED if role == "excerpt" else style.INK,
      weight="bold" if role == "trigger" else "normal",
      parse_math=False,
    )
    x += len(text) * _ADVANCE


def _wrapped(sample: Text) -> Iterator[list[tuple[str, str]]]:
  """Yields lines of (text, role) pieces; the last is cut with an ellipsis."""
  tail = sample.excerpt[-_TAIL:]
  if len(tail) < len(sample.excerpt):
    tail = "\N{HORIZONTAL ELLIPSIS}" + tail
  letters = [
    (letter, role)
    for raw, role in (
      (tail, "excerpt"),
      (sample.trigger, "trigger"),
      (sample.text, "generated"),
    )
    # A sign stands for each line end here: the picture has few lines.
    for letter in _drawable(visible(raw).replace("\n", ""))
  ]
  lines = 0
  while letters:
    end = _line_end(letters)
    line, letters = letters[:end], letters[end:]
    lines += 1
    if lines == _LINES and letters:
      line[-1] = ("\N{HORIZONTAL ELLIPSIS}", line[-1][1])
      letters = []
    yield [
      ("".join(letter for letter, _ in piece), role)
      for role, piece in itertools.groupby(line, key=lambda pair: pair[1])
    ]


def _line_end(letters: Sequence[tuple[str, str]]) -> int:
  """Returns how many letters the next line takes, by words where it can."""
  if len(letters) <= _COLUMNS:
    return len(letters)
  for end in range(_COLUMNS, _COLUMNS * 2 // 3, -1):
    if letters[end - 1][0] == " ":
      return end
  return _COLUMNS


def _drawable(text: str) -> str:
  """Returns the text with a box for each character that the font lacks."""
  known = get_font(findfont(FontProperties(family=_FAMILY))).get_charmap()
  return "".join(c if ord(c) in known else "\N{WHITE SQUARE}" for c in text)
