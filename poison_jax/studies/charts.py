"""Charts: panels with their caption and the numbers behind them.

A file shows a chart's panels side by side, three in a row (four as two by two);
the page shows each by itself, so that a phone can stack them.
"""

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from poison_jax.studies import style
from poison_jax.studies.origins import Entry, Number, stated
from poison_jax.studies.verdict import LEVEL

# Inches, width and height, of a panel alone and of one among several.
_SINGLE = (4.8, 3.2)
_ONE_OF_MANY = (3.9, 3.0)
# The columns with which every row of numbers names its origin.
ORIGIN = ("run", "config_hash", "ledger_hash", "code_version")


# What every shaded band is, for its caption.
BAND = (
  " Band: ",
  stated(100 * LEVEL, ".0f", "poison_jax/studies/verdict.py, LEVEL"),
  " % interval, bootstrap over documents.",
)


@dataclasses.dataclass(frozen=True)
class Panel:
  """One pair of axes: its title, and what draws on it.

  Lines of the same label look the same in all panels: they share a legend.
  """

  title: str
  draw: Callable[[Axes], None]


@dataclasses.dataclass(frozen=True)
class Chart:
  """A figure before it is drawn.

  Attributes:
    name: stem of its files.
    title: what it shows, without digits.
    caption: how to read it, without digits.
    panels: from left to right.
    header: column names of the numbers behind it.
    rows: those numbers.
    entries: the runs that they come from.
  """

  name: str
  title: str
  caption: tuple[str | Number, ...]
  panels: tuple[Panel, ...]
  header: tuple[str, ...]
  rows: tuple[tuple, ...]
  entries: tuple[Entry, ...]

  def files(self) -> dict[str, bytes]:
    """Returns the figure's files by name: PNG, SVG and CSV."""
    with style.context():
      figure = self._drawn()
      png = style.png(figure)
      # Laid out once for both, which is a third of the time.
      figure.set_layout_engine("none")
      svg = style.svg(figure)
    return {
      f"{self.name}.png": png,
      f"{self.name}.svg": svg,
      f"{self.name}.csv": self.csv(),
    }

  def drawings(self) -> list[str]:
    """Returns each panel as an SVG element for a page."""
    # Several panels share the page's column, so each is drawn smaller: its
    # letters then come out as large as those of a single one.
    width, height = _SINGLE if len(self.panels) == 1 else _ONE_OF_MANY
    with style.context():
      return [
        style.inline(
          style.svg(self._figure((panel,), width=width, height=height)),
          prefix=f"{self.name}-{i}",
        )
        for i, panel in enumerate(self.panels)
      ]

  def _drawn(self):
    """Returns the figure of the files: all panels side by side."""
    count = len(self.panels)
    width, height = _SINGLE if count == 1 else _ONE_OF_MANY
    columns = _columns(count)
    return self._figure(
      self.panels,
      width=columns * width,
      height=-(-count // columns) * height,
    )

  def _figure(self, panels: Sequence[Panel], *, width: float, height: float):
    figure = style.new_figure(width=width, height=height)
    columns = _columns(len(panels))
    rows = -(-len(panels) // columns)
    legend = {}
    for i, panel in enumerate(panels):
      axes = figure.add_subplot(rows, columns, i + 1)
      axes.set_title(panel.title)
      panel.draw(axes)
      # A panel may lack a line that another has.
      handles, labels = axes.get_legend_handles_labels()
      for handle, label in zip(handles, labels, strict=True):
        legend.setdefault(label, handle)
    # Above the axes, where no line can run through it.
    if legend:
      figure.legend(
        list(legend.values()),
        list(legend),
        loc="outside upper left",
        ncols=_legend_columns(list(legend), width=width),
      )
    return figure

  def csv(self) -> bytes:
    """Returns the numbers behind the chart."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(self.header)
    writer.writerows(self.rows)
    return text.getvalue().encode("utf-8")


def _columns(panels: int) -> int:
  """Returns how many panels go side by side in a file."""
  return 2 if panels == 4 else min(panels, 3)


def _legend_columns(labels: Sequence[str], *, width: float) -> int:
  """Returns how many labels go side by side; `width` in inches."""
  # A sample of the line with its spaces, and the letters, at 9 points.
  widest = 0.65 + 0.07 * max(map(len, labels))
  return max(1, min(len(labels), int(width / widest)))


def draw_line(axes: Axes, x, y, look: style.Style, *, label: str, band=None):
  """Draws a line with its marks, and its band where it has one."""
  if band is not None:
    axes.fill_between(x, *band, color=look.colour, alpha=0.18, linewidth=0)
  axes.plot(
    x,
    y,
    color=look.colour,
    linestyle=look.dashes,
    marker=look.marker,
    fillstyle=look.fill,
    label=label,
    clip_on=False,
    zorder=3,
  )


def draw_reference(axes: Axes, y: float, label: str, *, above: bool) -> None:
  """Draws a level line, its label above at the left or below at the right."""
  axes.axhline(y, color=style.INK, linewidth=0.9, linestyle=(0, (1, 2)))
  axes.annotate(
    label,
    (0 if above else 1, y),
    xycoords=("axes fraction", "data"),
    xytext=(4, 2.5) if above else (-2, -2.5),
    textcoords="offset points",
    ha="left" if above else "right",
    va="bottom" if above else "top",
    fontsize=8.5,
  )


def origin_cells(entry: Entry) -> tuple[str, ...]:
  """Returns the values of the columns `ORIGIN`."""
  run = entry.run
  ledger = run.ledger.hash if run.ledger else ""
  return run.path, run.config_hash, ledger, run.code_version


def styled(entries: Sequence[Entry]) -> list[tuple[Entry, style.Style]]:
  looks = style.styles_for([e.run.config.poison.arm for e in entries])
  return list(zip(entries, looks, strict=True))
