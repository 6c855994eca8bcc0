"""A study read as far as it got: outcomes of cells, and what is missing.

A cell that can't be read takes nothing away from the others: it stands in
`Results.missing` with its reason. One that the study's own rule stopped early
is neither missing nor unfinished: it is censored, `Results.triaged`.
"""

import dataclasses

import numpy as np

from poison_jax.config import Config
from poison_jax.data.folder import Folder
from poison_jax.data.manifest import read_manifest
from poison_jax.errors import CheckFailed, UserError
from poison_jax.studies import runs as runs_lib
from poison_jax.studies.grid import endings, states
from poison_jax.studies.grid.claims import Claims
from poison_jax.studies.grid.plan import Plan
from poison_jax.studies.grid.pricing import short
from poison_jax.studies.grid.states import Kind, State
from poison_jax.studies.grid.study import Cell
from poison_jax.studies.origins import Entry, make_entries
from poison_jax.studies.outcomes import CUTS, Outcome, Poisons, Rung
from poison_jax.studies.runs import Run
from poison_jax.training import workdir

# Settings that tell runs of one rung apart; all others make another rung.
_WITHIN = ("poisons", "arm", "seed", "seeds.documents", "seeds.positions")


@dataclasses.dataclass(frozen=True)
class Missing:
  """A cell without an outcome, and why in a line.

  Attributes:
    cell: which.
    kind: where it stands; None where its folder can't be read.
    reason: what is missing, or what is damaged and where.
  """

  cell: Cell
  kind: Kind | None
  reason: str

  @property
  def damaged(self) -> bool:
    return self.kind is None


@dataclasses.dataclass(frozen=True)
class Results:
  """A study as far as it got.

  Attributes:
    plan: of the study.
    entries: the runs that were read, in the order of the grid.
    outcomes: those of them that have an evaluation.
    missing: all other cells.
  """

  plan: Plan
  entries: tuple[Entry, ...]
  outcomes: tuple[Outcome, ...]
  missing: tuple[Missing, ...]

  @property
  def unfinished(self) -> tuple[Outcome, ...]:
    """Those that go on or failed: they have no measure of their end yet."""
    return tuple(
      o for o in self.outcomes if not o.finished and o.triaged is None
    )

  @property
  def triaged(self) -> tuple[Outcome, ...]:
    """Those that the study's rule stopped: they will have none."""
    return tuple(o for o in self.outcomes if o.triaged is not None)

  @property
  def damaged(self) -> tuple[Missing, ...]:
    return tuple(m for m in self.missing if m.damaged)


def read(plan: Plan) -> Results:
  """Reads what is there of a study; damaged cells are listed, not raised."""
  owners = Claims(plan.workdir).owners()
  found: list[tuple[State, Run, Poisons]] = []
  missing: list[Missing] = []
  for cell in plan.cells:
    try:
      state = states.read_state(plan, cell, owners)
      if state.kind is Kind.MISSING and not _begun(plan, cell):
        missing.append(Missing(cell, state.kind, "not begun yet"))
        continue
      run = _read_run(plan, cell)
    except (UserError, CheckFailed) as error:
      missing.append(Missing(cell, None, str(error)))
      continue
    if run.ledger is None or run.evaluated_step is None:
      missing.append(Missing(cell, state.kind, _why_no_evaluation(state)))
      continue
    found.append((state, run, _read_poisons(run)))
  entries = make_entries([run for _, run, _ in found])
  stores: dict[str, dict | None] = {}
  outcomes = [
    _outcome(state, entry, poisons, stores)
    for (state, _, poisons), entry in zip(found, entries, strict=True)
  ]
  return Results(plan, tuple(entries), tuple(outcomes), tuple(missing))


def _begun(plan: Plan, cell: Cell) -> bool:
  return Folder(plan.path(cell)).exists(workdir.CONFIG)


def _why_no_evaluation(state: State) -> str:
  if state.kind is Kind.TRIAGED:
    return f"stopped early by the study's rule: {state.why}"
  stopped = state.ending is not None and state.ending.result == endings.STOPPED
  if state.kind is Kind.MISSING and stopped:
    return "stopped before its first step"
  return state.why or "no evaluation yet"


