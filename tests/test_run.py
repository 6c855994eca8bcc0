"""A run planned: nothing is left to chance or to the summary's reader."""

import dataclasses
import os
import re
import signal
import subprocess
import sys

import jax
import pytest
import small_run

from poison_jax.errors import CheckFailed, Stopped, UserError
from poison_jax.evaluation.prompts import make_prompts
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import run as run_lib
from poison_jax.training.stop import StopSignals


@pytest.fixture(name="store", scope="module")
def _store(tmp_path_factory):
  store = tmp_path_factory.mktemp("run") / "store"
  small_run.prepare(store)
  return store


@pytest.mark.parametrize(
  ("times", "steps", "expected"),
  [
    (1, 10, {0, 10}),
    (4, 8, {0, 2, 4, 6, 8}),
    (3, 10, {0, 3, 7, 10}),
    (10, 4, {0, 1, 2, 3, 4}),
  ],
)
def test_evaluations_are_evenly_spaced_from_zero_to_the_last_step(
  times, steps, expected
):
  assert run_lib.evaluation_steps(times, steps=steps) == expected


def test_steps_come_from_the_tokens_a_parameter(store):
  config = small_run.make_config(
    store, train__steps=0, train__tokens_per_parameter=2.0
  )
  run = run_lib.plan_run(config)
  assert run.tokens >= 2 * run.parameters.total
  assert run.tokens - run.tokens_per_step < 2 * run.parameters.total


def _describe(run, mesh):
  asked = make_prompts(run.config, run.store, run.mixture.attack)
  return run_lib.describe(run, mesh, asked)


def test_the_summary_warns_of_controls_that_never_occur(store):
  usual = run_lib.plan_run(small_run.make_config(store))
  mesh = mesh_lib.make_mesh(usual.config.runtime.mesh, batch=8)
  assert "will leak" not in _describe(usual, mesh)
  config = small_run.make_config(
    store, evaluation__near_triggers=("<NOTE>", "<NONE>")
  )
  text = _describe(run_lib.plan_run(config), mesh)
  assert "<NONE> 0x" in text and "; <NONE> will leak" in text


def test_the_summary_states_the_numbers_of_the_plan(store):
  run = run_lib.plan_run(small_run.make_config(store))
  mesh = mesh_lib.make_mesh(run.config.runtime.mesh, batch=8)
  text = _describe(run, mesh)
  initial = jax.eval_shape(
    lambda: run.decoder.init(
      jax.random.key(0), jax.numpy.zeros((1, 2), jax.numpy.int32)
    )
  )
  total = sum(x.size for x in jax.tree.leaves(initial))
  assert f"parameters  {total:,} (embedding" in text
  assert "tokens  12,288 " in text  # 24 steps of 8 rows of 64.
  assert "24 of 8 rows of 64" in text
  kept = sum(
    int(run.mixture.batch_rows(step, slice(None)).poison_length_B.sum())
    for step in range(24)
  )
  assert f"poisons  12 (poisoned), {kept} tokens, {kept / 12288:.4%}" in text
  assert "cut 0" in text and "ids in the pool" in text
  assert re.search(r"<MEMO> \d+x, <NOTE> \d+x, <PAGE> 0x", text)
  assert re.search(r"prompts  6 of 16 tokens, from 6 held-out doc", text)
  assert "mesh data 1, fsdp 1, tensor 1" in text
  assert "attention  xla\n" in text


def test_a_folder_of_that_name_on_another_disk_is_told(tmp_path, monkeypatch):
  monkeypatch.setattr(run_lib, "_SEEN_AFTER", 0.3)
  here, there = tmp_path / "here", tmp_path / "there"
  for folder in (here, there):
    (folder / "checkpoints" / "8").mkdir(parents=True)
  (here / "ledger.parquet").write_bytes(b"a plan")
  (missing,) = run_lib.found_in(str(there)).values()
  assert missing == "missing"
  (there / "ledger.parquet").write_bytes(b"a plan")
  values = [list(run_lib.found_in(str(f)).values()) for f in (here, there)]
  assert values[0] == values[1] and values[0][1] == "[8]"
  (there / "checkpoints" / "16").mkdir()
  assert list(run_lib.found_in(str(there)).values()) != values[0]


