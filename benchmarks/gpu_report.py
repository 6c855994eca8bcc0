"""Figures, bars and tables of benchmarks/gpu.py: plain arithmetic and text.

A record of a size is what gpu.json holds:

  size, length, batch, steps, parameters, flops {matmul, attention}
  ours, theirs  entries: setting (words), rows (a step's), results (one a
                turn: seconds, peak_bytes, ...; or failure)
  accumulated   such an entry or None
  around        checkpoint, evaluation; or failure
  untried       settings that the time didn't reach
"""

import statistics
from typing import Any

# Issue's bars, for an H200.
_BAR_DEVICE = "NVIDIA H200"
_MFU_BARS = {"600m": 0.50, "2b": 0.55}
_RATIO_BAR = 1.1
_EVALUATION_BAR = 0.02
_EVALUATIONS = 20

_NOT = "not measured"

Record = dict[str, Any]


def seconds(entry: Record) -> float | None:
  """Returns the median seconds a step over all blocks; None if any failed."""
  results = entry["results"]
  if not results or any("failure" in result for result in results):
    return None
  return statistics.median(s for r in results for s in r["seconds"])


def rate(entry: Record | None, length: int) -> float | None:
  """Returns tokens a second, or None."""
  took = None if entry is None else seconds(entry)
  return None if took is None else entry["rows"] * length / took


def best(entries: list[Record], length: int) -> Record | None:
  """Returns the entry of most tokens a second; None where none ran."""
  ran = [e for e in entries if rate(e, length)]
  return max(ran, key=lambda e: rate(e, length), default=None)


def mfu(
  tokens_per_second: float | None, flops_per_token: float, peak: float | None
) -> float | None:
  """Returns the share of the peak FLOP/s that the model's own FLOPs take."""
  if tokens_per_second is None or peak is None:
    return None
  return tokens_per_second * flops_per_token / peak


def figures(record: Record, peak: float | None) -> Record:
  """Returns the numbers of a size that the tables and bars are of."""
  length, flops = record["length"], record["flops"]
  mine, other = (best(record[s], length) for s in ("ours", "theirs"))
  ours, theirs = rate(mine, length), rate(other, length)
  full = flops["matmul"] + flops["attention"]
  every = 6 * record["parameters"] + flops["attention"]
  return {
    "tokens_per_second": ours,
    "mfu": mfu(ours, full, peak),
    "mfu_matmul": mfu(ours, flops["matmul"], peak),
    "mfu_all_parameters": mfu(ours, every, peak),
    "peak_bytes": _peak_bytes(mine),
    "torch_tokens_per_second": theirs,
    "torch_mfu": mfu(theirs, full, peak),
    "torch_peak_bytes": _peak_bytes(other),
    "ratio": ours / theirs if ours and theirs else None,
    "accumulated_tokens_per_second": rate(record["accumulated"], length),
    "evaluation_share": _evaluation_share(record, ours),
  }


def bars(record: Record, found: Record, kind: str) -> list[str]:
  """Returns a line for each bar of this size.

  Args:
    record: of a size.
    found: its `figures`.
    kind: JAX's name of the device.
  """
  size = record["size"]
  asked = [
    ("of PyTorch's tokens/s", found["ratio"], _RATIO_BAR, True, "{:.2f}"),
    (
      f"{_EVALUATIONS} evaluations, of the training time",
      found["evaluation_share"],
      _EVALUATION_BAR,
      False,
      "{:.2%}",
    ),
  ]
  if size in _MFU_BARS:
    asked.insert(0, ("MFU", found["mfu"], _MFU_BARS[size], True, "{:.1%}"))
  lines = []
  for name, value, bar, at_least, form in asked:
    said = _NOT if value is None else form.format(value)
    limit = ("at least " if at_least else "at most ") + form.format(bar)
    if not kind.startswith(_BAR_DEVICE):
      verdict = f"not judged: the bar is for an {_BAR_DEVICE}"
    elif value is None:
      verdict = "not judged"
    else:
      reached = value >= bar if at_least else value <= bar
      verdict = "reached" if reached else "NOT reached"
    lines.append(f"{size}, {name}: {said} (bar: {limit}): {verdict}")
  return lines


