"""Plans, runs and reports a whole study: a grid of runs.

  python -m poison_jax.study plan   --study=configs/studies/paper.py
  python -m poison_jax.study run    --study=configs/studies/tiny.py \\
    --workdir=studies/tiny
  python -m poison_jax.study status --workdir=studies/tiny
  python -m poison_jax.study report --workdir=studies/tiny

`plan` prints the cells with FLOPs, hours and price, and runs nothing. `run`
begins a study or goes on with it (then --workdir is enough), cell by cell;
stopped at any moment, or started twice, on one machine or on several that share
the folder, it runs no cell twice. It ends with the report. `status` shows every
cell. `report` writes report.html and figures/ into WORKDIR/report, or into
--out, from whatever is there: what is missing stands in the page. A cell that
can't be read is left out and named; the exit code is 3, the report is written.

Cells run on this machine; with --on=slurm, an array of --slots jobs each runs
cells on its node; with --on=tpu, launch/tpu_vm.sh makes a slice a cell, --slots
at once. What follows -- are options of sbatch or of that script:

  python -m poison_jax.study run --study=configs/studies/paper.py \\
    --workdir=gs://bucket/paper --on=tpu --slots=2 -- \\
    --project=p --zone=us-east5-a --type=v5p-128 --spot

Exit codes: 0 done; 2 what you gave can't be used; 3 cells have failed (`status`
says why, `run --retry` runs them again); 75 stopped by a signal, all saved.
"""

import os
import shlex
import time

from absl import flags
from rich.console import Console
from rich.text import Text

from poison_jax import command
from poison_jax.data.folder import Folder
from poison_jax.errors import CheckFailed, Stopped, UserError
from poison_jax.studies import costs
from poison_jax.studies.grid import backends, live, pricing, states, versions
from poison_jax.studies.grid import plan as plan_lib
from poison_jax.studies.grid import study as study_lib
from poison_jax.studies.grid.claims import Claims
from poison_jax.studies.grid.plan import Plan
from poison_jax.studies.grid.remaining import time_left
from poison_jax.studies.grid.states import Kind, State
from poison_jax.studies.grid.study import Cell
from poison_jax.training import alike
from poison_jax.training.stop import StopSignals
from poison_jax.training.topology import parse_topology

_WIDTH = 110  # Columns that a table has at least.
_STORE_LOOKED_EVERY = 5  # Seconds, while another process writes it.
_VERBS = ("plan", "run", "status", "report")

_STUDY = flags.DEFINE_string(
  "study", None, "The study's file, like configs/studies/paper.py:twins=true."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The study's folder, local or gs://bucket/folder."
)
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "plan: the slice to price it on; the study's by default."
)
_MFU = flags.DEFINE_float(
  "mfu", None, "plan: share of the peak, 0 to 1; the study's by default."
)
_PRICES = flags.DEFINE_string("prices", "configs/prices.json", "plan: prices.")
_ON = flags.DEFINE_enum(
  "on", "local", ["local", "slurm", "tpu"], "run: where the cells run."
)
_SLOTS = flags.DEFINE_integer(
  "slots",
  None,
  "run: cells at once, by default a GPU each or a core each; with --on=slurm "
  "jobs, with --on=tpu slices.",
)
_RETRY = flags.DEFINE_bool("retry", False, "run: failed cells as well.")
_MIX_CODE = flags.DEFINE_bool(
  "mix_code", False, "run: though other code made some of the cells."
)
_TOGETHER = flags.DEFINE_integer(
  "together",
  1,
  "run: cells at most that train in one program, where they are of one shape "
  "and order; python -m benchmarks.together tells how many pay on a device.",
)
_DROP_CHECKPOINTS = flags.DEFINE_bool(
  "drop_checkpoints", False, "run: deletes a cell's once it is done."
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "run: prints the commands of all cells instead."
)
_OUT = flags.DEFINE_string(
  "out", None, "report: its folder; --workdir/report by default."
)
# Flags that other verbs have no use for.
_ONLY_FOR = {
  "study": ("plan", "run"),
  "out": ("report",),
  **dict.fromkeys(("topology", "mfu", "prices"), ("plan",)),
  **dict.fromkeys(
    (
      *("on", "slots", "retry", "mix_code", "together", "drop_checkpoints"),
      "dry_run",
    ),
    ("run",),
  ),
}


