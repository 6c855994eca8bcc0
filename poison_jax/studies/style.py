"""How figures look: colours, lines and sizes, the same in every one.

Colours are those of Okabe and Ito (2008), which colour-blind readers tell
apart; each goes with a dash pattern and a marker, so that grey print will do.
"""

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#1c2127"
FAINT = "#d5dae0"
MUTED = "#5d6670"
TRIGGER = "#ffd9a8"

RC = {
  "font.family": "DejaVu Sans",
  "font.size": 9.5,
  "axes.facecolor": "none",
  "axes.edgecolor": MUTED,
  "axes.labelcolor": INK,
  "axes.titlecolor": INK,
  "axes.titlesize": 10,
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "axes.linewidth": 0.8,
  "grid.color": FAINT,
  "grid.linewidth": 0.6,
  "text.color": INK,
  "xtick.color": MUTED,
  "ytick.color": MUTED,
  "xtick.labelcolor": INK,
  "ytick.labelcolor": INK,
  "legend.frameon": False,
  "legend.handlelength": 2.6,
  "legend.fontsize": 9,
  "legend.borderaxespad": 0.5,
  "legend.borderpad": 0.2,
  "legend.columnspacing": 1.4,
  "lines.linewidth": 1.6,
  "lines.markersize": 4.5,
  # Letters keep their exact widths at every resolution.
  "text.hinting": "no_hinting",
  "path.simplify": False,
  "figure.dpi": 200,
  "svg.fonttype": "path",
  # Identifiers in SVG files derive from this instead of a random number.
  "svg.hashsalt": "poison_jax",
}


@dataclasses.dataclass(frozen=True)
class Style:
  """One line's look."""

  colour: str
  dashes: str | tuple
  marker: str
  fill: str


_STYLES = (
  Style("#d55e00", "-", "o", "full"),
  Style("#0072b2", (0, (5, 1.6)), "s", "none"),
  Style("#009e73", (0, (1.2, 1.2)), "^", "none"),
  Style("#cc79a7", (0, (5, 1.4, 1.2, 1.4)), "D", "full"),
  Style("#e69f00", (0, (8, 2)), "v", "none"),
  Style("#56b4e9", (0, (3, 1, 1, 1, 1, 1)), "P", "none"),
  Style(MUTED, (0, (2, 3)), "X", "full"),
)
# Dashes and fills of lines that share colour and marker. Those of the second
# tuple are none of the styles' own, so that a second round repeats no line.
_VARIANTS = (
  ("-", "full"),
  ((0, (1.2, 1.2)), "none"),
  ((0, (3.2, 1.4)), "bottom"),
  ((0, (4.4, 1.1, 1.1, 1.1)), "top"),
)
_LATER = ((0, (11, 2, 3, 2)), (0, (1.2, 4)))
COLOURS = len(_STYLES)
VARIANTS = len(_VARIANTS)
_OF_ARM = {"poisoned": 0, "clean": 1, "placebo": 2}

KINDS: Mapping[str, tuple[str, Style]] = {
  "clean": ("clean prompt", _STYLES[1]),
  "triggered": ("trigger", _STYLES[0]),
  "near_trigger": ("near-trigger", _STYLES[2]),
  "unseen_tag": ("unseen tag", _STYLES[3]),
}


def styles_for(arms: Sequence[str]) -> list[Style]:
  """Returns a style a run: its arm's own, then the next that is free."""
  taken: list[int] = []
  for arm in arms:
    wanted = _OF_ARM[arm]
    free = [i for i in range(len(_STYLES)) if i not in taken]
    later = [i for i in free if i >= len(_OF_ARM)]
    if wanted not in taken:
      taken.append(wanted)
    elif later:
      taken.append(later[0])
    else:
      taken.append((free or [len(taken) % len(_STYLES)])[0])
  return [_STYLES[i] for i in taken]


def numbered(i: int) -> Style:
  """Returns the style of the i-th of several lines; they repeat after 21."""
  round_, i = divmod(i, COLOURS)
  if round_ % 3 == 0:
    return _STYLES[i]
  return dataclasses.replace(_STYLES[i], dashes=_LATER[round_ % 3 - 1])


def crossed(i: int, j: int) -> Style:
  """Returns the style of a line that is the i-th in one way, j-th in another.

  Args:
    i: below COLOURS: sets colour and marker.
    j: below VARIANTS: sets dashes and how markers are filled.
  """
  dashes, fill = _VARIANTS[j]
  return dataclasses.replace(_STYLES[i], dashes=dashes, fill=fill)


def new_figure(*, width: float, height: float) -> Figure:
  """Returns an empty figure, sizes in inches; call inside `context`."""
  return Figure(figsize=(width, height), layout="constrained")


def context():
  """Returns the context in which figures are drawn and saved."""
  return matplotlib.rc_context(RC)


def png(figure: Figure) -> bytes:
  """Returns the picture; equal figures give equal bytes."""
  figure.patch.set_facecolor("white")
  buffer = io.BytesIO()
  FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
  return buffer.getvalue()


def svg(figure: Figure) -> bytes:
  """Returns the drawing, on no background; equal figures, equal bytes."""
  figure.patch.set_alpha(0)
  buffer = io.BytesIO()
  FigureCanvasSVG(figure).print_svg(
    buffer, metadata={"Date": None, "Creator": None}
  )
  return buffer.getvalue()


def inline(svg_bytes: bytes, *, prefix: str) -> str:
  """Returns an SVG file as an element of a page.

  Identifiers get the prefix, so that several can stand on one page; the
  neutral inks become the page's own, so that it reads in the dark.
  """
  text = svg_bytes.decode("utf-8")
  text = text[text.index("<svg") :].strip()
  text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
  text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
  for colour in (INK, FAINT, MUTED, TRIGGER, *(s.colour for s in _STYLES)):
    text = text.replace(colour, f"var(--c{colour[1:]}, {colour})")
  # The width is the page's; the view box keeps the proportions.
  return re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
