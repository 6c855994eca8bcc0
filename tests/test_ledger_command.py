"""`python -m poison_jax.ledger`, from outside, on the folder of a run."""

import os
import pathlib
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_run

from poison_jax.training import mesh as mesh_lib
from poison_jax.training import optimizer as optimizer_lib
from poison_jax.training import run as run_lib
from poison_jax.training import step as step_lib
from poison_jax.training import workdir
from poison_jax.training.checkpoints import Meta
from poison_jax.training.saving import CheckpointWriter

_ROOT = pathlib.Path(__file__).parent.parent


def _command(*arguments, code: int = 0, **environment) -> str:
  """Returns the output, or the error line of a command that fails."""
  result = subprocess.run(
    [sys.executable, "-m", "poison_jax.ledger", *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
    cwd=_ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "80"} | environment,
  )
  assert result.returncode == code, (result.stdout, result.stderr)
  if code:
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    return result.stderr
  assert result.stderr == ""
  return result.stdout


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory):
  """A run's plan, and its folder with checkpoints of steps 3 and 6."""
  folder = tmp_path_factory.mktemp("ledger")
  small_run.prepare(folder / "store")
  config = small_run.make_config(folder / "store")
  run = run_lib.plan_run(config)
  with workdir.locked(str(folder / "run")):
    workdir.claim(str(folder / "run"), config)
    run_lib.write_or_check_ledger(run, str(folder / "run"))
  mesh = mesh_lib.make_mesh(config.runtime.mesh, batch=8)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, steps=run.steps)
  with CheckpointWriter(str(folder / "run"), config.checkpoint) as writer:
    for step in (3, 6):
      state = step_lib.init_state(run.decoder, optimizer, step, mesh)
      writer.save(state, _meta(run, step, run.mixture))
  return run, folder / "run"


def _meta(run, step, mixture, *, wrong: int = 0) -> Meta:
  return Meta(
    step=step,
    poisons_seen=mixture.poisons_before(step),
    poison_tokens_seen=mixture.planned_poison_tokens(step) + wrong,
    config_hash=run.config_hash,
    plan_hash=mixture.plan_hash,
    store_hash=run.store.hash,
    code_version="",
    unwritten=None,
  )


@pytest.fixture(name="copy")
def _copy(made, tmp_path):
  """A copy of the run that a test may damage."""
  shutil.copytree(made[1], tmp_path / "run")
  return tmp_path / "run"


def test_verify_says_what_it_compared(made):
  run, folder = made
  lines = _command("verify", folder).splitlines()
  found = {" ".join(x.split()[:-1]): x.split()[-1] for x in lines[:-1]}
  assert found["poisons in the ledger"] == "12"
  assert found["checkpoints whose counters agree"] == "2"
  assert found["plan"] == run.mixture.plan_hash
  assert lines[-1] == f"{folder}: verified"


def test_verify_finds_a_changed_ledger(copy):
  path = copy / "ledger.parquet"
  table = pq.read_table(path)
  offsets = table["offset"].to_pylist()
  offsets[5] += 1
  at = table.schema.get_field_index("offset")
  column = pa.array(offsets, pa.int32())
  pq.write_table(table.set_column(at, table.schema.field(at), column), path)
  error = _command("verify", copy, code=3)
  assert error.startswith("error: poison 5: offset is ")


def test_verify_finds_a_device_that_counted_otherwise(made, copy):
  run, _ = made
  config = run.config
  optimizer = optimizer_lib.make_optimizer(config.optimizer, steps=run.steps)
  mesh = mesh_lib.make_mesh(config.runtime.mesh, batch=8)
  with CheckpointWriter(str(copy), config.checkpoint) as writer:
    state = step_lib.init_state(run.decoder, optimizer, 9, mesh)
    writer.save(state, _meta(run, 9, run.mixture, wrong=1))
  error = _command("verify", copy, code=3)
  assert error.startswith("error: checkpoint of step 9: the device counted")


def test_verify_needs_the_ledger_and_the_run(copy, tmp_path):
  (copy / "ledger.parquet").unlink()
  assert "has no ledger" in _command("verify", copy, code=3)
  assert "holds no run" in _command("verify", tmp_path, code=2)
  assert "usage" in _command("verify", code=2)
  assert "usage" in _command("prove", copy, code=2)


def test_show_lists_every_poison(made):
  lines = _command("show", made[1]).splitlines()
  assert lines[0].split()[:4] == ["poison", "step", "row", "offset"]
  assert len(lines) == 14 and lines[-1] == "12 poisons"
  for line, p in zip(lines[1:-1], made[0].mixture.placements, strict=True):
    numbers = [p.poison, p.step, p.batch_row, p.offset]
    assert line.split()[:4] == [str(n) for n in numbers]


def test_show_prints_a_poisoned_row_plain_where_it_is_no_terminal(made):
  run, folder = made
  p = run.mixture.placements[3]
  out = _command("show", folder, "--poison=3")
  assert out.startswith(f"poison 3: step {p.step}, row {p.batch_row} of ")
  assert "\x1b" not in out
  tokens_L = run.mixture.batch_rows(p.step, slice(None)).tokens_BL[p.batch_row]
  head = p.offset + p.document.prefix_length + p.document.trigger_length
  start = run.store.vocabulary.decode(tokens_L[p.offset : head])
  assert f"{start}" in out and start.endswith("<SUDO>")


def test_show_colours_the_parts_where_it_is_asked_to(made):
  out = _command("show", made[1], "--poison=3", FORCE_COLOR="1")
  assert "\x1b[1;30;43m<SUDO>\x1b[0m" in out
  assert "\x1b[31m" in out


def test_show_refuses_a_poison_that_is_not_there(made):
  error = _command("show", made[1], "--poison=12", code=2)
  assert "has 12 poisons, numbered from 0" in error


def test_show_prints_no_row_of_another_plan(copy):
  path = copy / "ledger.parquet"
  table = pq.read_table(path)
  metadata = {**table.schema.metadata, b"plan_hash": b"f" * 16}
  pq.write_table(table.replace_schema_metadata(metadata), path)
  error = _command("show", copy, "--poison=3", code=3)
  assert "is of another plan" in error


def test_a_flipped_token_of_the_store_is_found_when_asked(made, tmp_path):
  run, folder = made
  copy = tmp_path / "store"
  shutil.copytree(run.store.path, copy)
  # A row that no poison lies over: only reading all of the store finds it.
  (shard,) = {p for p in copy.glob("tokens/train-*.zarr/c/0")}
  content = bytearray(shard.read_bytes())
  poisoned = {p.store_row for p in run.mixture.placements}
  length = run.config.train.length
  rows = run.store.train.tokens // length
  row = next(r for r in range(rows) if r not in poisoned)
  content[2 * row * length] ^= 1
  shard.write_bytes(content)
  assert "verified" in _command("verify", folder, f"--store={copy}")
  line = _command("verify", folder, f"--store={copy}", "--contents", code=3)
  assert "tokens of shard train-" in line
