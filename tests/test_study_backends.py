"""Where cells run: cores and GPUs, a SLURM array, TPU slices.

SLURM and Google Cloud are the programs of tests/fake_cloud.py, the bucket that
of tests/fake_bucket.py.
"""

import os
import pathlib
import shlex
import signal
import subprocess

import fake_cloud
import pytest
from fake_bucket import FakeBuckets
from small_study import ROOT, make_plan, until

from poison_jax.data.folder import Folder
from poison_jax.errors import Stopped, UserError
from poison_jax.studies.grid import attempts, backends, dispatch, endings
from poison_jax.studies.grid import plan as plan_lib
from poison_jax.studies.grid.states import Kind
from poison_jax.training.stop import StopSignals

_SLICE = ("--project=p", "--zone=us-east5-a", "--type=v5p-16", "--spot")


@pytest.fixture(name="cloud")
def _cloud(tmp_path):
  cloud = fake_cloud.FakeCloud(tmp_path / "cloud")
  yield cloud
  cloud.close()


# This machine.


def _cores(monkeypatch, *cores):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores))


def test_each_cell_has_a_core_of_its_own(monkeypatch, tmp_path):
  _cores(monkeypatch, 3, 1, 7, 5)
  plan = make_plan(tmp_path)
  local = backends.Local(None)
  starts = [
    local.start(plan, plan.cells[i : i + 1], i) for i in range(local.slots)
  ]
  assert [start.cores for start in starts] == [(1,), (3,), (5,), (7,)]
  assert str(starts[1]).startswith("taskset -c 3 ")
  assert starts[1].command[-1] == f"--workdir={plan.path(plan.cells[1])}"


def test_fewer_cells_at_once_share_all_cores(monkeypatch, tmp_path):
  _cores(monkeypatch, 0, 1, 2, 3, 4)
  plan = make_plan(tmp_path)
  local = backends.Local(2)
  starts = [local.start(plan, plan.cells[:1], slot) for slot in (0, 1)]
  assert [start.cores for start in starts] == [(0, 2, 4), (1, 3)]
  for slots in (0, 6, -1):
    with pytest.raises(UserError, match=rf"--slots={slots}: there are 5 core"):
      backends.Local(slots)


def test_each_cell_has_a_gpu_of_its_own(monkeypatch, tmp_path):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5")
  plan = make_plan(tmp_path)
  local = backends.Local(None)
  assert local.slots == 2
  start = local.start(plan, plan.cells[:1], 1)
  assert start.environment == {"CUDA_VISIBLE_DEVICES": "GPU-5"}
  assert start.cores == ()
  with pytest.raises(UserError, match="there are 2 GPU"):
    backends.Local(3)
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # None may be seen.
  assert backends.Local(None).start(plan, plan.cells[:1], 0).environment == {}


def test_a_cell_really_runs_on_its_cores(tmp_path):
  core = min(os.sched_getaffinity(0))
  command = ("sh", "-c", "grep Cpus_allowed_list /proc/self/status")
  log = tmp_path / "log"
  attempt = attempts.begin(
    make_plan(tmp_path / "s").cells[:1],
    backends.Start(command, {}, (core,)),
    log=str(log),
    steps={},
  )
  assert attempt.process.wait() == 0
  assert log.read_text().split() == ["Cpus_allowed_list:", str(core)]


def test_a_program_that_is_missing_is_named(tmp_path):
  attempt = attempts.begin(
    make_plan(tmp_path / "s").cells[:1],
    backends.Start(("no-such-program",), {}, ()),
    log=str(tmp_path / "log"),
    steps={},
  )
  assert attempt.process.wait() == 2
  assert attempt.last_line() == "no-such-program: No such file or directory"


# SLURM.

_ARRAY = (
  "sbatch --parsable --partition=gpu '--comment=two words' --array=0-3"
  " launch/slurm_study.sbatch --workdir={} --retry"
)


def test_an_array_of_dispatchers_shares_the_study(tmp_path):
  plan = make_plan(tmp_path / "s")
  options = ["--partition=gpu", "--comment=two words"]
  command = backends.slurm_command(plan, 4, options, ["--retry"])
  assert shlex.join(command) == _ARRAY.format(tmp_path / "s")
  in_bucket = make_plan("gs://b/s")
  command = backends.slurm_command(in_bucket, None, [], [])
  assert command[2:] == [
    "--array=0-0", "launch/slurm_study.sbatch", "--workdir=gs://b/s",
  ]  # fmt: skip
  for option in ("--array=0-7", "gpu"):
    with pytest.raises(UserError, match=f"{option} after --: give options of"):
      backends.slurm_command(plan, 1, [option], [])
  with pytest.raises(UserError, match="--slots=0: must be 1 or more"):
    backends.slurm_command(plan, 0, [], [])


