"""Writes a report: the page, and the figures beside it."""

import contextlib
import re
from collections.abc import Mapping, Sequence

from poison_jax import version
from poison_jax.data.folder import Folder
from poison_jax.studies import content, samples
from poison_jax.studies import figures as figures_lib
from poison_jax.studies.origins import Entry
from poison_jax.studies.verdict import Verdict

_PAGE = "report.html"
_SAMPLES = "samples"  # Stem of the picture that no page links to.


def write(
  entries: Sequence[Entry],
  verdicts: Sequence[Verdict],
  *,
  out: Folder,
  command: str,
) -> str:
  """Writes report.html and figures/ into `out`, and returns the page's path.

  Args:
    entries: the runs.
    verdicts: the reading of each.
    out: a folder, made where it is missing; or one in a bucket.
    command: the one that makes this report.

  Raises:
    OSError: the folder can't be written.
    UserError: the bucket can't be.
  """
  charts = figures_lib.all_charts(entries)
  found = {
    entry.letter: pair
    for entry in entries
    if (pair := samples.find_samples(entry)) is not None
  }
  files: dict[str, bytes] = {}
  for chart in charts:
    files |= chart.files()
  shown = _whose_samples(entries, found)
  if shown is not None:
    step, of_run = found[shown.letter]
    files["samples.png"], files["samples.svg"] = samples.picture(of_run)
    files["samples.csv"] = samples.table(shown, step, of_run)
  page = content.build(
    entries,
    verdicts,
    charts=charts,
    samples=found,
    command=command,
    code_version=version.code_version(),
  )
  return publish(out, page, figures=files)


def publish(out: Folder, page: str, *, figures: Mapping[str, bytes]) -> str:
  """Writes a page and the files of its figures; returns the page's path.

  Figures of the page that it replaces are deleted where it has them no more:
  they would stand beside it as if they still held.
  """
  before = out.read(_PAGE)
  for name, data in figures.items():
    out.write(f"figures/{name}", data)
  # Last, so that a page never names figures that are not there.
  written = page.encode("utf-8")
  out.write(_PAGE, written)
  # Another writer's page would need its own figures.
  if before is not None and out.read(_PAGE) == written:
    for name in _figure_files(before) - figures.keys():
      with contextlib.suppress(FileNotFoundError):  # Another writer was first.
        out.delete(f"figures/{name}")
  return f"{out.path}/{_PAGE}"


def _figure_files(page: bytes) -> set[str]:
  """Returns the files of the figures that a page names."""
  stems = re.findall(rb'href="figures/([a-z0-9_]+)\.csv"', page)
  return {
    f"{stem}.{end}"
    for stem in (*(s.decode() for s in stems), _SAMPLES)
    for end in ("png", "svg", "csv")
  }


def _whose_samples(entries: Sequence[Entry], found) -> Entry | None:
  """Returns the run in the picture: the first poisoned, else the first."""
  with_texts = [e for e in entries if e.letter in found]
  poisoned = [e for e in with_texts if e.run.config.poison.arm == "poisoned"]
  return next(iter(poisoned + with_texts), None)