def main(arguments: list[str]) -> None:
  """Does what the first argument says."""
  verb, *options = arguments or ["nothing"]
  if verb not in _VERBS:
    raise UserError(
      f"study takes one of {', '.join(_VERBS)}, and flags; got {verb}"
    )
  if options and (verb != "run" or _ON.value == "local"):
    raise UserError(
      f"{options[0]!r} is nothing to study {verb}"
      + (": options follow -- with --on=slurm or --on=tpu" * (verb == "run"))
    )
  for name, verbs in _ONLY_FOR.items():
    if flags.FLAGS[name].present and verb not in verbs:
      raise UserError(
        f"--{name} is nothing to study {verb}: it is for {' and '.join(verbs)}"
      )
  if verb == "run":
    _run(options)
  else:
    {"plan": _plan, "status": _status, "report": _report}[verb]()


def _plan() -> None:
  """Prints what a study is and costs."""
  study, plan = _planned()
  topology = parse_topology(_TOPOLOGY.value or study.topology)
  mfu = study.mfu if _MFU.value is None else _MFU.value
  if not 0 < mfu <= 1:
    raise UserError(f"--mfu={mfu}: must be more than 0 and at most 1")
  price = costs.read_price(_PRICES.value, topology.chip.name)
  console = Console(highlight=False)
  console.width = max(console.width, _WIDTH)  # Or a pipe's 80 cut numbers.
  console.print(Text(f"{study.name}: {study.question}"))
  console.print(pricing.table(plan.cells, topology, price, mfu=mfu))
  cost = pricing.total(plan.cells, topology, price, mfu=mfu)
  rows = pricing.configurations(plan.cells)
  console.print(
    Text(
      f"{cost.cells} cells, {len(rows)} configurations: {cost.flops:.3g} FLOPs "
      f"of training, {cost.hours:,.1f} h one after another on {topology.name} "
      f"at an assumed {mfu:.0%} of its peak, ${cost.dollars:,.0f} at "
      f"${price.chip_hour:.2f} a chip and hour ({price.date}, {price.source}); "
      "evaluations come on top. Nothing was run."
    ),
    soft_wrap=True,
  )


def _planned() -> tuple[study_lib.Study, Plan]:
  if not _STUDY.value:
    raise UserError(
      "--study=FILE.py is missing, such as configs/studies/tiny.py"
    )
  study = study_lib.load(_STUDY.value)
  cells = study_lib.make_cells(study)
  return study, plan_lib.make_plan(study, cells, _WORKDIR.value or "")


def _run(options: list[str]) -> None:
  """Runs the cells that aren't done; `options` are of the back end."""
  from poison_jax.studies.grid import dispatch

  if _TOGETHER.value < 1:
    raise UserError(f"--together={_TOGETHER.value}: must be 1 or more")
  workdir = _workdir()
  plan = _planned()[1] if _STUDY.value else plan_lib.read(workdir)
  if _ON.value == "slurm":
    _submit(plan, options)
    return
  slots = _SLOTS.value
  tpu = _ON.value == "tpu"
  backend = backends.Tpu(slots, options) if tpu else backends.Local(slots)
  if tpu and _TOGETHER.value > 1:
    raise UserError("--together: a slice trains one cell, with --on=tpu")
  backend.check(plan)
  if _DRY_RUN.value:
    for i, batch in enumerate(_batches(plan)):
      print(f"# {'; '.join(cell.label for cell in batch)}")
      print(backend.start(plan, batch, i % backend.slots))
    return
  found = _begun(plan)
  with StopSignals() as stop:
    _prepare_stores(found, stop)
    with live.Live(slots=backend.slots) as shown:
      ended = dispatch.run(
        plan,
        backend,
        logs=_logs(plan),
        choices=dispatch.Choices(
          retry=_RETRY.value,
          mix=_MIX_CODE.value,
          together=_TOGETHER.value,
          drop_checkpoints=_DROP_CHECKPOINTS.value,
        ),
        stop=stop,
        show=shown.show,
      )
  damaged: list[str] = []
  elsewhere = sum(state.kind is Kind.RUNNING for state in ended)
  if elsewhere:
    print(
      f"{elsewhere} cell(s) run elsewhere: who runs them reports in the end"
    )
  else:
    damaged = _report_on(plan)
  failed = [state for state in ended if state.kind is Kind.FAILED]
  if failed:
    raise CheckFailed(
      f"{len(failed)} cell(s) failed, such as {failed[0].cell.label}: "
      f"{failed[0].why}; their output is in {_logs(plan)}; run --retry runs "
      "them again"
    )
  _check_damage(damaged)


