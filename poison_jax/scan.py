"""Looks for poisons in a corpus, in a trained model, or in its training.

  python -m poison_jax.scan corpus runs/a --reference=runs/b --out=scans/corpus
  python -m poison_jax.scan corpus my/*.jsonl.gz --out=scans/mine
  python -m poison_jax.scan checkpoint runs/a --out=scans/model
  python -m poison_jax.scan steps runs/a --step=last --out=scans/steps

`corpus SOURCE` scores every document by every filter. SOURCE is a run (its
poisons are then the labels), a token store, or JSON lines files with "id" and
"text", of which --labels may name the poisoned ones: with labels it tells what
share of the poisons each filter finds, without them which documents to look
at first. `checkpoint RUN` looks for strings that throw the model off.
`steps RUN` asks whether the poisoned steps stand out in metrics.jsonl, and
with --step whether poisoned rows do under that checkpoint's parameters.

Folder of --out: scan.json, scores.csv, and figures/ with the CSV behind each.
"""

import csv
import io
import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import rich.console
from absl import flags

from poison_jax import command, version
from poison_jax.config import Config
from poison_jax.data.folder import Folder
from poison_jax.data.mixture import Mixture, make_mixture
from poison_jax.data.store import open_store
from poison_jax.defences import (
  corpus,
  documents,
  figures,
  roc,
  search,
  steps,
  tables,
)
from poison_jax.defences import model as model_lib
from poison_jax.defences.corpus import Quality
from poison_jax.defences.model import Model
from poison_jax.defences.progress import Progress
from poison_jax.errors import CheckFailed, UserError
from poison_jax.model.counts import run_steps
from poison_jax.poison import ledger
from poison_jax.studies.charts import Chart
from poison_jax.studies.runs import read_run
from poison_jax.training import workdir

_REFERENCE = flags.DEFINE_string(
  "reference",
  None,
  "corpus: a clean run whose model reads the documents; without it the "
  "filters that need a model are left out.",
)
_LABELS = flags.DEFINE_string(
  "labels", None, "corpus: file of the poisoned documents' ids, one a line."
)
_LIMIT = flags.DEFINE_integer(
  "limit",
  20_000,
  "corpus: clean documents read at most (of files: documents); 0 for all.",
  lower_bound=0,
)
_STEP = flags.DEFINE_string(
  "step",
  None,
  "Checkpoint: 'last' or a step; of the reference, the run, or, in `steps`, "
  "the parameters under which batches are read again.",
)
_TOKENS = flags.DEFINE_integer(
  "tokens",
  4_000_000,
  "checkpoint: training tokens searched for rare n-grams, at most.",
  lower_bound=1,
)
_ROWS = flags.DEFINE_integer(
  "rows",
  2_000,
  "steps with --step: clean rows read again, at most.",
  lower_bound=1,
)
_STORE = flags.DEFINE_string(
  "store", None, "Folder of the runs' token store, where it has moved."
)
_OUT = flags.DEFINE_string(
  "out", None, "New folder for every score and the figures."
)

_SEED = 0  # Of the clean rows that are read again.


def main(arguments: list[str]) -> None:
  """Runs `corpus SOURCE`, `checkpoint RUN` or `steps RUN`."""
  actions = {"corpus": _corpus, "checkpoint": _checkpoint, "steps": _steps}
  if len(arguments) < 2 or arguments[0] not in actions:
    raise UserError(
      "usage: python -m poison_jax.scan corpus SOURCE [--reference=RUN], "
      "checkpoint RUN, or steps RUN [--step=last]; --out=DIR keeps the scores"
    )
  action, *sources = arguments
  if action != "corpus" and len(sources) > 1:
    raise UserError(f"{action} takes one run, not {len(sources)}")
  _check_out()
  console = rich.console.Console(highlight=False, emoji=False, soft_wrap=True)
  with Progress() as progress:
    actions[action](sources, progress, console)


def _corpus(
  sources: list[str], progress: Progress, console: rich.console.Console
) -> None:
  found, vocabulary = _documents(sources)
  reference = _reference(vocabulary)
  poisoned = corpus.labels(found)
  scores = corpus.score(found, reference, track=progress.track)
  ids = [document.id for document in found]
  order = np.argsort(-scores["mean_rank"], kind="stable")
  content: dict[str, Any] = {
    "documents": len(found),
    "reference": None if reference is None else reference.name,
  }
  charts = []
  if poisoned is None:
    console.print(f"{len(found):,} documents, no labels: the most suspicious")
    console.print(tables.ranked_table(ids, scores, order))
    content["filters"] = {name: _described(name) for name in scores}
  else:
    judged = corpus.judge(scores, poisoned)
    _say_quality(console, judged, poisoned)
    charts.append(
      figures.roc_chart(
        scores, poisoned, groups={n: corpus.FILTERS[n].group for n in scores}
      )
    )
    content["filters"] = {
      name: _described(name) | _quality(q) for name, q in judged.items()
    }
  rows = _score_rows(ids, scores, poisoned, order)
  _write(console, content, rows, charts)