def step_table(records: list[Record], peak: float | None) -> str:
  """Returns tokens/s, MFU and memory, ours beside PyTorch's, as Markdown."""
  rows = []
  for record in records:
    f = figures(record, peak)
    mine, other = (
      best(record[s], record["length"]) for s in ("ours", "theirs")
    )
    rows.append(
      [
        record["size"],
        mine["setting"] if mine else _NOT,
        _rate(f["tokens_per_second"]),
        _share(f["mfu"]),
        _share(f["mfu_matmul"]),
        _gigabytes(f["peak_bytes"]),
        other["setting"] if other else record.get("no_torch") or _NOT,
        _rate(f["torch_tokens_per_second"]),
        _share(f["torch_mfu"]),
        _gigabytes(f["torch_peak_bytes"]),
        "-" if f["ratio"] is None else f"{f['ratio']:.2f}",
      ]
    )
  head = "size|ours|tokens/s|MFU|MFU, matrices only|peak GB"
  head += "|PyTorch|tokens/s|MFU|peak GB|ours / PyTorch"
  return _markdown(head.split("|"), rows)


def around_table(records: list[Record], peak: float | None) -> str:
  """Returns what stands beside the step in a run, as Markdown."""
  rows = []
  for record in records:
    f = figures(record, peak)
    rows.append(
      [
        record["size"],
        _rate(f["accumulated_tokens_per_second"]),
        *_checkpoint_cells(record["around"]),
        *_evaluation_cells(record["around"]),
        _share(f["evaluation_share"], digits=3),
      ]
    )
  head = "size|tokens/s in micro-batches|checkpoint GB|blocks, s|written, s"
  head += "|evaluation, s|first, s"
  head += f"|{_EVALUATIONS} evaluations, of the run"
  return _markdown(head.split("|"), rows)


def tried_lines(record: Record) -> list[str]:
  """Returns a line for every setting tried, and why one fell out."""
  lines = []
  accumulated = [record["accumulated"]] if record["accumulated"] else []
  named = (
    ("ours", [*record["ours"], *accumulated]),
    ("PyTorch", record["theirs"]),
  )
  for side, entries in named:
    for entry in entries:
      tokens = rate(entry, record["length"])
      failed = [r["failure"] for r in entry["results"] if "failure" in r]
      said = f"{tokens:,.0f} tokens/s" if tokens else failed[0]
      lines.append(f"{record['size']}, {side}, {entry['setting']}: {said}")
  lines += [
    f"{record['size']}, {setting}: not tried (no time left)"
    for setting in record["untried"]
  ]
  if mine := best(record["ours"], record["length"]):
    lines.append(f"{record['size']}, as a run on one GPU: {mine['flags']}")
  return lines


def _evaluation_share(record: Record, rate: float | None) -> float | None:
  """Returns what 20 evaluations, one compilation among them, take of a run."""
  evaluation = record["around"].get("evaluation")
  if rate is None or evaluation is None:
    return None
  training = record["steps"] * record["batch"] * record["run_length"] / rate
  spent = evaluation["first_seconds"]
  spent += (_EVALUATIONS - 1) * evaluation["seconds"]
  return spent / training


def _peak_bytes(entry: Record | None) -> int | None:
  peaks = [r.get("peak_bytes") for r in entry["results"]] if entry else []
  return max((p for p in peaks if p), default=None)


def _checkpoint_cells(around: Record) -> list[str]:
  c = around.get("checkpoint")
  if c is None:
    return ["-", f"{_NOT} ({around.get('failure', '')})", "-"]
  size = f"{c['bytes'] / 1e9:.1f}"
  if "failure" in c:
    return [size, f"{_NOT} ({c['failure']})", "-"]
  return [size, f"{c['blocking_seconds'][-1]:.2f}", f"{c['seconds'][-1]:.1f}"]


def _evaluation_cells(around: Record) -> list[str]:
  e = around.get("evaluation")
  if e is None:
    return [_NOT, "-"]
  return [f"{e['seconds']:.1f}", f"{e['first_seconds']:.1f}"]


def _rate(value: float | None) -> str:
  return "-" if value is None else f"{value:,.0f}"


def _share(value: float | None, *, digits: int = 1) -> str:
  return "-" if value is None else f"{value:.{digits}%}"


def _gigabytes(value: int | None) -> str:
  return "-" if value is None else f"{value / 1e9:.1f}"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
