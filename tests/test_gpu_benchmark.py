"""benchmarks/gpu.sh without a GPU: figures, settings, refusals, both models.

What only a GPU can show is not tested here.
"""

import ast
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import gpu_needs, gpu_report, gpu_settings, gpu_turn
from configs import dos
from poison_jax import config as config_lib
from poison_jax.model import counts

_ROOT = pathlib.Path(__file__).parent.parent
_SCRIPT = _ROOT / "benchmarks" / "gpu.sh"
_H200 = "NVIDIA H200"


def _entry(name, rows, *results):
  return {
    "setting": name,
    "rows": rows,
    "results": list(results),
    "flags": "--config.train.micro_batches=1",
  }


def _record(**changes):
  """Ours: 1,000 tokens in 0.5 s; PyTorch: the same in 0.6 s."""
  return {
    "size": "600m",
    "length": 100,
    "run_length": 100,
    "batch": 20,
    "steps": 1_000,
    "parameters": 50,
    "flops": {"matmul": 240, "attention": 60},
    "ours": [
      _entry("slow", 10, {"seconds": [0.9, 0.9, 0.9], "peak_bytes": 5}),
      _entry(
        "fast",
        10,
        {"seconds": [0.5, 0.4, 7.0], "peak_bytes": 2_000_000_000},
        {"seconds": [0.5, 0.5, 0.1], "peak_bytes": 3_000_000_000},
      ),
      _entry("large", 99, {"failure": "out of memory"}),
    ],
    "theirs": [_entry("compiled", 10, {"seconds": [0.6], "peak_bytes": 10**9})],
    "accumulated": _entry("fast", 80, {"seconds": [2.0]}),
    "around": {
      "checkpoint": {
        "bytes": 7_200_000_000,
        "blocking_seconds": [3.0, 0.25],
        "seconds": [9.0, 4.0],
      },
      "evaluation": {"first_seconds": 21.0, "seconds": 1.0},
    },
    "untried": [],
  } | changes


def test_the_figures_are_those_reckoned_by_hand():
  found = gpu_report.figures(_record(), peak=1e6)
  assert found["tokens_per_second"] == 2_000  # 1,000 / median 0.5.
  assert found["torch_tokens_per_second"] == pytest.approx(1_000 / 0.6)
  assert found["ratio"] == pytest.approx(1.2)
  assert found["mfu"] == pytest.approx(2_000 * 300 / 1e6)
  assert found["mfu_matmul"] == pytest.approx(2_000 * 240 / 1e6)
  assert found["mfu_all_parameters"] == pytest.approx(2_000 * 360 / 1e6)
  assert found["torch_mfu"] == pytest.approx(0.5)
  assert found["peak_bytes"] == 3_000_000_000
  assert found["accumulated_tokens_per_second"] == 80 * 100 / 2
  # 1,000 steps of 2,000 tokens at 2,000 a second; 21 s and 19 times 1 s.
  assert found["evaluation_share"] == pytest.approx(40 / 1_000)


def test_bars_are_judged_on_an_h200_alone():
  record = _record()
  found = gpu_report.figures(record, peak=1e6)
  mfu, ratio, share = gpu_report.bars(record, found, _H200)
  assert mfu.endswith("60.0% (bar: at least 50.0%): reached")
  assert ratio.endswith("1.20 (bar: at least 1.10): reached")
  assert share.endswith("4.00% (bar: at most 2.00%): NOT reached")
  low = found | {"mfu": 0.4999, "ratio": 1.09, "evaluation_share": 0.02}
  mfu, ratio, share = gpu_report.bars(record, low, _H200)
  assert mfu.endswith("NOT reached") and ratio.endswith("NOT reached")
  assert share.endswith(": reached")
  for kind in ("cpu", "NVIDIA H100 80GB HBM3"):
    lines = gpu_report.bars(record, found, kind)
    assert all("not judged" in line for line in lines)
  other = _record(size="300m")
  assert not any("MFU" in b for b in gpu_report.bars(other, found, _H200))


def test_what_was_not_measured_says_so():
  record = _record(
    theirs=[],
    accumulated=None,
    around={"failure": "its process ended with -9"},
    no_torch="not measured (torch is not installed)",
    untried=["64 rows"],
  )
  found = gpu_report.figures(record, peak=None)
  assert found["ratio"] is None and found["mfu"] is None
  table = gpu_report.step_table([record], None)
  assert "not measured (torch is not installed)" in table
  around = gpu_report.around_table([record], None)
  assert "not measured (its process ended with -9)" in around
  lines = gpu_report.tried_lines(record)
  assert "600m, ours, large: out of memory" in lines
  assert "600m, 64 rows: not tried (no time left)" in lines
  failed = _entry("8 pieces", 80, {"failure": "out of memory"})
  lines = gpu_report.tried_lines(_record(accumulated=failed))
  assert "600m, ours, 8 pieces: out of memory" in lines
  bars = gpu_report.bars(record, found, _H200)
  assert all("not measured" in line and "not judged" in line for line in bars)


def test_tables_are_rectangular_markdown():
  nothing = _record(size="2b", ours=[], theirs=[], accumulated=None, around={})
  for make in (gpu_report.step_table, gpu_report.around_table):
    lines = make([_record(), nothing], 1e6).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("size", gpu_settings.OURS)