def _documents(sources: list[str]):
  """Returns the documents, and their vocabulary where they came as tokens."""
  first = Folder(sources[0])
  is_run = first.exists(workdir.CONFIG)
  if is_run or first.exists("manifest.json"):
    if len(sources) > 1:
      raise UserError(f"name one run or token store, not {len(sources)}")
    if _LABELS.value is not None:
      raise UserError("--labels is for files; a run's ledger has its own")
    return _of_run(sources[0]) if is_run else _of_store(sources[0])
  for source in sources:
    if Folder(source).local and os.path.isdir(source):
      raise UserError(
        f"{source} holds neither a run ({workdir.CONFIG}) nor a token store "
        "(manifest.json)"
      )
  ids = None if _LABELS.value is None else documents.read_labels(_LABELS.value)
  return documents.read_files(
    sources, limit=_LIMIT.value, poisoned_ids=ids
  ), None


def _of_run(path: str):
  _, mixture = _plan(path)
  if not mixture.placements:
    raise UserError(
      f"{path} has no poisons, so nothing can be told of finding them; name "
      f"its token store, {mixture.store.path}, to rank the documents"
    )
  clean = documents.documents_of(
    mixture.store, limit=_LIMIT.value, poisoned=False
  )
  return documents.poisons_of(mixture) + clean, mixture.store.vocabulary


def _of_store(path: str):
  store = open_store(path, vocabulary=None)
  found = documents.documents_of(store, limit=_LIMIT.value, poisoned=None)
  if not found:
    raise UserError(f"the token store {path} has no training document")
  return found, store.vocabulary


def _plan(path: str) -> tuple[Config, Mixture]:
  """Returns a run's batches, if they are those of its ledger."""
  config = workdir.load_config(path)
  table = workdir.read_ledger(path)
  store = open_store(
    _STORE.value or config.corpus.store, vocabulary=config.vocabulary
  )
  mixture = make_mixture(
    config, store, steps=run_steps(config, store.vocabulary.size)
  )
  if ledger.read_metadata(table)["plan_hash"] != mixture.plan_hash:
    raise CheckFailed(
      f"the ledger of {path} is of another plan than its config and store "
      f"make: python -m poison_jax.ledger verify {path} says where"
    )
  return config, mixture


def _reference(vocabulary) -> Model | None:
  if _REFERENCE.value is None:
    return None
  opened, reference = model_lib.of_run(
    _REFERENCE.value, step=_STEP.value or "last", store=_STORE.value, say=_say
  )
  if vocabulary is not None and (
    vocabulary.fingerprint != reference.vocabulary.fingerprint
  ):
    raise UserError(
      f"--reference={_REFERENCE.value} has another vocabulary than the "
      "documents' tokens: name a run that was trained on the same token store"
    )
  if opened.run.mixture.placements:
    _say(f"--reference={_REFERENCE.value} was trained on poisons itself")
  return reference


def _checkpoint(
  sources: list[str], progress: Progress, console: rich.console.Console
) -> None:
  opened, model = model_lib.of_run(
    sources[0], step=_STEP.value or "last", store=_STORE.value, say=_say
  )
  rows_BL = search.training_rows(opened.run.mixture, tokens=_TOKENS.value)
  result = search.find(
    model,
    rows_BL,
    search.excerpts(model, opened.run.store),
    search.held_out_rows(opened.run.store, length=model.length),
    track=progress.track,
  )
  console.print(
    f"{model.name}: {result.screened:,} strings screened, "
    f"{rows_BL.size:,} training tokens searched"
  )
  console.print(tables.trigger_table(result.found, model.vocabulary))
  console.print(search.verdict(result, model.vocabulary))
  content = {
    "model": model.name,
    "tokens_searched": rows_BL.size,
    "screened": result.screened,
    "null": len(result.null),
    "threshold_z": search.THRESHOLD,
    "verdict": search.verdict(result, model.vocabulary),
  }
  names = [tables.as_text(f, model.vocabulary) for f in result.found]
  header = ("string", "ids", "rows", "entropy", "increase", "z", "p")
  rows = [
    (
      name,
      " ".join(map(str, f.candidate.tokens)),
      f.candidate.rows,
      f"{f.entropy:.6g}",
      f"{f.increase:.6g}",
      f"{f.z:.6g}",
      f"{f.p:.6g}",
    )
    for name, f in zip(names, result.found, strict=True)
  ]
  increases = np.array([f.increase for f in result.found])
  chart = figures.trigger_chart(names, increases, result.null)
  _write(console, content, [header, *rows], [chart])