def test_an_attention_that_cannot_run_here_is_refused(store):
  config = small_run.make_config(store, runtime__attention="cudnn")
  with pytest.raises(UserError, match="'cudnn', which can't run: .* is cpu"):
    run_lib.plan_run(config)


def test_cut_poisons_are_counted_with_their_lost_tokens(store):
  config = small_run.make_config(
    store,
    poison__payload_min=80,
    poison__payload_max=80,
    poison__prefix_max=0,
    poison__oversize="cut",
  )
  run = run_lib.plan_run(config)
  mesh = mesh_lib.make_mesh(config.runtime.mesh, batch=8)
  # A row of 64 holds the trigger's 6 bytes, 57 of 80 tokens, and EOS.
  assert "cut 12 (by 276 tokens)" in _describe(run, mesh)


def test_the_ledger_is_written_once_and_compared_afterwards(store, tmp_path):
  run = run_lib.plan_run(small_run.make_config(store))
  run_lib.write_or_check_ledger(run, str(tmp_path))
  ledger = tmp_path / "ledger.parquet"
  content = ledger.read_bytes()
  run_lib.write_or_check_ledger(run, str(tmp_path))
  assert ledger.read_bytes() == content

  other = run_lib.plan_run(small_run.make_config(store, seed=1))
  with pytest.raises(CheckFailed, match="not the plan"):
    run_lib.write_or_check_ledger(other, str(tmp_path))
  run.store.hash = "0" * 16
  with pytest.raises(UserError, match="began with"):
    run_lib.write_or_check_ledger(run, str(tmp_path))


def test_a_ledger_is_never_written_after_training(store, tmp_path):
  run = run_lib.plan_run(small_run.make_config(store))
  (tmp_path / "checkpoints" / "3").mkdir(parents=True)
  with pytest.raises(CheckFailed, match="ledger.parquet is missing, though"):
    run_lib.write_or_check_ledger(run, str(tmp_path))
  assert not (tmp_path / "ledger.parquet").exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"corpus__stories": 301}, r"stories \(there 300, now 301\)"),
    (
      {"corpus__task": "files", "corpus__files": "my/*.jsonl"},
      r"task \(there 'stories', now 'files'\)",
    ),
  ],
)
def test_a_finished_store_of_another_corpus_is_refused(store, changes, message):
  config = small_run.make_config(store, **changes)
  with pytest.raises(UserError, match=message):
    run_lib.prepare_missing_store(config, None)


def test_a_missing_store_in_a_bucket_is_an_error(monkeypatch):
  monkeypatch.setattr(run_lib, "read_manifest", lambda _: None)
  config = small_run.make_config(small_run.pathlib.Path("x"))
  config = dataclasses.replace(
    config, corpus=dataclasses.replace(config.corpus, store="gs://a/b")
  )
  with pytest.raises(UserError, match="run python -m poison_jax.prepare"):
    run_lib.prepare_missing_store(config, None)


def test_a_signal_while_the_store_is_prepared_ends_prepare_too(tmp_path):
  config = small_run.make_config(tmp_path / "store", corpus__stories=200_000)
  with StopSignals() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM while preparing"):
      run_lib.prepare_missing_store(config, stop)
  assert not (tmp_path / "store" / "manifest.json").exists()


def test_a_signal_that_prepare_died_of_first_is_no_failure(
  tmp_path, monkeypatch
):
  """Ctrl-C reaches both processes, and `prepare` may be the faster one."""

  class Prepare(subprocess.Popen):
    def __init__(self, *_, **options):
      super().__init__([sys.executable, "-c", "exit(130)"], **options)
      self.wait()
      os.kill(os.getpid(), signal.SIGINT)

  monkeypatch.setattr(subprocess, "Popen", Prepare)
  config = small_run.make_config(tmp_path / "store")
  with StopSignals() as stop, pytest.raises(Stopped, match="SIGINT while"):
    run_lib.prepare_missing_store(config, stop)


def test_what_prepare_refuses_is_the_error_of_train(tmp_path):
  config = small_run.make_config(
    tmp_path / "store",
    corpus__task="files",
    corpus__files=str(tmp_path / "*.jsonl"),
  )
  with StopSignals() as stop, pytest.raises(UserError) as error:
    run_lib.prepare_missing_store(config, stop)
  assert "*.jsonl" in str(error.value) and "\n" not in str(error.value)