def test_settings_are_legal_and_their_flags_make_the_same_step(size):
  batch = dos.SIZES[size].batch
  for ours in (*gpu_settings.OURS[size], gpu_settings.PLAIN):
    config = gpu_settings.make_config(
      size, ours, length=2048, folder="there", trial=False
    )
    assert config.train.batch == ours.rows
    tree = dos.get_config(f"size={size}")
    for flag in ours.flags(batch).split():
      key, _, value = flag.removeprefix("--config.").partition("=")
      config_lib.check_override(key, value)
      with tree.unlocked():
        tree.update_from_flattened_dict({key: _value(value)})
    run = config_lib.from_config_dict(tree)
    assert run.model == config.model
    assert run.runtime == config.runtime
    assert run.train.loss_pieces == config.train.loss_pieces
    assert run.train.batch // run.train.micro_batches == ours.rows


def _value(text):
  try:
    return ast.literal_eval(text)
  except ValueError:
    return text


def test_several_micro_batches_make_a_longer_step():
  ours = dataclasses.replace(gpu_settings.OURS["600m"][0], micro_batches=8)
  config = gpu_settings.make_config(
    "600m", ours, length=2048, folder="there", trial=False
  )
  assert config.train.batch == 8 * ours.rows
  assert config.train.micro_batches == 8


def test_a_turn_waits_for_the_steps_of_each_block(monkeypatch):
  now, done = [0.0], []
  monkeypatch.setattr(gpu_turn.time, "perf_counter", lambda: now[0])
  pending, waits = [], []

  def wait():
    waits.append(len(pending))
    now[0] += 0.5 * len(pending)
    done.extend(pending)
    pending.clear()

  timed = gpu_turn.time_steps(lambda: pending.append(1), wait, seconds=2)
  assert timed["seconds"] == [0.5] * 3
  assert timed["steps"] == 4
  # The first step compiles; two more warm up; one is a measure.
  assert waits == [1, 2, 1, 4, 4, 4]
  assert len(done) == sum(waits)


@pytest.mark.parametrize(
  "error",
  [
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
  ],
)
def test_running_out_of_memory_is_told_from_other_failures(error):
  assert gpu_turn.failure(error) == "out of memory"
  assert gpu_turn.failure(ValueError("a\nb")) == "ValueError: a b"


def test_a_bare_python_is_told_what_it_lacks():
  done = subprocess.run(
    [sys.executable, "-I", "-S", _ROOT / "benchmarks" / "gpu_needs.py"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert "ml-collections" in line and "PYTHON=" in line
  assert gpu_needs.missing(["json", "no_such_package.part"]) == [
    "no_such_package.part"
  ]


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["5b"], "size '5b': must be one of 1m, 150m, 300m, 600m, 2b"),
    (["1m"], "size '1m' is for --device=cpu"),
    (["600m", "--length=128"], "a GPU is measured at 2048"),
    (["--device=tpu"], "--device"),
  ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
  arguments, said, tmp_path
):
  out = tmp_path / "out"
  done = _run(*arguments, f"--out={out}")
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert said in line
  assert not out.exists()


def test_without_a_gpu_it_says_so(tmp_path):
  done = _run("600m", f"--out={tmp_path}", CUDA_VISIBLE_DEVICES="")
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: JAX finds no NVIDIA GPU (")


@pytest.mark.slow
def test_the_script_runs_through_on_a_cpu(tmp_path):
  done = _run(
    "--device=cpu", "--length=192", "--seconds=0.1", f"--out={tmp_path}"
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("A TRIAL OF THE SCRIPT ON A CPU: NO GPU RESULT")
  report = json.loads((tmp_path / "gpu.json").read_text())
  (record,) = report["sizes"]
  assert record["figures"]["tokens_per_second"] > 0
  assert record["figures"]["accumulated_tokens_per_second"] > 0
  assert record["around"]["evaluation"]["seconds"] > 0
  assert record["around"]["checkpoint"]["blocking_seconds"][-1] > 0
  assert len(record["ours"]) == len(gpu_settings.OURS["1m"])


@pytest.mark.slow
def test_pytorchs_model_has_as_many_parameters():
  python = _torch_python()
  if python is None:
    pytest.skip("no PyTorch: bash benchmarks/train_step.sh makes build/torch")
  code = """
import json, sys, torch
from benchmarks import gpu_torch
for shape, tied in json.loads(sys.argv[1]):
  with torch.device("meta"):
    model = gpu_torch.Model(tied=tied, checkpointed=False, **shape)
  print(sum(p.numel() for p in model.parameters()))
"""
  asked, expected = [], []
  for size in gpu_settings.OURS:
    model = gpu_settings.make_run(size).model
    vocabulary = gpu_settings.vocabulary(size)
    shape = gpu_settings.torch_shape(size, length=2048)
    asked.append([shape, model.tied_embeddings])
    expected.append(counts.count_parameters(model, vocabulary).total)
  done = subprocess.run(
    [python, "-c", code, json.dumps(asked)],
    cwd=_ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert list(map(int, done.stdout.split())) == expected


def _torch_python():
  """Returns the Python that benchmarks/gpu.sh would take for PyTorch."""
  named = os.environ.get("TORCH_PYTHON"), _ROOT / "build/torch/bin/python"
  for python in (*filter(None, named), sys.executable):
    with_torch = [python, "-c", "import torch"]
    try:
      done = subprocess.run(with_torch, capture_output=True)
    except OSError:
      continue
    if done.returncode == 0:
      return str(python)
  return None


def _run(*arguments, **environment):
  """Runs the script with this Python, and without PyTorch."""
  return subprocess.run(
    ["bash", _SCRIPT, *arguments],
    env=os.environ | {"PYTHON": sys.executable} | environment,
    capture_output=True,
    text=True,
  )