def _read_run(plan: Plan, cell: Cell) -> Run:
  """Reads a cell's run; of its generations, those of the last evaluation.

  Raises:
    UserError, CheckFailed: a file is damaged, or it is another run's.
  """
  path = plan.path(cell)
  run = runs_lib.read_run(path)
  if run.config_hash != cell.hash:
    raise UserError(
      f"{path} holds the run {run.config_hash}, not this cell's: restore the "
      "folder, or delete it to run the cell again"
    )
  kept = {
    (step, kind): given
    for (step, kind), given in run.generations.items()
    if step == run.evaluated_step
  }
  return dataclasses.replace(
    run, name=cell.label or cell.hash, generations=kept
  )


def _read_poisons(run: Run) -> Poisons:
  table = workdir.read_ledger(run.path)
  steps_N = table["step"].to_numpy().astype(np.int64)
  tokens_N = table["tokens"].to_numpy().astype(np.int64)
  order_N = np.argsort(steps_N, kind="stable")
  return Poisons(steps_N[order_N], tokens_N[order_N])


def _outcome(
  state: State, entry: Entry, poisons: Poisons, stores: dict
) -> Outcome:
  cell, kind = state.cell, state.kind
  run, config = entry.run, entry.run.config
  step = run.evaluated_step
  a_step = config.train.batch * config.train.length
  epochs = _epochs(run, step * a_step, stores)

  def at(key: str) -> float | None:
    return run.metrics[key].at(step) if key in run.metrics else None

  clean = at("eval/clean/perplexity")
  increase = at("eval/perplexity_increase")
  if increase is None:
    increase = at("eval/triggered/perplexity") - clean
  return Outcome(
    cell=cell,
    entry=entry,
    rung=_rung(cell, run.steps * a_step),
    seed=config.seed,
    draw=_draw(config),
    arm=config.poison.arm,
    planned=0 if config.poison.arm == "clean" else config.poison.count,
    step=step,
    # A triaged run is censored even if the order to stop came at its last step:
    # what enters a claim must not hang on when a process noticed.
    finished=step == run.steps and kind not in (Kind.FAILED, Kind.TRIAGED),
    triaged=state.why if kind is Kind.TRIAGED else None,
    evaluations=state.evaluations,
    poisons=poisons,
    dose=poisons.dose(step, epochs=epochs),
    clean_tokens=run.steps * a_step - run.ledger.tokens,
    increase=increase,
    nats=at("eval/log_perplexity_increase"),
    room_share=at("eval/room_share"),
    auroc=at("eval/auroc"),
    validation_loss=at("eval/validation_loss"),
    clean_perplexity=clean,
    threshold=config.evaluation.threshold,
    above=_above(run, step),
  )


def _rung(cell: Cell, tokens: int) -> Rung:
  size = str(cell.settings.get("size", short(cell.parameters)))
  others = [
    str(value) if name == "tokens" else f"{name}={value}"
    for name, value in cell.settings.items()
    if name != "size" and name not in _WITHIN
  ]
  return Rung(" ".join([size, *others]), size, cell.parameters, tokens)


def _draw(config: Config) -> tuple[int | None, int | None] | None:
  pinned = config.seeds.documents, config.seeds.positions
  return None if pinned == (None, None) else pinned


def _above(run: Run, step: int) -> np.ndarray | None:
  """Returns the share of prompts above each cut, triggered minus clean."""
  clean, triggered = (
    run.generations.get((step, kind)) for kind in ("clean", "triggered")
  )
  if clean is None or triggered is None:
    return None
  if clean.documents != triggered.documents:
    return None  # A prompt of one kind is lost: there are no pairs.
  increase_P = triggered.perplexity_P - clean.perplexity_P
  return (increase_P[:, None] > np.array(CUTS)).mean(axis=0)


def _epochs(run: Run, tokens: int, stores: dict) -> float | None:
  """Returns passes over the store's training split, whole rows of it."""
  path = run.config.corpus.store
  if path not in stores:
    try:
      stores[path] = read_manifest(Folder(path))
    except (UserError, OSError):
      stores[path] = None
  manifest = stores[path]
  if manifest is None or manifest["hash"] != run.ledger.store_hash:
    return None
  length = run.config.train.length
  held = sum(shard["tokens"] for shard in manifest["splits"]["train"])
  return tokens / (held // length * length)