def test_what_sbatch_says_is_told(cloud, monkeypatch):
  monkeypatch.setenv("PATH", str(cloud.folder / "bin"))
  cloud.rule("^sbatch", out="77;cluster\n")
  command = ["sbatch", "--parsable", "launch/slurm_study.sbatch"]
  assert backends.submit(command) == "77"
  cloud.rule("^sbatch", code=1, err="sbatch: error: no such\npartition\n")
  with pytest.raises(UserError, match="refused the array: .*no such partition"):
    backends.submit(command)
  backends.need_slurm()
  monkeypatch.setenv("PATH", "/nowhere")
  with pytest.raises(UserError, match="sbatch isn't on the PATH"):
    backends.need_slurm()


@pytest.fixture(name="job")
def _job(cloud):
  """The environment of a job of the array."""
  cloud.run("worker.sh", "setup")
  return {
    "SLURM_JOB_ID": "78",
    "SLURM_ARRAY_JOB_ID": "77",
    "SLURM_ARRAY_TASK_ID": "1",
    "SLURM_NTASKS": "1",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_SUBMIT_DIR": str(cloud.checkout),
  }


def _job_run(cloud, job, *codes):
  (cloud.folder / "codes").write_text("".join(f"{code}\n" for code in codes))
  given = ("--workdir=/shared/s", "--retry")
  return cloud.run("slurm_study.sbatch", *given, **job)


def test_a_job_is_a_dispatcher_and_its_dry_run_prints_it(cloud, job):
  dry = cloud.run("slurm_study.sbatch", "--dry-run", "--workdir=/shared/s")
  assert dry.stdout.splitlines() == [
    "export XLA_CLIENT_MEM_FRACTION=0.92",
    ".venv/bin/python -m poison_jax.study run --workdir=/shared/s",
    "# then, after exit code 75:",
    "squeue --noheader --format=%T --jobs=JOB",
    "scontrol requeue JOB",
  ]
  result = _job_run(cloud, job, 0)
  assert result.returncode == 0, result.stderr
  assert cloud.starts("here") == [
    "-m poison_jax.study run --workdir=/shared/s --retry"
  ]


def test_a_job_queues_again_after_75_and_only_then(cloud, job):
  cloud.rule("^squeue", out="RUNNING\n")
  result = _job_run(cloud, job, 75, 3)
  assert result.returncode == 75, result.stderr
  assert cloud.calls[-1] == "scontrol requeue 78"
  before = cloud.calls
  assert _job_run(cloud, job, 75, 3).returncode == 3  # Cells have failed.
  assert cloud.calls == before


def test_a_job_that_was_cancelled_stays_so(cloud, job):
  cloud.rule("^squeue", out="CANCELLED\n")
  result = _job_run(cloud, job, 75)
  assert result.returncode == 75 and "the job is CANCELLED" in result.stderr
  assert not any(call.startswith("scontrol") for call in cloud.calls)


def test_the_notice_before_the_limit_reaches_the_dispatcher(cloud, job):
  cloud.rule("^squeue", out="RUNNING\n")
  (cloud.folder / "codes").write_text("wait\n")
  script = subprocess.Popen(
    ["bash", "launch/slurm_study.sbatch", "--workdir=/shared/s"],
    cwd=cloud.checkout,
    env=cloud.environment() | job,
    stdout=subprocess.DEVNULL,
  )
  until(lambda: cloud.starts("here"))
  script.send_signal(signal.SIGTERM)
  assert script.wait(timeout=120) == 75
  assert cloud.calls[-1] == "scontrol requeue 78"


@pytest.mark.parametrize(
  ("arguments", "variables", "says"),
  [
    (["--workdir=/s"], {"SLURM_JOB_ID": ""}, "submit it: python -m"),
    ([], {}, "--workdir=FOLDER is missing"),
    (["--workdir=/s"], {"SLURM_JOB_NUM_NODES": "2"}, "a job of 2 nodes and 1"),
    (["--workdir=/s"], {"SLURM_NTASKS": "8"}, "--slots is the number of nodes"),
    (["--workdir=/s"], {"SLURM_SUBMIT_DIR": "/"}, "submit from the checkout"),
  ],
)
def test_a_job_that_cannot_begin_says_why(
  cloud, job, arguments, variables, says
):
  result = cloud.run("slurm_study.sbatch", *arguments, **job | variables)
  assert result.returncode == 2
  (line,) = result.stderr.splitlines()
  assert line.startswith("error: ") and says in line


def test_help_is_the_head_of_the_script(cloud):
  result = cloud.run("slurm_study.sbatch", "--help")
  assert result.returncode == 0 and "a job is a dispatcher" in result.stdout
  assert "SBATCH" not in result.stdout and "set -euo" not in result.stdout


# TPU slices.


@pytest.fixture(name="bucket")
def _bucket(monkeypatch):
  with FakeBuckets() as bucket:
    for name, value in bucket.environment.items():
      monkeypatch.setenv(name, value)
    yield bucket


@pytest.fixture(name="study")
def _study(cloud, bucket, monkeypatch, tmp_path):
  """A study in a bucket, of two cells, from a checkout that pretends."""
  monkeypatch.setattr(backends, "_LAUNCH", cloud.checkout / "launch")
  for name, value in cloud.environment().items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(dispatch, "_LOOKED_EVERY", 0.05)
  monkeypatch.setattr(dispatch, "_SHOWN_EVERY", 0.05)
  monkeypatch.chdir(tmp_path)
  plan = make_plan("gs://bucket/s", seeds=(0,), store="gs://bucket/store")
  plan_lib.write(plan)
  for cell in plan.cells:  # What pretends to train writes none.
    Folder(plan.path(cell)).write("metrics/0000000012.jsonl", b'{"step": 12}\n')
  return plan