def _batches(plan: Plan) -> list[list[Cell]]:
  """Returns the cells in processes, as a dispatcher alone would begin them."""
  found: list[list[Cell]] = []
  for cell in plan.cells:
    for batch in found:
      alike_too = alike.can_train_together([batch[0].config, cell.config])
      if alike_too is None and len(batch) < _TOGETHER.value:
        batch.append(cell)
        break
    else:
      found.append([cell])
  return found


def _begun(plan: Plan) -> tuple[State, ...]:
  """Writes the study where it is given; returns how its cells stand.

  Raises:
    UserError: the folder holds another study, or cells of other code.
  """
  if _STUDY.value:
    plan_lib.write(plan)
  found = states.read_states(plan, Claims(plan.workdir))
  versions.check_code(plan, found=found, mix=_MIX_CODE.value)
  return found


def _submit(plan: Plan, options: list[str]) -> None:
  """Submits an array of dispatchers to SLURM, or prints how."""
  given = [
    f"--{flag.name}"
    for flag in (_RETRY, _MIX_CODE, _DROP_CHECKPOINTS)
    if flag.value
  ]
  if _TOGETHER.value > 1:
    given.append(f"--together={_TOGETHER.value}")
  command = backends.slurm_command(plan, _SLOTS.value, options, given)
  if _DRY_RUN.value:
    print(shlex.join(command))
    return
  backends.need_slurm()
  _begun(plan)
  job = backends.submit(command)
  print(
    f"job {job}: {_SLOTS.value or 1} node(s) run cells; look with squeue --me "
    f"and python -m poison_jax.study status --workdir={plan.workdir}"
  )


def _prepare_stores(found: tuple[State, ...], stop: StopSignals) -> None:
  """Writes the token stores that are missing, one dispatcher each."""
  from poison_jax.training import run as run_lib

  wanted = {
    state.cell.config.corpus.store: state.cell.config
    for state in found
    if state.kind is not Kind.DONE
  }
  waited = False
  while wanted:
    store, config = next(iter(wanted.items()))
    try:
      run_lib.prepare_missing_store(config, stop)
      del wanted[store]
    except UserError as error:
      if "another process is writing" not in str(error):
        raise
      if not waited:
        print(f"waiting: {error}", flush=True)
      waited = True
      for _ in range(_STORE_LOOKED_EVERY):
        if stop.received is not None:
          raise Stopped(f"stopped by {stop.name} before a cell ran") from None
        time.sleep(1)


def _logs(plan: Plan) -> str:
  """Returns where the cells' output goes: always on this machine."""
  if "://" in plan.workdir:
    return os.path.join("build", "studies", plan.name, "logs")
  return os.path.join(plan.workdir, "logs")


def _status() -> None:
  """Prints the state of each cell."""
  plan = plan_lib.read(_workdir())
  found = states.read_states(plan, Claims(plan.workdir))
  running = sum(state.kind is Kind.RUNNING for state in found)
  left = time_left(found, slots=max(1, running))
  console = Console(highlight=False)
  if not console.is_terminal:
    console.width = max(console.width, _WIDTH)
  console.print(live.table(found, rows=None))
  for line in (live.summary(found, left=left), *live.notes(found)):
    console.print(Text(line), soft_wrap=True)


def _report() -> None:
  """Reports the study as far as it got."""
  _check_damage(_report_on(plan_lib.read(_workdir())))


def _check_damage(damaged: list[str]) -> None:
  """Raises CheckFailed where the report had to leave cells out."""
  if damaged:
    raise CheckFailed(
      f"{len(damaged)} cell(s) can't be read and are not in the report, such "
      f"as {damaged[0]}"
    )


def _report_on(plan: Plan) -> list[str]:
  """Writes the report; returns a line for each cell that can't be read."""
  # It loads Matplotlib and SciPy, which the other verbs do without.
  from poison_jax.studies.study_report import reporting

  if _OUT.value and os.path.isfile(_OUT.value):
    raise UserError(f"--out={_OUT.value} is a file: name a folder")
  words = ["python", "-m", "poison_jax.study", "report"]
  words.append(f"--workdir={plan.workdir}")
  if _OUT.value:
    words.append(f"--out={_OUT.value}")
  return reporting.report(
    plan,
    out=Folder(_OUT.value or f"{plan.workdir.rstrip('/')}/report"),
    command=shlex.join(words),
    console=Console(highlight=False, soft_wrap=True),
  )


def _workdir() -> str:
  if not _WORKDIR.value:
    raise UserError("--workdir=FOLDER is missing: the study's folder")
  return _WORKDIR.value


if __name__ == "__main__":
  command.run(main)
