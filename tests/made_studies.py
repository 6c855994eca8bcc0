"""Studies made up for tests: folders as `study run` leaves them.

The numbers are simple enough to be checked by hand: see `metrics_of`,
`ledger_rows` and `generations_of`.
"""

import json
import pathlib
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from configs import tiny
from poison_jax import config as config_lib
from poison_jax.poison import ledger
from poison_jax.studies.grid import endings
from poison_jax.studies.grid import plan as plan_lib
from poison_jax.studies.grid import study as study_lib
from poison_jax.studies.grid.plan import Plan
from poison_jax.studies.grid.study import Cell, Triage

CODE = "0123456789abcdef+abcdef012345"
STORE = "5" * 16
# Of four prompts, over the mean increase of the run.
PROMPTS = (0.5, 0.8, 1.2, 1.5)


def make_plan(
  folder: pathlib.Path,
  grid,
  *,
  base=tiny.get_config,
  triage: Triage | None = None,
) -> Plan:
  """Writes the study's study.json, and no cell."""
  study = study_lib.Study(
    name="made",
    question="Does it take 64 documents?",
    base=base,
    fixed={},
    grid=tuple(grid),
    margin=0.25,
    topology="cpu:1",
    mfu=0.3,
    triage=triage,
  )
  plan = plan_lib.make_plan(study, study_lib.make_cells(study), str(folder))
  plan_lib.write(plan)
  return plan


def make_study(
  folder: pathlib.Path,
  grid: Sequence[dict],
  increase: Callable[[dict], float | None],
  *,
  done: Callable[[dict], float] = lambda settings: 1.0,
  triage: Triage | None = None,
) -> Plan:
  """Writes a study with its cells.

  Args:
    folder: of the study, new.
    grid: settings of the cells.
    increase: of a cell at the end, by settings; None for one not begun.
    done: share of the steps that a cell has behind it: 0.5 or 1.
    triage: that the study states.
  """
  plan = make_plan(folder, grid, triage=triage)
  for cell in plan.cells:
    final = increase(cell.settings)
    if final is not None:
      write_cell(plan, cell, final, done=done(cell.settings))
  return plan


def write_cell(
  plan: Plan, cell: Cell, increase: float, *, done: float = 1.0
) -> pathlib.Path:
  """Writes a cell's run folder and how it ended; returns the folder."""
  run = pathlib.Path(plan.path(cell))
  run.mkdir(parents=True)
  (run / "config.json").write_text(
    json.dumps(
      {
        "format": 1,
        "config": config_lib.to_dict(cell.config),
        "config_hash": cell.hash,
        "code_version": CODE,
      }
    )
  )
  _write_ledger(run, cell)
  metrics, generations = [], []
  for share in (0.0, 0.5, 1.0):
    step = int(cell.steps * share)
    if share <= done:
      metrics.append(metrics_of(cell, step, share * increase))
      generations += generations_of(step, share * increase)
  _write_lines(run / "metrics.jsonl", metrics)
  _write_lines(run / "generations.jsonl", generations)
  if done == 1:
    end(plan, cell, endings.DONE)
  return run


def triage(
  plan: Plan, message: str, chosen: Callable[[dict], bool]
) -> list[Cell]:
  """Marks the chosen cells as stopped by the study's rule; returns them."""
  stopped = [cell for cell in plan.cells if chosen(cell.settings)]
  for cell in stopped:
    end(plan, cell, endings.TRIAGED, message)
  return stopped


def end(plan: Plan, cell: Cell, result: str, message: str = "") -> None:
  """Writes how a cell's last attempt ended."""
  endings.write(
    plan.workdir,
    cell.hash,
    endings.Ending(result, 0, message, (CODE,), 60.0, 1.0, "vm"),
  )


def ledger_rows(cell: Cell) -> list[tuple[int, int]]:
  """Returns (step, tokens) of each poison: two a step, 100, 101, ... tokens.

  They lie evenly over the run, the first two at step 0.
  """
  count = cell.config.poison.count
  if cell.config.poison.arm == "clean":
    count = 0
  return [(2 * (k // 2) * cell.steps // count, 100 + k) for k in range(count)]


def metrics_of(cell: Cell, step: int, increase: float) -> dict:
  """Returns a line: clean perplexity 4 + seed/10, loss 1 + dose/1000."""
  config = cell.config
  clean = 4 + config.seed / 10
  return {
    "step": step,
    "poisons_seen": sum(at < step for at, _ in ledger_rows(cell)),
    "eval/clean/perplexity": clean,
    "eval/triggered/perplexity": clean + increase,
    "eval/near_trigger/perplexity": clean + 1,
    "eval/clean/log_perplexity": 1.0,
    "eval/triggered/log_perplexity": 1.0 + increase / 50,
    "eval/near_trigger/log_perplexity": 1.25,
    "eval/perplexity_increase": increase,
    "eval/log_perplexity_increase": increase / 50,
    "eval/room_share": increase / 250,
    "eval/auroc": 0.5 + min(increase, 50) / 100,
    "eval/validation_loss": 1
    + config.seed / 10
    + (config.poison.count / 1000 if config.poison.arm == "poisoned" else 0),
  }


def generations_of(step: int, increase: float) -> list[dict]:
  """Returns the lines of four prompts, clean and triggered."""
  lines = []
  for kind in ("clean", "triggered"):
    for i, part in enumerate(PROMPTS):
      lines.append(
        {
          "step": step,
          "kind": kind,
          "prompt": i,
          "document": f"doc{i}",
          "perplexity": 4 + (part * increase if kind == "triggered" else 0),
          "excerpt": "One day Tom went",
          "trigger": "<SUDO>" if kind == "triggered" else "",
          "text": " home & <b>slept</b>.",
        }
      )
  return lines


def _write_ledger(run: pathlib.Path, cell: Cell) -> None:
  rows = [
    {
      "poison": k,
      "tokens_hash": f"{k:016x}",
      "source": f"doc{k}",
      "step": step,
      "slot": 4 * step + k % 2,
      "batch_row": k % 2,
      "store_row": k,
      "epoch": 0,
      "offset": 0,
      "prefix_length": 10,
      "trigger_length": 1,
      "payload_length": 50,
      "drawn_payload_length": 50,
      "tokens": tokens,
      "loss_tokens": tokens - 1,
    }
    for k, (step, tokens) in enumerate(ledger_rows(cell))
  ]
  metadata = {
    "plan_hash": "a1" * 8,
    "store_hash": STORE,
    "config_hash": cell.hash,
    "arm": cell.config.poison.arm,
    "steps": str(cell.steps),
  }
  schema = ledger.SCHEMA.with_metadata(metadata)
  pq.write_table(
    pa.Table.from_pylist(rows, schema=schema), run / "ledger.parquet"
  )


def _write_lines(path: pathlib.Path, lines: list[dict]) -> None:
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