def _name(plan, number):
  return f"small-{plan.cells[number].hash[:8]}"


def _run(plan, *, stop=None, show=lambda *_: None):
  tpu = backends.Tpu(2, _SLICE)
  tpu.check(plan)
  return dispatch.run(
    plan,
    tpu,
    logs="logs",
    choices=dispatch.Choices(),
    stop=stop or StopSignals(),
    show=show,
  )


def test_the_command_of_a_cell_names_slice_bucket_and_folder():
  plan = make_plan("gs://bucket/deep/s", store="gs://bucket/store")
  words = str(backends.Tpu(None, _SLICE).start(plan, plan.cells[:1], 0))
  script = os.path.relpath(ROOT / "launch" / "tpu_vm.sh")
  assert words == (
    f"bash {script} up --name={_name(plan, 0)} --bucket=gs://bucket"
    " --delete-when-done --project=p --zone=us-east5-a --type=v5p-16 --spot"
    f" -- --workdir=gs://bucket/deep/s/cells/{plan.cells[0].hash}"
  )


def test_each_cell_has_a_slice_that_is_given_back(study, cloud):
  ended = _run(study)
  assert [state.kind for state in ended] == 2 * [Kind.DONE]
  for number, cell in enumerate(study.cells):
    name = _name(study, number)
    for verb in ("create", "delete"):
      made = f"gcloud compute tpus queued-resources {verb} {name} "
      assert sum(call.startswith(made) for call in cloud.calls) == 1
    # The config.json of its folder is all that the training is given.
    assert cloud.starts(f"{name}-w-0") == cloud.starts(f"{name}-w-1")
    assert cloud.starts(f"{name}-w-0") == [
      f"-m poison_jax.train --workdir=gs://bucket/s/cells/{cell.hash}"
    ]


def test_the_runs_exit_code_is_the_cells(study, cloud):
  (cloud.folder / "codes").write_text("3\n")
  ended = _run(study)
  assert [state.kind for state in ended] == 2 * [Kind.FAILED]
  ending = endings.read(study.workdir, study.cells[0].hash)
  assert ending.code == 3 and "a check failed" in ending.message


def test_a_dispatcher_that_is_stopped_lets_the_slices_train(study, cloud):
  (cloud.folder / "codes").write_text("wait\n0\n")
  names = [_name(study, number) for number in (0, 1)]

  def have_said(words):
    logs = [pathlib.Path("logs", f"{c.hash}.log") for c in study.cells]
    return all(log.exists() and words in log.read_text() for log in logs)

  def stop_dispatcher(*_):
    if have_said("started: "):
      os.kill(os.getpid(), signal.SIGTERM)

  with (
    StopSignals() as stop,
    pytest.raises(Stopped, match="until then they go on, and cost"),
  ):
    _run(study, stop=stop, show=stop_dispatcher)
  for cell in study.cells:
    assert endings.read(study.workdir, cell.hash).result == endings.STOPPED
  assert not any("queued-resources delete" in call for call in cloud.calls)
  assert [len(cloud.starts(f"{name}-w-0")) for name in names] == [1, 1]

  # The next one watches; what stops a training then has it begin again.
  def stop_training(*_):
    if have_said("is running already") and running:
      for pid in running:
        os.kill(int(pid.read_text()), signal.SIGTERM)
      running.clear()

  running = list(cloud.folder.glob("hosts/*/poison_jax/jobs/train/pid"))
  assert len(running) == 4
  ended = _run(study, show=stop_training)
  assert [state.kind for state in ended] == 2 * [Kind.DONE]
  assert [len(cloud.starts(f"{name}-w-0")) for name in names] == [2, 2]
  asked = [c for c in cloud.calls if "queued-resources create" in c]
  assert len(asked) == 2


@pytest.mark.parametrize(
  ("workdir", "store", "options", "says"),
  [
    ("studies/a", "gs://b/s", _SLICE, "must be in a bucket, as --workdir=gs:"),
    ("gs://b/a", "stores/s", _SLICE, "store stores/s isn't in a bucket"),
    ("gs://b/a", "gs://b/s", _SLICE[:2], "launch/tpu_vm.sh: --type is missing"),
    ("gs://b/a", "gs://b/s", ("--tpye=a",), "unknown argument '--tpye=a'"),
    ("gs://b/a", "gs://b/s", ("--name=a",), "--name=a after --: the study"),
    ("gs://b/a", "gs://b/s", ("--", "--x"), "-- after --: the study"),
  ],
)
def test_what_no_slice_could_train_is_refused_before(
  workdir, store, options, says
):
  plan = make_plan(workdir, store=store)
  with pytest.raises(UserError, match=says) as error:
    backends.Tpu(1, options).check(plan)
  assert "\n" not in str(error.value)
