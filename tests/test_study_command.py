"""The command from outside: plans, refusals, a study that is killed."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest
import small_run
from small_study import ROOT, make_plan, study_command, until

from poison_jax.data.folder import Folder
from poison_jax.studies.grid import plan as plan_lib
from poison_jax.training import workdir

_PAPER = "--study=configs/studies/paper.py"
_QUICK = "--study=configs/studies/quick.py"
_STEPS = 3000


def _lines(text):
  return [line.rstrip() for line in text.splitlines()]


# Planning.


def test_a_new_clone_plans_the_papers_study_and_writes_nothing(tmp_path):
  out = study_command("plan", _PAPER, f"--workdir={tmp_path}/new")
  assert "72 cells, 24 configurations: " in out
  assert "v5p:4x4x4 at an assumed 40% of its peak" in out
  (last,) = [line for line in _lines(out) if line.strip().startswith("all ")]
  assert last.split()[1] == "72"
  assert not (tmp_path / "new").exists()
  twins = study_command("plan", f"{_PAPER}:twins=true", "--mfu=0.5")
  rows = {tuple(line.split()[:3]) for line in _lines(twins)}
  assert {("all", "poisoned", "72"), ("all", "clean", "24")} <= rows
  assert "96 cells" in twins and "at an assumed 50%" in twins


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    ([], "study takes one of plan, run, status"),
    (["plam", _QUICK], "and flags; got plam"),
    (["plan"], "--study=FILE.py is missing"),
    (["plan", "--study=no.py"], "no such file"),
    (["plan", f"{_PAPER}:twin=true"], "'twin=true' is not known"),
    (["plan", _QUICK, "--topology=v5p"], "like v5p:4x4x4"),
    (["plan", _QUICK, "--mfu=2"], "--mfu=2.0: must be more than 0"),
    (["plan", _QUICK, "--prices=none.json"], "none.json"),
    (["plan", _QUICK, "--retry"], "--retry is nothing to study plan"),
    (["plan", _QUICK, "more"], "'more' is nothing to study plan"),
    (["run", _QUICK], "--workdir=FOLDER is missing"),
    (["run", "--workdir=W"], "W holds no study, study.json is missing"),
    (["run", _QUICK, "--workdir=W", "--slots=999"], "--slots=999: there are"),
    (["run", _QUICK, "--workdir=W", "--slost=1"], "slost"),
    (["run", _QUICK, "--workdir=W", "--on=cloud"], "on=cloud"),
    (["run", _QUICK, "--workdir=W", "--", "--spot"], "with --on=slurm or"),
    (["run", _QUICK, "--workdir=W", "--mfu=0.4"], "--mfu is nothing to study"),
    (["run", _QUICK, "--workdir=W", "--on=tpu"], "must be in a bucket"),
    (["run", _QUICK, "--workdir=W", "--together=0"], "must be 1 or more"),
    (
      ["run", _QUICK, "--workdir=W", "--on=tpu", "--together=2"],
      "a slice trains one cell",
    ),
    (["plan", _QUICK, "--together=2"], "--together is nothing to study plan"),
    (["status"], "--workdir=FOLDER is missing"),
    (["status", "--workdir=W"], "W holds no study"),
    (["status", "--workdir=W", _QUICK], "--study is nothing to study status"),
  ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, arguments, says):
  folder = tmp_path / "new"
  given = [word.replace("=W", f"={folder}") for word in arguments]
  line = study_command(*given, code=2)
  assert says.replace("W ", f"{folder} ") in line
  assert not folder.exists()


def test_a_dry_run_prints_the_command_of_each_cell(tmp_path):
  folder = tmp_path / "new"
  given = ("run", _QUICK, f"--workdir={folder}", "--dry_run")
  out = study_command(*given, "--slots=1").splitlines()
  assert out[0] == "# size=35k" or out[0].startswith("# poisons=0 seed=0")
  commands = [line for line in out if not line.startswith("#")]
  assert len(commands) == 6
  assert all(f"train --workdir={folder}/cells/" in c for c in commands)
  out = study_command(*given, "--on=slurm", "--slots=3", "--", "--partition=g")
  assert out == (
    "sbatch --parsable --partition=g --array=0-2 launch/slurm_study.sbatch "
    f"--workdir={folder}\n"
  )
  assert not folder.exists()


def test_an_array_is_submitted_once_the_study_is_written(tmp_path):
  programs = tmp_path / "bin"
  programs.mkdir()
  (programs / "sbatch").write_text(
    f'#!/bin/sh\necho "$PWD $*" >{tmp_path}/given\necho "77;cluster"\n'
  )
  (programs / "sbatch").chmod(0o755)
  folder = tmp_path / "new"
  out = study_command(
    *("run", _QUICK, f"--workdir={folder}", "--on=slurm", "--retry"),
    PATH=f"{programs}:{os.environ['PATH']}",
  )
  assert out.startswith("job 77: 1 node(s) run cells; ")
  assert (tmp_path / "given").read_text() == (
    f"{ROOT} --parsable --array=0-0 launch/slurm_study.sbatch "
    f"--workdir={folder} --retry\n"
  )
  assert len(plan_lib.read(str(folder)).cells) == 6


def test_the_status_of_a_study_that_nobody_has_run(tmp_path):
  plan_lib.write(make_plan(tmp_path / "s"))
  out = study_command("status", f"--workdir={tmp_path}/s")
  assert "4 cells: 4 missing; 0 of " in out and "left" not in out
  assert out.count(" missing ") >= 4


# A real study.


@pytest.fixture(name="store", scope="module")
def _store(tmp_path_factory):
  store = tmp_path_factory.mktemp("study") / "store"
  small_run.prepare(store)
  return store


@pytest.fixture(name="study", scope="module")
def _study(store):
  """The file of a study of two cells."""
  file = store.parent / "pair.py"
  file.write_text(
    "import sys\n"
    f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
    "import small_study\n\n\n"
    "def get_study(arguments):\n"
    "  study = small_study.make_study(\n"
    f"    store={str(store)!r}, doses=(0, 12), seeds=(0,))\n"
    f"  study.fixed['train.steps'] = {_STEPS}\n"
    "  study.fixed['train.log_every'] = 50\n"
    "  study.fixed['checkpoint.every'] = 500\n"
    "  return study\n"
  )
  return file


def _metrics(folder):
  lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
    for line in lines
  ]


def _trained(folder):
  """Returns the newest step of any cell; -1 before the first line."""
  files = folder.glob("cells/*/metrics.jsonl")
  lines = [line for file in files for line in file.read_text().splitlines()]
  whole = [json.loads(line)["step"] for line in lines if line.endswith("}")]
  return max(whole, default=-1)


@pytest.mark.slow
def test_a_study_that_is_killed_in_the_middle_goes_on_to_its_end(
  study, tmp_path
):
  folder = tmp_path / "s"
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "poison_jax.study", "run", "--slots=1"),
      *(f"--study={study}", f"--workdir={folder}"),
    ],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  until(lambda: _trained(folder) >= 0, seconds=240)
  out = study_command("status", f"--workdir={folder}")
  assert "1 running" in out
  assert f"process {process.pid} on {socket.gethostname()} runs " in out
  until(lambda: _trained(folder) >= 50, seconds=240)
  process.send_signal(signal.SIGTERM)
  said, error = process.communicate(timeout=240)
  assert process.returncode == 75, (said, error)
  assert f"study run --workdir={folder}" in error.splitlines()[-1]
  out = study_command("status", f"--workdir={folder}")
  assert "1 preempted" in out and "running" not in out

  out = study_command("run", f"--workdir={folder}", "--slots=1")
  assert "2 cells: 2 done" in out and "\x1b" not in out
  plan = plan_lib.read(str(folder))
  logs = [(folder / "logs" / f"{c.hash}.log").read_text() for c in plan.cells]
  assert sum("resuming at step" in log for log in logs) == 1
  resumed = plan.cells["resuming at step" in logs[1]]
  for cell in plan.cells:
    steps = [line["step"] for line in _metrics(plan.path(cell))]
    assert steps == sorted(set(steps)) and steps[-1] == _STEPS

  # As if made alone, the one that was killed too.
  alone = tmp_path / "alone"
  workdir.write_config(str(alone), resumed.config)
  subprocess.run(
    [sys.executable, "-m", "poison_jax.train", f"--workdir={alone}"],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.DEVNULL,
    check=True,
    timeout=300,
  )
  assert _metrics(plan.path(resumed)) == _metrics(alone)

  # And again nothing runs.
  before = Folder(plan.path(plan.cells[0])).read("metrics.jsonl")
  said = (folder / "logs" / f"{plan.cells[0].hash}.log").read_text()
  out = study_command("run", f"--workdir={folder}", f"--study={study}")
  assert "2 cells: 2 done" in out
  assert Folder(plan.path(plan.cells[0])).read("metrics.jsonl") == before
  assert (folder / "logs" / f"{plan.cells[0].hash}.log").read_text() == said


@pytest.mark.slow
def test_cells_together_are_killed_go_on_and_end_as_if_alone(study, tmp_path):
  folder = tmp_path / "s"
  given = ("--slots=1", "--together=2", "--drop_checkpoints")
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "poison_jax.study", "run", *given),
      *(f"--study={study}", f"--workdir={folder}"),
    ],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  until(lambda: _trained(folder) >= 50, seconds=240)
  assert "2 running" in study_command("status", f"--workdir={folder}")
  process.send_signal(signal.SIGTERM)
  error = process.communicate(timeout=240)[1]
  assert process.returncode == 75, error
  out = study_command("status", f"--workdir={folder}")
  assert "2 cells: 2 preempted" in out
  # One goes on in a process of its own, and then the other.
  out = study_command("run", f"--workdir={folder}", "--slots=1")
  assert "2 cells: 2 done" in out
  plan = plan_lib.read(str(folder))
  apart = tmp_path / "apart"
  study_command(
    *("run", f"--study={study}", f"--workdir={apart}"),
    *("--slots=1", "--drop_checkpoints"),
  )
  other = plan_lib.read(str(apart))
  for cell in plan.cells:
    found, expected = _metrics(plan.path(cell)), _metrics(other.path(cell))
    for key in ("step", "poisons_seen", "train/poison_tokens_seen"):
      assert [m[key] for m in found] == [m[key] for m in expected]
    assert [m.keys() for m in found] == [m.keys() for m in expected]
    # Later such a small model makes much of the last digit; test_together.py
    # has one that doesn't.
    loss = [next(m["train/loss"] for m in ms if m["step"] == 50)
            for ms in (found, expected)]  # fmt: skip
    assert loss[0] == pytest.approx(loss[1], rel=1e-5)
    checkpoints = [
      pathlib.Path(p.path(cell), "checkpoints").exists() for p in (plan, other)
    ]
    assert checkpoints == [True, False]  # Where they were to be dropped.


@pytest.mark.slow
def test_cells_that_fail_are_told_with_their_reason(study, tmp_path):
  text = study.read_text()
  file = tmp_path / "wrong.py"
  file.write_text(
    text.replace(
      "  return study",
      "  study.fixed['poison.payload_max'] = 500\n  return study",
    )
  )
  folder = tmp_path / "s"
  line = study_command("run", f"--study={file}", f"--workdir={folder}", code=3)
  assert line.startswith("error: 1 cell(s) failed, such as seed=0 poisons=12: ")
  assert "tokens, and a row has 64" in line
  assert f"their output is in {folder}/logs" in line
  out = study_command("status", f"--workdir={folder}")
  assert "2 cells: 1 done, 1 failed" in out
  assert out.count(" failed: ") == 1 and "tokens, and a row has 64" in out


@pytest.mark.slow
def test_two_dispatchers_on_a_new_study_wait_for_one_to_write_its_store(
  tmp_path,
):
  file = tmp_path / "one.py"
  file.write_text(
    "import sys\n"
    f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
    "import small_study\n\n\n"
    "def get_study(arguments):\n"
    "  return small_study.make_study(\n"
    f"    store={str(tmp_path / 'store')!r}, seeds=(0,))\n"
  )
  folder = tmp_path / "s"
  both = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "poison_jax.study", "run", "--slots=1"),
        *(f"--study={file}", f"--workdir={folder}"),
      ],
      cwd=ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for _ in range(2)
  ]
  ends = [(p.communicate(timeout=400)[0], p.returncode) for p in both]
  assert [code for _, code in ends] == [0, 0], ends
  assert "2 cells: 2 done" in study_command("status", f"--workdir={folder}")


@pytest.mark.slow
def test_several_hosts_train_a_cell_from_its_config_alone(store, tmp_path):
  plan = make_plan(
    tmp_path / "s",
    store=store,
    fixed={
      "store": str(store),
      "runtime.mesh.data": 2,
      "runtime.mesh.fsdp": -1,
    },
  )
  cell = plan.cells[1]
  plan_lib.write(plan)
  plan_lib.write_config(plan, cell)
  with socket.socket() as probe:
    probe.bind(("", 0))
    port = probe.getsockname()[1]
  hosts = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "poison_jax.train"),
        *(f"--workdir={plan.path(cell)}", f"--coordinator=localhost:{port}"),
        *("--processes=2", f"--process={number}"),
      ],
      cwd=ROOT,
      env={
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for number in range(2)
  ]
  ends = [(p.communicate(timeout=300)[0], p.returncode) for p in hosts]
  assert [code for _, code in ends] == [0, 0], ends
  assert _metrics(plan.path(cell))[-1]["step"] == cell.steps
  assert workdir.load_config(plan.path(cell)) == cell.config
