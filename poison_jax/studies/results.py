"""A study read as far as it got: outcomes of cells, and what is missing.

A cell that can't be read takes nothing away from the others: it stands in
`Results.missing` with its reason. One that the study's own rule stopped early
is neither missing nor unfinished: it is censored, `Results.triaged`.
"""

import dataclasses

import numpy as np

from poison_jax import config as config_lib
from poison_jax.config import Config
from poison_jax.data.folder import Folder
from poison_jax.data.manifest import read_manifest
from poison_jax.errors import CheckFailed, UserError
from poison_jax.poison import ledger as ledger_lib
from poison_jax.studies import runs as runs_lib
from poison_jax.studies.grid import endings, states
from poison_jax.studies.grid.axes import REPLICATES, TRAINING_SEEDS
from poison_jax.studies.grid.claims import Claims
from poison_jax.studies.grid.plan import Plan
from poison_jax.studies.grid.pricing import short
from poison_jax.studies.grid.states import Kind, State
from poison_jax.studies.grid.study import Cell
from poison_jax.studies.origins import Entry, make_entries
from poison_jax.studies.outcomes import CUTS, Outcome, Poisons, Rung
from poison_jax.studies.runs import Run
from poison_jax.training import workdir
from poison_jax.training.metrics import METRICS

# Settings that tell runs of one rung apart; all others make another rung.
_WITHIN = ("poisons", "arm", *REPLICATES)
# Where a file of a finished cell is lost.
_MEND = "restore the folder, or delete it and give run --retry"


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
      run = _read_run(plan, state)
    except (UserError, CheckFailed) as error:
      missing.append(Missing(cell, None, str(error)))
      continue
    except OSError as error:  # A folder in place of a file, no permission.
      where = error.filename or plan.path(cell)
      reason = f"{where} can't be read: {error.strerror or error}"
      missing.append(Missing(cell, None, reason))
      continue
    if run.ledger is None or run.evaluated_step is None:
      missing.append(Missing(cell, state.kind, _why_no_evaluation(state)))
      continue
    found.append((state, run, _read_poisons(run)))
  entries = make_entries([run for _, run, _ in found])
  stores: dict[str, dict | None] = {}
  seeds = _training_seeds(plan)
  outcomes = [
    _outcome(state, entry, poisons, seeds[state.cell.hash], stores)
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


def _read_run(plan: Plan, state: State) -> Run:
  """Reads a cell's run; of its generations, those of the last evaluation.

  Raises:
    UserError, CheckFailed: a file is damaged, or it is another run's, or a cell
      that is done has lost one.
    OSError: a file can't be read.
  """
  cell = state.cell
  path = plan.path(cell)
  if _was_done(state) and not _begun(plan, cell):
    raise CheckFailed(
      f"{path}/{workdir.CONFIG} is missing, though the cell is done: {_MEND}"
    )
  run = runs_lib.read_run(path)
  if run.config_hash != cell.hash:
    raise UserError(
      f"{path} holds the run {run.config_hash}, not this cell's: {_MEND}"
    )
  _check_whole(run, state)
  kept = {
    (step, kind): given
    for (step, kind), given in run.generations.items()
    if step == run.evaluated_step
  }
  trained_by = state.ending.code_versions if state.ending else ()
  return dataclasses.replace(
    run,
    name=cell.label or cell.hash,
    code_version=" ".join(trained_by) or run.code_version,
    generations=kept,
  )


def _was_done(state: State) -> bool:
  """Says whether a cell came to its end, whatever its files say now."""
  ending = state.ending
  came = ending is not None and ending.result == endings.DONE
  return came and state.kind is not Kind.RUNNING  # Again, if it is run anew.


def _check_whole(run: Run, state: State) -> None:
  """Raises CheckFailed where a run's files say too little, or too much."""
  done = _was_done(state)
  if run.ledger is None:
    if done:
      raise CheckFailed(
        f"{run.path}/{ledger_lib.FILE} is missing, though the cell is done: "
        f"{_MEND}"
      )
    return
  if run.last_step is not None and run.last_step > run.steps:
    raise CheckFailed(
      f"{run.path}/{METRICS} is damaged: it tells of step {run.last_step}, and "
      f"the run has {run.steps}: {_MEND}"
    )
  if done and run.evaluated_step != run.steps:
    raise CheckFailed(
      f"{run.path}/{METRICS} is damaged: it has no evaluation at step "
      f"{run.steps}, the run's last, though the cell is done: {_MEND}"
    )


def _read_poisons(run: Run) -> Poisons:
  table = workdir.read_ledger(run.path)
  steps_N = table["step"].to_numpy().astype(np.int64)
  tokens_N = table["tokens"].to_numpy().astype(np.int64)
  order_N = np.argsort(steps_N, kind="stable")
  return Poisons(steps_N[order_N], tokens_N[order_N])


def _training_seeds(plan: Plan) -> dict[str, int | str]:
  """Returns the seed of each cell's training, by hash.

  The run's own seed; where cells differ in other seeds of the training, which
  are then pinned, "0 init=1 order=2". All are of one type, and can be sorted.
  `seeds.sampling` is none: it changes the prompts, and not the model.
  """
  flat = [config_lib.flatten(cell.config) for cell in plan.cells]
  varied = [
    name
    for name in TRAINING_SEEDS
    if name != "seed" and len({fields[name] for fields in flat}) > 1
  ]
  found: dict[str, int | str] = {}
  for cell, fields in zip(plan.cells, flat, strict=True):
    pins = [
      f"{name.removeprefix('seeds.')}={fields[name]}"
      for name in varied
      if fields[name] is not None
    ]
    seed = fields["seed"]
    found[cell.hash] = " ".join([str(seed), *pins]) if varied else seed
  return found


def _outcome(
  state: State,
  entry: Entry,
  poisons: Poisons,
  seed: int | str,
  stores: dict,
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
    seed=seed,
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