def _steps(
  sources: list[str], progress: Progress, console: rich.console.Console
) -> None:
  path = sources[0]
  config, mixture = _plan(path)
  if not mixture.placements:
    raise UserError(
      f"{path} has no poisons (arm {config.poison.arm}), so no step of it is "
      "poisoned"
    )
  if _STEP.value is None:
    under = "as logged, over the median of their neighbours"
    signals = steps.logged(read_run(path), [p.step for p in mixture.placements])
  else:
    _, model = model_lib.of_run(
      path, step=_STEP.value, store=_STORE.value, say=_say
    )
    under = f"rows read again by {model.name}"
    rows = steps.choose_rows(mixture, clean=_ROWS.value, seed=_SEED)
    advance = progress.track("rows", len(rows))
    signals = steps.reread(model, mixture, rows, advance=advance)
  judged = {
    name: corpus.quality(values, signals.poisoned, own=None)
    for name, values in signals.scores.items()
  }
  console.print(under)
  _say_quality(console, judged, signals.poisoned)
  chart = figures.roc_chart(
    signals.scores, signals.poisoned, groups=dict.fromkeys(judged, under)
  )
  content = {
    "run": path,
    "what": under,
    "signals": {name: _quality(q) for name, q in judged.items()},
  }
  order = np.arange(len(signals.poisoned))
  rows = _score_rows(signals.names, signals.scores, signals.poisoned, order)
  _write(console, content, rows, [chart])


def _say_quality(
  console: rich.console.Console,
  judged: Mapping[str, Quality],
  poisoned: np.ndarray,
) -> None:
  count, clean = int(poisoned.sum()), int((~poisoned).sum())
  console.print(f"{count:,} poisoned, {clean:,} clean")
  console.print(tables.quality_table(judged))
  for line in tables.rule_lines(judged):
    console.print(line)
  if clean * min(roc.RATES) < 1:
    console.print(
      f"{clean:,} clean ones are too few for a rate of {min(roc.RATES):.1%}: "
      "there the threshold is the highest clean score"
    )


def _described(name: str) -> dict[str, str]:
  return {"what": corpus.FILTERS[name].what}


def _quality(quality: Quality) -> dict[str, Any]:
  found: dict[str, Any] = {
    "auroc": quality.auroc,
    "at": [_at(at) for at in quality.at],
  }
  if quality.own is not None:
    found["own"] = _at(quality.own)
  return found


def _at(at: roc.AtRate) -> dict[str, Any]:
  def share(s):
    return {
      "count": s.successes,
      "of": s.runs,
      "low": s.interval.low,
      "high": s.interval.high,
    }

  return {
    "rate": at.rate,
    "threshold": at.threshold if np.isfinite(at.threshold) else None,
    "false_positives": share(at.false_positives),
    "recall": share(at.recall),
    "left": at.left,
  }


def _score_rows(
  names: Sequence[str],
  scores: Mapping[str, np.ndarray],
  poisoned: np.ndarray | None,
  order: Iterable[int],
) -> list[tuple]:
  """Returns the lines of scores.csv, the header first."""
  rows: list[tuple] = [("name", "poisoned", *scores)]
  for i in order:
    label = "" if poisoned is None else int(poisoned[i])
    values = (f"{v[i]:.6g}" for v in scores.values())
    rows.append((names[i], label, *values))
  return rows


def _check_out() -> None:
  if _OUT.value is None:
    return
  folder = Folder(_OUT.value)
  if (
    folder.local
    and os.path.exists(_OUT.value)
    and not (os.path.isdir(_OUT.value) and folder.is_empty())
  ):
    raise UserError(f"--out={_OUT.value} is there already: name a new folder")
  if not folder.local and not folder.is_empty():
    raise UserError(f"--out={_OUT.value} is not empty: name a new folder")


def _write(
  console: rich.console.Console,
  content: Mapping[str, Any],
  rows: Iterable[tuple],
  charts: Iterable[Chart],
) -> None:
  """Writes the files of --out, scan.json last; nothing without it."""
  if _OUT.value is None:
    console.print("--out=DIR keeps every score, and the figures")
    return
  text = io.StringIO(newline="")
  csv.writer(text, lineterminator="\n").writerows(rows)
  files = {"scores.csv": text.getvalue().encode()}
  for chart in charts:
    for name, data in chart.files().items():
      files[f"figures/{name}"] = data
  line = shlex.join(["python", "-m", "poison_jax.scan", *sys.argv[1:]])
  whole = {
    "command": line,
    "code_version": version.code_version(),
    **content,
  }
  files["scan.json"] = (json.dumps(whole, indent=2) + "\n").encode()
  folder = Folder(_OUT.value)
  for name, data in files.items():
    folder.write(name, data)
  console.print(f"written: {_OUT.value}/scan.json and what is beside it")


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
  command.run(main)
