"""The launch scripts: every step as printed, executed, and where it fails."""

import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import fake_cloud
import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_SCRIPTS = sorted(
  path
  for path in (_ROOT / "launch").iterdir()
  if path.suffix in (".sh", ".sbatch")
)
_SLICE = (
  "--name=a", "--bucket=gs://b", "--project=p", "--zone=us-east5-a",
  "--type=v5p-16",
)  # fmt: skip
_KEPT = ("--name=a", "--bucket=gs://b")
_TRAIN = ("--", "--config=configs/dos.py:size=2b")


@pytest.fixture(name="cloud")
def _cloud(tmp_path):
  cloud = fake_cloud.FakeCloud(tmp_path / "cloud")
  yield cloud
  cloud.close()


def _codes(cloud, *codes, host=""):
  """Makes the training's successive starts end with these codes."""
  name = f"codes-{host}" if host else "codes"
  (cloud.folder / name).write_text("".join(f"{c}\n" for c in codes))


def _made(cloud):
  """Says how many times a slice was asked for."""
  return sum("queued-resources create" in call for call in cloud.calls)


def _until(condition):
  """Waits until a process in the background has come that far."""
  for _ in range(400):
    if condition():
      return
    time.sleep(0.05)
  raise AssertionError("it didn't come so far in twenty seconds")


def _is_one_error(result, code, *parts):
  assert result.returncode == code, result.stderr
  lines = result.stderr.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
  for part in parts:
    assert part in lines[0]


# Every script.


@pytest.mark.parametrize("path", _SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
  checker = pathlib.Path(sys.executable).parent / "shellcheck"
  if not checker.exists():
    pytest.skip("shellcheck isn't installed (requirements-test.txt)")
  result = subprocess.run(
    [checker, "-x", path.relative_to(_ROOT)],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["lounch"], "unknown command 'lounch'; known are"),
    (["run", "--nmae=a"], "unknown argument '--nmae=a'; known are --name"),
    (["run", "--bucket=gs://b"], "--name=''"),
    (["run", "--name=A_b", "--bucket=gs://b"], "--name='A_b'"),
    (["run", "--name=a", "--bucket=b"], "--bucket='b'"),
    (["run", *_KEPT, "--project=p", "--type=v5p-8"], "--zone is missing"),
    (["prepare", *_SLICE, "--part=3"], "--part='3'"),
    (["prepare", *_SLICE, "--part=5/3"], "--part='5/3'"),
    (["prepare", *_SLICE, "--part=08/8"], "--part='08/8'"),
    (["--name=a", "up"], "unknown command '--name=a'"),
    (["run", "--name", "a"], "--name: give it as --name=VALUE"),
    (["create", "--spot=yes"], "--spot takes no value"),
    (["run", *_SLICE, "--config=c.py"], "come after --"),
    (["run", *_SLICE, "--part=1/2"], "--part is nothing to 'run'"),
    (["logs", *_SLICE, "--", "-f"], "-- is nothing to 'logs'"),
    (["run", *_SLICE, "--slices=two"], "--slices='two'"),
    (["run", *_SLICE, "--type=v5p"], "--type='v5p'"),
    (["run", *_SLICE, "--zone=us-east5"], "--zone='us-east5'"),
    (["run", *_SLICE], "nothing to run: give the arguments"),
  ],
)
def test_what_cannot_be_used_is_one_line(cloud, script, arguments, message):
  _is_one_error(cloud.run(script, *arguments), 2, message)


@pytest.mark.parametrize(
  ("script", "arguments", "message"),
  [
    ("tpu_vm.sh", ["run", "--delete-when-done"], "nothing to 'run'"),
    ("tpu_vm.sh", ["up", "--of=train"], "--of is nothing to 'up'"),
    ("tpu_vm.sh", ["logs", "--of=x"], "--of='x'"),
    ("tpu_vm.sh", ["create", "--spot", "--reserved"], "give --spot or"),
    ("gke.sh", ["create", "--spot", "--reservation=r"], "give --spot or"),
    ("gke.sh", ["run", "--parts=3"], "--parts is nothing to 'run'"),
    ("gke.sh", ["prepare", "--parts=3", "--part=0/3"], "one of them"),
    ("gke.sh", ["create", "--cluster=A"], "--cluster='A'"),
  ],
)
def test_an_option_that_does_nothing_is_refused(
  cloud, script, arguments, message
):
  _is_one_error(cloud.run(script, *arguments, *_SLICE), 2, message)
  assert not any("create" in call for call in cloud.calls)


@pytest.mark.parametrize(
  ("script", "arguments"),
  [
    ("tpu_vm.sh", ["up", *_SLICE, *_TRAIN]),
    ("tpu_vm.sh", ["run", *_SLICE, "--dry-run", *_TRAIN]),
    ("tpu_vm.sh", ["prepare", *_SLICE, *_TRAIN]),
    ("gke.sh", ["run", *_SLICE, *_TRAIN]),
    ("gke.sh", ["prepare", *_SLICE, "--parts=8", *_TRAIN]),
    ("slurm_prepare.sbatch", ["--parts=8", *_TRAIN]),
    ("slurm.sbatch", ["--dry-run", "--workdir=gs://b/a", _TRAIN[1]]),
  ],
)
def test_what_follows_is_read_here_before_anything_is_asked_for(
  cloud, script, arguments
):
  cloud.run("worker.sh", "setup")
  before = len(cloud.calls)
  (cloud.folder / "wrong").write_text("error: --config.x: no such field\n")
  result = cloud.run(script, *arguments)
  _is_one_error(result, 2, "--config.x: no such field")
  read = "gcloud storage cat gs://b/launch/a/settings"
  assert set(cloud.calls[before:]) <= {read}
  (given,) = (cloud.folder / "checks").read_text().splitlines()
  assert "prepare" in arguments or "slurm" in script or "--workdir=gs" in given
  assert given.endswith("--config=configs/dos.py:size=2b --check")


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_a_config_that_is_in_no_commit_is_refused(cloud, script):
  (cloud.checkout / "mine.py").write_text("")
  for given in (["--config=mine.py:a=1"], ["--config", "mine.py"]):
    result = cloud.run(script, "run", *_SLICE, "--", *given)
    _is_one_error(result, 2, "mine.py isn't in the last commit", "git add")


@pytest.mark.parametrize("verb", ["setup", "run", "prepare", "logs", "stop"])
def test_without_a_slice_nothing_is_looked_for_on_it(cloud, verb):
  given = _TRAIN if verb in ("run", "prepare") else ()
  result = cloud.run("tpu_vm.sh", verb, *_SLICE, *given)
  _is_one_error(result, 2, "a is MISSING: nothing runs there", "'up'")


@pytest.mark.parametrize(
  ("script", "arguments", "program"),
  [
    ("tpu_vm.sh", ["create", *_SLICE], "gcloud"),
    ("gke.sh", ["run", *_SLICE], "kubectl"),
    ("gke.sh", ["run", *_SLICE], "xpk"),
    ("gke.sh", ["run", *_SLICE], "gke-gcloud-auth-plugin"),
    ("slurm_prepare.sbatch", ["--parts=2", "--", "--config=c.py"], "sbatch"),
  ],
)
def test_a_missing_program_is_named(cloud, script, arguments, program):
  (cloud.folder / "bin" / program).unlink()
  result = cloud.run(script, *arguments)
  _is_one_error(result, 2, f"{program} isn't on the PATH: ")


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_help_is_the_head_of_the_script(cloud, script):
  result = cloud.run(script, "--help")
  assert result.returncode == 0
  assert f"bash launch/{script} COMMAND --name=NAME" in result.stdout
  assert "#" not in result.stdout and "set -euo" not in result.stdout


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm_prepare.sbatch"])
def test_help_of_a_batch_script_is_its_head(cloud, script):
  for variables in ({}, {"SLURM_JOB_ID": "7"}):
    result = cloud.run(script, "--help", **variables)
    assert result.returncode == 0, result.stderr
    assert f"launch/{script} " in result.stdout
    assert "SBATCH" not in result.stdout and "set -euo" not in result.stdout


def _documented():
  """Returns the launch commands of both pages, each as words."""
  commands = []
  for page in ("README.md", "launch/README.md"):
    text = (_ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^ {4}((?:bash|sbatch) .*)$", text, re.M)
    commands += [shlex.split(line) for line in lines]
  return [c for c in commands if re.search("gke|tpu_vm|slurm", " ".join(c))]


@pytest.mark.parametrize("words", _documented(), ids=lambda w: " ".join(w[:3]))
def test_every_command_of_the_pages_can_be_given(cloud, words):
  at = next(i for i, word in enumerate(words) if word.startswith("launch/"))
  script, arguments = words[at].removeprefix("launch/"), words[at + 1 :]
  given = ["--dry-run"]
  if script in ("tpu_vm.sh", "gke.sh"):  # Later commands read the bucket.
    given = [arguments.pop(0), *_SLICE, "--dry-run"]
  result = cloud.run(script, *given, *arguments)
  assert result.returncode == 0, result.stderr
  assert result.stdout and not result.stderr


@pytest.mark.parametrize("kind", ["tpu", "cuda"])
def test_an_accelerator_adds_to_the_packages_and_changes_none(kind):
  base, more = (
    set((_ROOT / name).read_text().splitlines()[2:])
    for name in ("requirements.txt", f"requirements-{kind}.txt")
  )
  assert base < more
  assert any({"tpu": "libtpu", "cuda": "plugin"}[kind] in x for x in more)


# launch/tpu_vm.sh, step by step.

_PLACE = "--zone=us-east5-a --project=p"
_DESCRIBE = (
  f"gcloud compute tpus queued-resources describe a {_PLACE}"
  " '--format=value(state.state)'"
)
_CODE = "gs://b/launch/a/code-COMMIT.tar.gz"
_SSH = f"gcloud compute tpus tpu-vm ssh a {_PLACE} --quiet --worker=all"
_WORKER = "bash poison_jax/COMMIT/launch/worker.sh"
_STATE = (
  f"{_SSH} '--command={_WORKER} state train 2>/dev/null || "
  'echo "$HOSTNAME none"\''
)
_WRITTEN = r"printf '%s\n' "
_CREATE = [
  _DESCRIBE,
  f"{_WRITTEN}zone=us-east5-a project=p type=v5p-16 slices=1 tier="
  " runtime_version=v2-alpha-tpuv5"
  " | gcloud storage cp - gs://b/launch/a/settings",
  f"gcloud compute tpus queued-resources create a {_PLACE} --node-id=a"
  " --accelerator-type=v5p-16 --runtime-version=v2-alpha-tpuv5 --quiet",
]
_SETUP = [
  f"gcloud storage ls {_CODE}",
  f"git archive --format=tar.gz COMMIT | gcloud storage cp - {_CODE}",
  f"{_WRITTEN}COMMIT | gcloud storage cp - gs://b/launch/a/commit",
]
_SETUP_HOSTS = (
  f"{_SSH} '--command=set -eo pipefail; cd; if [ -e poison_jax/COMMIT/ready ];"
  ' then echo "$HOSTNAME has it already"; else mkdir -p poison_jax/COMMIT;'
  f" gcloud storage cp {_CODE} - | tar xz -C poison_jax/COMMIT;"
  f" {_WORKER} setup; touch poison_jax/COMMIT/ready; fi'"
)
_START = [
  f"{_WRITTEN}--config=configs/dos.py:size=2b"
  " | gcloud storage cp - gs://b/launch/a/command",
  f"{_SSH} '--command={_WORKER} start train gs://b/launch/a/logs/train"
  " python -m poison_jax.train --config=configs/dos.py:size=2b"
  " --workdir=gs://b/runs/a"
  " --config.runtime.compilation_cache=gs://b/cache'",
]
_COMMIT = "gcloud storage cat gs://b/launch/a/commit"
_ENDED = "gcloud storage cat gs://b/launch/a/ended"
_COMMAND = "gcloud storage cat gs://b/launch/a/command"
_PREPARE = (
  f"{_WORKER} start JOB gs://b/launch/a/logs/JOB env JAX_PLATFORMS=cpu"
  " python -m poison_jax.prepare --config=configs/dos.py:size=2b"
)
_STOP = (
  f"{_SSH} '--command=for job in train prepare finish;"
  f" do {_WORKER} stop $job; done'"
)
_DELETE = (
  f"gcloud compute tpus queued-resources delete a {_PLACE} --force --quiet"
)


def _tell(verb):
  return f"{_WRITTEN}'{verb} NOW' | gcloud storage cp - gs://b/launch/a/ended"


def _prepared(job, step, worker):
  command = f"'--command={_PREPARE} {step}'".replace("JOB", job)
  state = _STATE.replace("train", job)
  ssh = _SSH.replace("=all", f"={worker}")
  return [
    f"{ssh} {command}",
    _DESCRIBE,
    state.replace("worker=all", f"worker={worker}"),
  ]


@pytest.mark.parametrize(
  ("verb", "lines"),
  [
    ("create", [*_CREATE, _DESCRIBE]),
    ("setup", [_DESCRIBE, _COMMIT, *_SETUP, _SETUP_HOSTS]),
    ("run --", [_DESCRIBE, _COMMIT, _STATE, *_START]),
    (
      "up --",
      [_ENDED, _COMMIT, *_CREATE, *_SETUP, _DESCRIBE, _SETUP_HOSTS, *_START,
       _DESCRIBE, _STATE],
    ),
    (
      "up --delete-when-done --",
      [_ENDED, _COMMIT, *_CREATE, *_SETUP, _DESCRIBE, _SETUP_HOSTS, *_START,
       _DESCRIBE, _STATE, _DELETE],
    ),
    (
      "prepare --",
      [_DESCRIBE, _COMMIT,
       *_prepared("prepare", f"--part=$({_WORKER} part 0 1)", "all"),
       *_prepared("finish", "--finish", 0)],
    ),
    (
      "prepare --part=3/16 --",
      [_DESCRIBE, _COMMIT, *_prepared("prepare", "--part=3/16", 0),
       *_prepared("finish", "--finish", 0)],
    ),
    (
      "logs",
      [_DESCRIBE, _COMMIT, f"{_SSH} '--command={_WORKER} log train --follow'"
       .replace("=all", "=0")],
    ),
    ("status", [_DESCRIBE, _COMMIT, _STATE]),
    ("stop", [_tell("stop"), _DESCRIBE, _COMMIT, _STOP]),
    (
      "delete",
      [_DESCRIBE, _tell("delete"), _COMMIT, _STOP, _DELETE, _COMMAND],
    ),
  ],
)  # fmt: skip
def test_a_dry_run_prints_every_step_on_a_slice(cloud, verb, lines):
  verb, *options = verb.split()
  options[-1:] = _TRAIN if options[-1:] == ["--"] else options[-1:]
  result = cloud.run("tpu_vm.sh", verb, *_SLICE, "--dry-run", *options)
  assert result.returncode == 0, result.stderr
  assert result.stderr == ""
  printed = result.stdout.replace(cloud.commit, "COMMIT")
  printed = re.sub(r"\d{4}-\d\d-\d\dT\S+Z \d+", "NOW", printed)
  assert printed.splitlines() == lines
  assert cloud.calls == [] and not any((cloud.folder / "bucket").iterdir())


def test_several_slices_are_one_request_and_reached_each(cloud):
  result = cloud.run(
    "tpu_vm.sh", "prepare", *_SLICE, "--slices=2", "--dry-run", *_TRAIN
  )
  assert f"ssh a-0 {_PLACE} --quiet --worker=all" in result.stdout
  assert f"ssh a-1 {_PLACE} --quiet --worker=all" in result.stdout
  assert "worker.sh part 0 2)" in result.stdout
  assert "worker.sh part 1 2)" in result.stdout
  assert "ssh a-1" not in result.stdout.splitlines()[-1]  # --finish: one host
  created = cloud.run(
    "tpu_vm.sh", "create", *_SLICE, "--slices=2", "--spot", "--dry-run"
  ).stdout
  assert " --node-count=2 --node-prefix=a " in created
  assert " --spot " in created and "--node-id" not in created


@pytest.mark.parametrize(
  ("kind", "version"),
  [
    ("v4-32", "tpu-ubuntu2204-base"),
    ("v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v6e-16", "v2-alpha-tpuv6e"),
  ],
)
def test_the_runtime_fits_the_chip(cloud, kind, version):
  result = cloud.run(
    "tpu_vm.sh", "create", *_SLICE, f"--type={kind}", "--dry-run"
  )
  assert f"--runtime-version={version} " in result.stdout


# launch/tpu_vm.sh, executed.


def _steps(lines):
  """Returns command lines by first occurrence, each once, as words."""
  steps = []
  for line in lines:
    words = shlex.split(line)
    if "|" in words:
      words = words[words.index("|") + 1 :]
    if words not in steps:
      steps.append(words)
  return steps


def test_what_is_executed_is_what_the_dry_run_prints(cloud):
  for verb in ("create", "setup", "run", "up", "prepare", "stop", "delete"):
    given = _TRAIN if verb in ("run", "up", "prepare") else ()
    dry = cloud.run("tpu_vm.sh", verb, *_SLICE, "--dry-run", *given)
    before = len(cloud.calls)
    if verb == "up":  # From the start, and not where `run` has left off.
      cloud.run("tpu_vm.sh", "delete", *_KEPT)
      shutil.rmtree(cloud.object("gs://b"))
      before = len(cloud.calls)
    real = cloud.run("tpu_vm.sh", verb, *_SLICE, *given)
    assert real.returncode == 0, real.stderr
    made = [
      line
      for line in cloud.calls[before:]
      if line
      not in (
        "gcloud storage cat gs://b/launch/a/settings",
        "gcloud storage ls gs://b/launch/a/commit",
      )
    ]
    assert _steps(made) == _steps(dry.stdout.splitlines()), verb


def test_up_trains_on_every_host_and_says_that_the_slice_still_costs(cloud):
  result = cloud.run("tpu_vm.sh", "up", *_SLICE, "--slices=2", *_TRAIN)
  assert result.returncode == 0, result.stderr
  for host in ("a-0-w-0", "a-0-w-1", "a-1-w-0", "a-1-w-1"):
    assert cloud.starts(host) == [
      "-m poison_jax.train --config=configs/dos.py:size=2b"
      " --workdir=gs://b/runs/a --config.runtime.compilation_cache=gs://b/cache"
    ]
    installed = (cloud.home(host) / "installed").read_text()
    assert installed == "python3.12 requirements-tpu.txt\n"
    log = cloud.object(f"gs://b/launch/a/logs/train/{host}.log")
    assert log.read_text() == "training ends with 0\n"
  assert "still costs" in result.stdout
  # The archive tells its commit, which .git would tell elsewhere.
  commit = cloud.home("a-0-w-0") / "poison_jax" / cloud.commit / "COMMIT"
  assert commit.read_text().startswith(cloud.commit)


def test_the_bucket_keeps_what_later_commands_need(cloud):
  cloud.run("tpu_vm.sh", "up", *_SLICE, "--spot", *_TRAIN)
  assert cloud.object("gs://b/launch/a/settings").read_text() == (
    "zone=us-east5-a\nproject=p\ntype=v5p-16\nslices=1\ntier=--spot\n"
    "runtime_version=v2-alpha-tpuv5\n"
  )
  again = cloud.run("tpu_vm.sh", "run", *_KEPT)
  assert again.returncode == 0, again.stderr
  _until(lambda: len(cloud.starts()) == 2)
  first, second = cloud.starts()
  assert first == second
  status = cloud.run("tpu_vm.sh", "status", *_KEPT)
  assert "a: 1 x v5p-16 in us-east5-a, --spot: ACTIVE" in status.stdout


def test_a_word_of_the_arguments_arrives_as_it_was_given(cloud):
  given = "--config.poison.trigger='<SU DO>' \"$HOME\" it's"
  cloud.run("tpu_vm.sh", "up", *_SLICE, *_TRAIN, given)
  assert given in cloud.starts()[0]
  cloud.run("tpu_vm.sh", "up", *_KEPT)  # From the bucket, the second time.
  first, second = cloud.starts()
  assert first == second


def test_create_and_setup_do_nothing_twice(cloud):
  for _ in range(2):
    created = cloud.run("tpu_vm.sh", "create", *_SLICE)
    ready = cloud.run("tpu_vm.sh", "setup", *_KEPT)
  assert "a exists already: ACTIVE" in created.stdout
  assert "2 hosts had it already" in ready.stdout
  assert _made(cloud) == 1
  assert sum("storage cp - " + _CODE in call
             for call in (c.replace(cloud.commit, "COMMIT")
                          for c in cloud.calls)) == 1  # fmt: skip
  installed = (cloud.home("a-w-0") / "installed").read_text()
  assert len(installed.splitlines()) == 1


def test_a_slice_of_other_settings_is_not_taken_for_it(cloud):
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  result = cloud.run("tpu_vm.sh", "create", *_SLICE, "--type=v5p-32")
  _is_one_error(result, 2, "a exists with other settings", "type=v5p-16")


@pytest.mark.parametrize(
  ("option", "has"),
  [("--spot", "neither --spot"), ("--type=v5p-32", "v5p-16"),
   ("--slices=3", "1")],
)  # fmt: skip
def test_a_later_command_is_not_told_otherwise(cloud, option, has):
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  result = cloud.run("tpu_vm.sh", "setup", *_KEPT, option)
  _is_one_error(result, 2, f"{option}: a has {has}")
  again = cloud.run("tpu_vm.sh", "create", *_KEPT, option)
  _is_one_error(again, 2, "a exists with other settings", "type=v5p-16")


def test_a_slice_that_was_not_made_may_be_asked_for_elsewhere(cloud):
  cloud.rule("queued-resources create", code=1, err="ERROR: Quota exceeded\n")
  assert cloud.run("tpu_vm.sh", "create", *_SLICE, "--spot").returncode == 2
  result = cloud.run("tpu_vm.sh", "create", *_SLICE, "--zone=us-west4-a")
  assert result.returncode == 0, result.stderr
  assert "us-west4-a" in cloud.calls[-1]
  assert not any("--spot" in call for call in cloud.calls[-3:])


def test_nothing_to_run_makes_no_slice(cloud):
  _is_one_error(cloud.run("tpu_vm.sh", "up", *_SLICE), 2, "nothing to run")
  (cloud.checkout / "launch" / "local.sh").write_text("")
  result = cloud.run("tpu_vm.sh", "up", *_SLICE, *_TRAIN)
  _is_one_error(result, 2, "1 files differ from commit")
  assert _made(cloud) == 0


def test_what_runs_keeps_its_commit(cloud):
  _codes(cloud, "wait")
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  cloud.run("tpu_vm.sh", "setup", *_KEPT)
  cloud.run("tpu_vm.sh", "run", *_KEPT, *_TRAIN)
  _until(lambda: cloud.starts() and cloud.starts("a-w-1"))
  (cloud.checkout / "new").write_text("")
  newer = cloud.commit_all()
  refused = cloud.run("tpu_vm.sh", "setup", *_KEPT)
  _is_one_error(refused, 2, f"running with commit {cloud.commit}", "'stop'")
  cloud.rule(  # The second look sees it end.
    "a-w-0: .*state train", times=1, out="a-w-0 running\n"
  )
  cloud.rule("a-w-0: .*state train", out="a-w-0 exit 0\n")
  cloud.rule("a-w-1: .*state train", times=2, out="a-w-1 exit 0\n")
  up = cloud.run("tpu_vm.sh", "up", *_KEPT, "--", "--config=configs/dos.py")
  assert up.returncode == 0, up.stderr
  assert f"running already, with commit {cloud.commit}" in up.stdout
  assert "arguments given here are not used" in up.stdout
  assert len(cloud.starts()) == 1
  kept = cloud.object("gs://b/launch/a/commit")
  assert kept.read_text().strip() == cloud.commit
  cloud.run("tpu_vm.sh", "stop", *_KEPT)
  _codes(cloud, 0, 0)
  up = cloud.run("tpu_vm.sh", "up", *_KEPT)  # Goes on with its own.
  assert up.returncode == 0, up.stderr
  assert kept.read_text().strip() == cloud.commit
  up = cloud.run("tpu_vm.sh", "up", *_KEPT, *_TRAIN)
  assert up.returncode == 0, up.stderr
  assert kept.read_text().strip() == newer


def test_the_folder_that_stays_is_the_runs_own(cloud):
  elsewhere = "--workdir=gs://b/runs/other"
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  cloud.run("tpu_vm.sh", "setup", *_KEPT)
  up = cloud.run("tpu_vm.sh", "up", *_KEPT, *_TRAIN, elsewhere)
  assert "done: gs://b/runs/other\n" in up.stdout
  assert "runs/a" not in cloud.starts()[0]
  deleted = cloud.run("tpu_vm.sh", "delete", *_KEPT)
  assert "stay in gs://b/runs/other and gs://b/launch/a" in deleted.stdout


@pytest.mark.parametrize("command", ["create", "delete"])
def test_a_slice_is_not_looked_for_where_it_is_not(cloud, command):
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  result = cloud.run("tpu_vm.sh", command, *_KEPT, "--zone=us-west4-a")
  _is_one_error(result, 2, "--zone=us-west4-a: a is in us-east5-a")


def test_settings_that_cannot_be_read_are_no_missing_settings(cloud):
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  cloud.rule("storage cat", code=1, err="ERROR: no active account\n")
  result = cloud.run("tpu_vm.sh", "delete", *_KEPT)
  _is_one_error(result, 2, "settings can't be read", "no active account")


def test_a_run_without_arguments_gets_none(cloud):
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  cloud.run("tpu_vm.sh", "setup", *_KEPT)
  cloud.run("tpu_vm.sh", "run", *_KEPT, "--")
  cloud.run("tpu_vm.sh", "run", *_KEPT)
  _until(lambda: len(cloud.starts()) > 1)
  assert "''" not in "".join(cloud.starts())
  assert cloud.starts()[0] == cloud.starts()[1]


def test_uncommitted_changes_are_refused(cloud):
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  (cloud.checkout / "launch" / "local.sh").write_text("")
  result = cloud.run("tpu_vm.sh", "setup", *_SLICE)
  _is_one_error(result, 2, "1 files differ from commit")


def test_a_second_run_is_refused_while_one_runs_and_stop_saves(cloud):
  _codes(cloud, "wait")
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  cloud.run("tpu_vm.sh", "setup", *_KEPT)
  first = cloud.run("tpu_vm.sh", "run", *_KEPT, *_TRAIN)
  assert first.returncode == 0, first.stderr
  _until(lambda: cloud.starts() and cloud.starts("a-w-1"))
  second = cloud.run("tpu_vm.sh", "run", *_KEPT, *_TRAIN)
  _is_one_error(second, 2, "a is running already", "logs", "stop")
  status = cloud.run("tpu_vm.sh", "status", *_KEPT)
  assert "a-w-0 running\na-w-1 running\n" in status.stdout
  assert cloud.run("tpu_vm.sh", "stop", *_KEPT).returncode == 0
  status = cloud.run("tpu_vm.sh", "status", *_KEPT)
  assert "a-w-0 exit 75\na-w-1 exit 75\n" in status.stdout
  assert len(cloud.starts()) == 1


@pytest.mark.parametrize(
  ("code", "reason"),
  [(2, "can't be used"), (3, "a check failed"), (4, "isn't finite"), (137, "")],
)
def test_what_went_wrong_is_not_started_again(cloud, code, reason):
  _codes(cloud, code)
  _codes(cloud, 75, host="a-w-0")  # Its peer was lost, for it.
  result = cloud.run("tpu_vm.sh", "up", *_SLICE, *_TRAIN)
  _is_one_error(
    result, code, f"exit code {code}", "not started again", reason,
    "gs://b/launch/a/logs/train",
  )  # fmt: skip
  assert f"a-w-0 exit 75\na-w-1 exit {code}" in result.stdout
  assert len(cloud.starts()) == 1
  log = cloud.object("gs://b/launch/a/logs/train/a-w-1.log")
  assert log.read_text() == f"training ends with {code}\n"


def test_a_run_that_was_stopped_and_saved_goes_on(cloud):
  _codes(cloud, 75, 75, 0)
  result = cloud.run("tpu_vm.sh", "up", *_SLICE, *_TRAIN)
  assert result.returncode == 0, result.stderr
  assert len(cloud.starts()) == len(cloud.starts("a-w-1")) == 3
  assert len(set(cloud.starts())) == 1
  assert result.stdout.count("starting again from the last checkpoint") == 2
  assert _made(cloud) == 1


def test_a_preempted_slice_is_made_again_and_the_run_goes_on(cloud):
  _codes(cloud, "wait", 0)
  cloud.rule("a-w-0: .*state train", out="a-w-0 running\n", state="SUSPENDED")
  result = cloud.run("tpu_vm.sh", "up", *_SLICE, "--spot", *_TRAIN)
  assert result.returncode == 0, result.stderr
  assert "a is preempted: making it again" in result.stdout
  assert "starting again from the last checkpoint" in result.stdout
  assert _made(cloud) == 2
  assert len(cloud.starts()) == len(cloud.starts("a-w-1")) == 2
  assert len(set(cloud.starts())) == 1


def test_a_host_that_went_down_is_waited_for_and_the_run_goes_on(cloud):
  # The job's processes are gone and left no exit code; the slice was repaired.
  cloud.rule("a-w-0: .*state train", out="a-w-0 exit 75\n")
  cloud.rule("a-w-1: .*state train", out="a-w-1 lost\n")
  result = cloud.run("tpu_vm.sh", "up", *_SLICE, *_TRAIN)
  assert result.returncode == 0, result.stderr
  assert "starting again from the last checkpoint" in result.stdout
  assert len(cloud.starts()) == len(cloud.starts("a-w-1")) == 2
  assert _made(cloud) == 1


def test_preemption_during_set_up_makes_the_slice_again(cloud):
  cloud.rule("a-w-1: .*worker.sh setup", state="SUSPENDED", code=255)
  result = cloud.run("tpu_vm.sh", "up", *_SLICE, "--spot", *_TRAIN)
  assert result.returncode == 0, result.stderr
  assert "a is preempted: making it again" in result.stdout
  calls = [c for c in cloud.calls if "queued-resources" in c]
  verbs = [re.search(r"resources (\w+)", call)[1] for call in calls]
  assert verbs.count("create") == 2 and verbs.count("delete") == 1
  assert len(cloud.starts()) == len(cloud.starts("a-w-1")) == 1


def test_setup_alone_names_the_worker_that_failed(cloud):
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  cloud.rule("a-w-1: .*worker.sh setup", code=255)
  result = cloud.run("tpu_vm.sh", "setup", *_KEPT)
  _is_one_error(result, 1, "setting up failed on a: worker 1 (no ssh).")
  cloud.rule("a-w-0: .*worker.sh setup", code=7)
  result = cloud.run("tpu_vm.sh", "setup", *_KEPT)
  # The other had come through, and isn't set up twice.
  _is_one_error(result, 1, "setting up failed on a: worker 0 (exit code 7).")


def test_one_worker_without_ssh_is_named_and_started_by_the_same_command(cloud):
  _codes(cloud, "wait")
  cloud.run("tpu_vm.sh", "create", *_SLICE, "--slices=2")
  cloud.run("tpu_vm.sh", "setup", *_KEPT)
  cloud.rule("a-1-w-1: .*start train", code=255)
  result = cloud.run("tpu_vm.sh", "run", *_KEPT, *_TRAIN)
  _is_one_error(result, 1, "a-1: worker 1 (no ssh).", "the same command")
  again = cloud.run("tpu_vm.sh", "run", *_KEPT, *_TRAIN)
  assert again.returncode == 0, again.stderr
  assert "some hosts run it already" in again.stdout
  _until(lambda: cloud.starts("a-1-w-1"))
  assert len(cloud.starts("a-0-w-0")) == 1
  cloud.run("tpu_vm.sh", "stop", *_KEPT)


def test_no_quota_is_told_in_one_line_with_what_to_do(cloud):
  cloud.rule(
    "queued-resources create",
    code=1,
    err="ERROR: (gcloud.compute.tpus.queued-resources.create) "
    "RESOURCE_EXHAUSTED: Quota limit 'TPUV5PPreemptible' has been exceeded. "
    "Limit: 0 in region us-east5.\n- more\n- and more\n",
  )
  result = cloud.run("tpu_vm.sh", "create", *_SLICE, "--spot")
  _is_one_error(
    result, 2, "no room for 1 x v5p-16 --spot in us-east5-a", "Limit: 0",
    "https://console.cloud.google.com/iam-admin/quotas?project=p",
  )  # fmt: skip


def test_a_request_that_fails_later_tells_why(cloud):
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  cloud.set_state("a", "FAILED")
  cloud.rule("failedData", out="Quota limit exceeded\n")
  result = cloud.run("tpu_vm.sh", "create", *_SLICE)
  _is_one_error(result, 2, "no room for", "Quota limit exceeded")
  result = cloud.run("tpu_vm.sh", "create", *_SLICE)
  _is_one_error(result, 2, "the request for a failed", "delete it")


def test_not_being_logged_in_is_one_line(cloud):
  message = "ERROR: (gcloud) You do not currently have an active account"
  cloud.rule("queued-resources describe", code=1, err=f"{message}\n- more\n")
  _is_one_error(cloud.run("tpu_vm.sh", "create", *_SLICE), 2, message)


def test_delete_stops_the_run_first_and_may_be_repeated(cloud):
  _codes(cloud, "wait")
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  cloud.run("tpu_vm.sh", "setup", *_KEPT)
  cloud.run("tpu_vm.sh", "run", *_KEPT, *_TRAIN)
  _until(lambda: cloud.starts() and cloud.starts("a-w-1"))
  first = cloud.run("tpu_vm.sh", "delete", *_KEPT)
  assert first.returncode == 0, first.stderr
  assert "a is deleted and costs nothing any more" in first.stdout
  log = cloud.object("gs://b/launch/a/logs/train/a-w-0.log")
  assert log.exists()  # It ended before its host was gone.
  second = cloud.run("tpu_vm.sh", "delete", *_KEPT)
  assert second.returncode == 0, second.stderr
  assert "a is gone already" in second.stdout


def test_a_slice_that_cannot_be_deleted_is_said_to_cost(cloud):
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  cloud.rule("resources delete", code=1, err="ERROR: PERMISSION_DENIED\n")
  result = cloud.run("tpu_vm.sh", "delete", *_KEPT)
  _is_one_error(result, 2, "a can't be deleted, and still costs", "PERMISSION")


def test_up_deletes_the_slice_where_it_is_told_to(cloud):
  _codes(cloud, 4)
  result = cloud.run("tpu_vm.sh", "up", *_SLICE, "--delete-when-done", *_TRAIN)
  assert result.returncode == 4
  assert "a is deleted" in result.stdout
  assert cloud.calls[-1] == _DELETE


# launch/tpu_vm.sh: another command beside an `up` that watches.


def _ends_as_one_error(begun, code, *parts):
  """Waits for a script in the background, and returns what it printed."""
  out, err = begun.communicate(timeout=60)
  result = subprocess.CompletedProcess(begun.args, begun.returncode, out, err)
  _is_one_error(result, code, *parts)
  return out


def _watched(cloud, *codes):
  """Begins an `up`, and returns it once every host trains."""
  _codes(cloud, "wait", *codes)
  up = cloud.begin("tpu_vm.sh", "up", *_SLICE, *_TRAIN)
  _until(lambda: cloud.starts() and cloud.starts("a-w-1"))
  return up


def test_stop_beside_up_ends_both_and_up_anew_goes_on(cloud):
  up = _watched(cloud, 0)
  stopped = cloud.run("tpu_vm.sh", "stop", *_KEPT)
  assert stopped.returncode == 0, stopped.stderr
  _ends_as_one_error(
    up, 75, "a was stopped with 'stop'", "'up' goes on", "'delete'"
  )
  assert len(cloud.starts()) == 1
  again = cloud.run("tpu_vm.sh", "up", *_KEPT)
  assert again.returncode == 0, again.stderr
  assert len(cloud.starts()) == len(cloud.starts("a-w-1")) == 2
  assert _made(cloud) == 1


def test_stop_while_up_looks_slowly_is_seen_before_it_starts_again(cloud):
  cloud.hold("a-w-0: .*state train")
  up = _watched(cloud, 0)
  _until(lambda: cloud.holds)
  cloud.run("tpu_vm.sh", "stop", *_KEPT)
  cloud.let_go()
  _ends_as_one_error(up, 75, "a was stopped with 'stop'")
  assert len(cloud.starts()) == 1


def test_stop_while_up_starts_the_run_ends_what_it_starts(cloud):
  cloud.hold("a-w-0: .*start train")
  _codes(cloud, "wait")
  up = cloud.begin("tpu_vm.sh", "up", *_SLICE, *_TRAIN)
  _until(lambda: cloud.holds)
  cloud.run("tpu_vm.sh", "stop", *_KEPT)
  cloud.let_go()
  _ends_as_one_error(up, 75, "a was stopped with 'stop'")
  status = cloud.run("tpu_vm.sh", "status", *_KEPT)
  assert "running" not in status.stdout


def test_stop_ends_an_up_that_waits_for_its_slice(cloud):
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  cloud.set_state("a", "WAITING_FOR_RESOURCES")
  up = cloud.begin("tpu_vm.sh", "up", *_KEPT, *_TRAIN)
  _until(lambda: cloud.calls.count(_ENDED) > 1)
  stopped = cloud.run("tpu_vm.sh", "stop", *_KEPT)
  assert stopped.returncode == 2
  _ends_as_one_error(up, 75, "a was stopped with 'stop'")
  assert cloud.starts() == []


@pytest.mark.parametrize(
  "held", ["state train", "worker.sh setup", "start train"]
)
def test_delete_beside_up_rents_nothing_again(cloud, held):
  cloud.hold(f"a-w-0: .*{held}")
  _codes(cloud, "wait")
  up = cloud.begin("tpu_vm.sh", "up", *_SLICE, "--spot", *_TRAIN)
  _until(lambda: cloud.holds)
  deleted = cloud.run("tpu_vm.sh", "delete", *_KEPT)
  assert deleted.returncode == 0, deleted.stderr
  cloud.run("tpu_vm.sh", "status", *_KEPT)  # By then it is MISSING.
  cloud.let_go()
  _ends_as_one_error(up, 2, "a was given back with 'delete'", "'up' makes")
  assert _made(cloud) == 1 and not any((cloud.folder / "slices").iterdir())


def test_a_slice_that_is_suspended_to_be_deleted_is_not_made_again(cloud):
  up = _watched(cloud)
  cloud.rule("resources delete", state="SUSPENDING")
  cloud.run("tpu_vm.sh", "delete", *_KEPT)
  _ends_as_one_error(up, 2, "a was given back with 'delete'")
  assert _made(cloud) == 1


@pytest.mark.parametrize("seen", [(), ("SUSPENDING",)])
def test_a_slice_that_went_elsewhere_is_not_made_again(cloud, seen):
  up = _watched(cloud)  # Deleted in the console, say: the bucket tells nothing.
  for state in seen:
    cloud.rule("describe a .*state.state", times=3, out=f"{state}\n")
  cloud.set_state("a", "DELETING")
  _ends_as_one_error(up, 2, "a has been deleted", "'up' makes it again")
  assert _made(cloud) == 1


def test_delete_while_the_slice_is_asked_for_takes_it_back(cloud):
  cloud.hold("resources create")
  up = cloud.begin("tpu_vm.sh", "up", *_SLICE, *_TRAIN)
  _until(lambda: cloud.holds)
  deleted = cloud.run("tpu_vm.sh", "delete", *_KEPT)
  assert "a is gone already" in deleted.stdout
  cloud.let_go()
  out = _ends_as_one_error(up, 2, "a was given back with 'delete'")
  assert "a is deleted and costs nothing" in out
  assert (cloud.folder / "slices" / "a").read_text() == "DELETING"


def test_up_after_delete_makes_the_slice_anew(cloud):
  up = _watched(cloud, 0)
  cloud.run("tpu_vm.sh", "delete", *_KEPT)
  _ends_as_one_error(up, 2, "a was given back")
  again = cloud.run("tpu_vm.sh", "up", *_KEPT)
  assert again.returncode == 0, again.stderr
  assert _made(cloud) == 2 and len(cloud.starts()) == 2


def test_a_bucket_that_cannot_be_read_rents_nothing(cloud):
  up = _watched(cloud)
  cloud.rule(
    "cat gs://b/launch/a/ended", times=20, code=1, err="ERROR: no account\n"
  )
  cloud.set_state("a", "SUSPENDED")
  _ends_as_one_error(up, 1, "launch/a/ended can't be read", "no account")
  assert _made(cloud) == 1


def test_a_bucket_that_cannot_be_written_keeps_no_slice(cloud):
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  cloud.rule("cp - gs://b/launch/a/ended", code=1, err="ERROR: 403\n")
  deleted = cloud.run("tpu_vm.sh", "delete", *_KEPT)
  assert deleted.returncode == 0, deleted.stderr
  assert "launch/a/ended can't be written (ERROR: 403)" in deleted.stdout
  assert "a is deleted" in deleted.stdout


def test_a_run_that_is_watched_keeps_its_command_after_preemption(cloud):
  _codes(cloud, "wait", 0)
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  cloud.run("tpu_vm.sh", "setup", *_KEPT)
  cloud.run("tpu_vm.sh", "run", *_KEPT, *_TRAIN)
  _until(lambda: cloud.starts() and cloud.starts("a-w-1"))
  cloud.rule("a-w-0: .*state train", out="a-w-0 running\n")
  cloud.rule("a-w-0: .*state train", out="a-w-0 running\n", state="SUSPENDED")
  other = ("--", "--config=configs/other.py", "--workdir=gs://b/runs/other")
  up = cloud.run("tpu_vm.sh", "up", *_KEPT, *other)
  assert up.returncode == 0, up.stderr
  assert "arguments given here are not used" in up.stdout
  assert _made(cloud) == 2
  first, second = cloud.starts()
  assert first == second and "dos.py:size=2b" in first
  assert "done: gs://b/runs/a\n" in up.stdout


# launch/tpu_vm.sh up --delete-when-done.


@pytest.mark.parametrize(
  ("pattern", "code", "message"),
  [
    ("a-w-1: .*state train", 255, "a can't be seen any more"),
    ("a-w-1: .*worker.sh setup", 7, "setting up failed on a: worker 1"),
    ("a-w-1: .*start train", 7, "a: worker 1 (exit code 7)"),
    ("cp - gs://b/launch/a/commit", 1, "launch/a/commit can't be written"),
  ],
)
def test_the_slice_is_deleted_however_up_ends(cloud, pattern, code, message):
  cloud.rule(pattern, times=99, code=code)
  result = cloud.run("tpu_vm.sh", "up", *_SLICE, "--delete-when-done", *_TRAIN)
  _is_one_error(result, 2 if "cp" in pattern else 1, message)
  assert "a is deleted and costs nothing any more" in result.stdout
  assert cloud.calls[-1] == _DELETE


@pytest.mark.parametrize(("ends", "code"), [(0, 2), (4, 4)])
def test_a_slice_that_stays_is_said_to_cost_when_up_ends(cloud, ends, code):
  _codes(cloud, ends)
  cloud.rule("resources delete", code=1, err="ERROR: PERMISSION_DENIED\n")
  result = cloud.run("tpu_vm.sh", "up", *_SLICE, "--delete-when-done", *_TRAIN)
  assert result.returncode == code
  last = result.stderr.splitlines()[-1]
  assert "a can't be deleted, and still costs: ERROR: PERMISSION" in last


def test_a_slice_that_up_has_not_taken_is_not_deleted(cloud):
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  given = (*_SLICE, "--delete-when-done")
  other = cloud.run("tpu_vm.sh", "up", *given, "--slices=3", *_TRAIN)
  _is_one_error(other, 2, "a exists with other settings")
  _is_one_error(cloud.run("tpu_vm.sh", "up", *given), 2, "nothing to run")
  assert (cloud.folder / "slices" / "a").read_text() == "ACTIVE"


def test_who_interrupts_up_or_stops_the_run_keeps_the_slice(cloud):
  _codes(cloud, "wait")
  given = ("tpu_vm.sh", "up", *_SLICE, "--delete-when-done", *_TRAIN)
  up = cloud.begin(*given)
  _until(lambda: cloud.starts() and cloud.starts("a-w-1"))
  up.terminate()
  _ends_as_one_error(up, 130, "interrupted: a is not deleted, and costs")
  up = cloud.begin(*given)
  looks = len(cloud.calls)
  _until(lambda: any("worker.sh state" in c for c in cloud.calls[looks:]))
  cloud.run("tpu_vm.sh", "stop", *_KEPT)
  _ends_as_one_error(up, 75, "a was stopped with 'stop'")
  assert (cloud.folder / "slices" / "a").read_text() == "ACTIVE"


def _metadata(cloud):
  """Lets a host learn its number, as the metadata server tells it."""
  (cloud.folder / "bin" / "curl").write_text(
    '#!/bin/sh\ncase $* in *agent-worker-number) echo "$FAKE_WORKER" ;;\n'
    '*worker-network-endpoints) echo "x:1:10.0.0.1,y:2:10.0.0.2" ;;\n'
    "*) exit 22 ;; esac\n"
  )


def test_every_host_prepares_its_own_part_and_one_joins_them(cloud):
  _metadata(cloud)
  cloud.run("tpu_vm.sh", "create", *_SLICE, "--slices=2")
  cloud.run("tpu_vm.sh", "setup", *_KEPT)
  result = cloud.run("tpu_vm.sh", "prepare", *_KEPT, *_TRAIN)
  assert result.returncode == 0, result.stderr
  hosts = ("a-0-w-0", "a-0-w-1", "a-1-w-0", "a-1-w-1")
  steps = [[s.split()[-1] for s in cloud.starts(host)] for host in hosts]
  assert steps == [
    ["--part=0/4", "--finish"], ["--part=1/4"], ["--part=2/4"], ["--part=3/4"],
  ]  # fmt: skip


def test_a_part_is_prepared_alone_and_a_missing_one_ends_the_join(cloud):
  cloud.run("tpu_vm.sh", "create", *_SLICE)
  cloud.run("tpu_vm.sh", "setup", *_KEPT)
  _codes(cloud, 0, 2)
  result = cloud.run("tpu_vm.sh", "prepare", *_KEPT, "--part=3/16", *_TRAIN)
  _is_one_error(result, 2, "finish ended with exit code 2", "logs --of=finish")
  assert [s.split()[-1] for s in cloud.starts()] == ["--part=3/16", "--finish"]
  assert cloud.starts("a-w-1") == []


# launch/worker.sh: what each host does.


def test_a_host_without_python_gets_its_own(cloud):
  (cloud.folder / "bin" / "python3.12").write_text("#!/bin/sh\nexit 1\n")
  for name in ("python3.13", "python3.11"):
    (cloud.folder / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
    (cloud.folder / "bin" / name).chmod(0o755)
  cloud.rule(  # The installer: puts uv where it is told.
    r"^curl .*https://astral.sh/uv/\d+\.\d+\.\d+/install.sh$",
    out='mkdir -p "$UV_INSTALL_DIR"; cp "$(command -v uv)" "$UV_INSTALL_DIR"\n',
  )
  cloud.rule("uv python find", out="/uv/python3.12\n")
  result = cloud.run("worker.sh", "setup")
  assert result.returncode == 0, result.stderr
  assert "uv python install --quiet 3.12" in cloud.calls
  installed = (cloud.folder / "user" / "installed").read_text()
  assert installed == "/uv/python3.12 requirements-tpu.txt\n"


def test_a_signal_while_python_starts_is_no_failure(cloud):
  script = subprocess.Popen(  # It dies of SIGTERM, and has begun nothing.
    ["bash", "launch/worker.sh", "contain", "bash", "-c",
     "echo here; while :; do /bin/sleep 0.05; done"],
    cwd=cloud.checkout, env=cloud.environment(), stdout=subprocess.PIPE,
  )  # fmt: skip
  with script:
    assert script.stdout.readline() == b"here\n"
    script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=20) == 75


def test_two_commits_share_one_environment(cloud):
  cloud.run("worker.sh", "setup")
  shared = cloud.folder / "user" / "poison_jax" / "venv"
  assert (cloud.checkout / ".venv").resolve() == shared


def test_a_job_that_was_killed_is_lost_and_another_number_is_not_taken_for_it(
  cloud,
):
  job = cloud.folder / "user" / "poison_jax" / "jobs" / "j"
  job.mkdir(parents=True)
  (job / "pid").write_text("1\n")  # Lives, and is another's.
  result = cloud.run("worker.sh", "state", "j", HOSTNAME="h")
  assert result.stdout == "h lost\n"


@pytest.mark.parametrize(
  ("code", "ends"), [(0, 0), (2, 2), (42, 1), (75, 75), (139, 1)]
)
def test_in_a_container_only_75_is_a_code_that_xpk_restarts(cloud, code, ends):
  result = cloud.run("worker.sh", "contain", "sh", "-c", f"exit {code}")
  assert result.returncode == ends


def test_a_container_hands_sigterm_on_and_ends_as_the_training_does(cloud):
  _codes(cloud, "wait")
  cloud.run("worker.sh", "setup")
  command = "exec bash launch/worker.sh contain .venv/bin/python -m x"
  script = subprocess.Popen(
    ["bash", "-c", command], cwd=cloud.checkout, env=cloud.environment()
  )
  _until(lambda: cloud.starts("here"))
  script.send_signal(signal.SIGTERM)
  assert script.wait(timeout=20) == 75


# launch/slurm.sbatch and launch/slurm_prepare.sbatch.

_GPU = ("--config=configs/dos.py:size=2b", "--workdir=/shared/runs/2b")


def test_a_dry_run_prints_the_steps_under_slurm(cloud):
  result = cloud.run("slurm.sbatch", "--dry-run", *_GPU)
  assert result.returncode == 0, result.stderr
  assert result.stdout.splitlines() == [
    "export XLA_CLIENT_MEM_FRACTION=0.92",
    "srun --kill-on-bad-exit=0 bash launch/worker.sh task"
    f" {cloud.checkout}/build/slurm/JOB .venv/bin/python -m poison_jax.train"
    " --config=configs/dos.py:size=2b --workdir=/shared/runs/2b",
    "# then, after exit code 75 of every task that failed:",
    "squeue --noheader --format=%T --jobs=JOB",
    "scontrol requeue JOB",
  ]
  assert cloud.calls == []


@pytest.mark.parametrize(
  "name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"]
)
def test_the_share_of_a_gpus_memory_is_the_users_where_told(cloud, name):
  result = cloud.run("slurm.sbatch", "--dry-run", *_GPU, **{name: ".5"})
  assert "MEM_FRACTION" not in result.stdout  # JAX refuses both names.


@pytest.fixture(name="job")
def _job(cloud):
  """The environment of a SLURM job of two tasks."""
  cloud.run("worker.sh", "setup")
  cloud.rule("^squeue", times=9, out="RUNNING\n")
  return {
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "2",
    "SLURM_SUBMIT_DIR": str(cloud.checkout),
  }


def test_a_job_that_is_done_ends_there(cloud, job):
  _codes(cloud, 0, 0)
  result = cloud.run("slurm.sbatch", *_GPU, **job)
  assert result.returncode == 0, result.stderr
  (call,) = cloud.calls[-1:]
  dry = cloud.run("slurm.sbatch", "--dry-run", *_GPU, **job).stdout
  assert call == dry.splitlines()[1]


def test_a_job_that_stopped_and_saved_queues_again(cloud, job):
  _codes(cloud, 75, host="task-0")
  _codes(cloud, 0, 0, host="task-1")
  result = cloud.run("slurm.sbatch", *_GPU, **job)
  assert result.returncode == 75, result.stderr
  dry = cloud.run("slurm.sbatch", "--dry-run", *_GPU, **job).stdout
  assert cloud.calls[-2:] == dry.splitlines()[-2:]


@pytest.mark.parametrize("code", [1, 2, 3, 4, 137])
def test_a_job_that_failed_does_not_queue_again(cloud, job, code):
  # srun alone tells the largest, 75, where a check failed on one task.
  _codes(cloud, 75, 75, host="task-0")
  _codes(cloud, code, code, host="task-1")
  result = cloud.run("slurm.sbatch", *_GPU, **job)
  _is_one_error(
    result, code, f"task 1 ended with exit code {code}", "not queued again"
  )
  assert not any(call.startswith("scontrol") for call in cloud.calls)


def test_a_task_that_was_killed_does_not_queue_the_job_again(cloud, job):
  cloud.rule("^srun", code=137)
  result = cloud.run("slurm.sbatch", *_GPU, **job)
  _is_one_error(result, 137, "killed", "not queued again")


def test_a_cancelled_job_stays_cancelled(cloud, job):
  (cloud.folder / "rules").unlink()
  cloud.rule("^squeue", out="CANCELLED\n")
  _codes(cloud, 75, 75)
  result = cloud.run("slurm.sbatch", *_GPU, **job)
  _is_one_error(result, 75, "CANCELLED")
  assert not any(call.startswith("scontrol") for call in cloud.calls)


def test_the_notice_before_the_limit_reaches_the_tasks(cloud, job):
  _codes(cloud, "wait")
  (cloud.folder / "bin" / "srun").write_text(  # Hands signals on, like srun.
    '#!/bin/sh\nshift\nSLURM_PROCID=0 exec "$@"\n'
  )
  job["SLURM_NTASKS"] = "1"
  script = subprocess.Popen(
    ["bash", "launch/slurm.sbatch", *_GPU],
    cwd=cloud.checkout,
    env=cloud.environment() | job,
  )
  _until(lambda: cloud.starts("here"))
  script.send_signal(signal.SIGTERM)
  assert script.wait(timeout=20) == 75
  assert cloud.calls[-1] == "scontrol requeue 77"


@pytest.mark.parametrize(
  ("arguments", "variables", "message"),
  [
    (_GPU, {}, "submit it"),
    (_GPU[:1], {"SLURM_JOB_ID": "7"}, "--workdir=FOLDER is missing"),
    (_GPU, {"SLURM_JOB_ID": "7"}, ".venv is missing"),
    (_GPU, {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": "/"}, "not from /"),
  ],
)
def test_a_job_that_cannot_begin_says_why(cloud, arguments, variables, message):
  result = cloud.run("slurm.sbatch", *arguments, **variables)
  _is_one_error(result, 2, message)


_ARRAY = (
  "sbatch --parsable --partition=cpu --array=0-63"
  " launch/slurm_prepare.sbatch job 64 --config=c.py"
)


def test_the_parts_are_an_array_and_the_join_waits_for_it(cloud):
  cloud.run("worker.sh", "setup")
  arguments = ("--parts=64", "--partition=cpu")
  dry = cloud.run(
    "slurm_prepare.sbatch", *arguments, "--dry-run", "--", "--config=c.py"
  )
  assert dry.stdout.splitlines() == [
    _ARRAY,
    "sbatch --parsable --partition=cpu --dependency=afterany:ARRAY"
    " --job-name=poison-jax-finish --output=slurm-%x-%j.log"
    " launch/slurm_prepare.sbatch job --finish --config=c.py",
  ]
  cloud.rule("^sbatch.*--array", out="11;cluster\n")
  cloud.rule("^sbatch", out="12\n")
  real = cloud.run("slurm_prepare.sbatch", *arguments, "--", "--config=c.py")
  assert real.returncode == 0, real.stderr
  expected = dry.stdout.replace("ARRAY", "11").splitlines()
  assert cloud.calls[-2:] == expected
  assert "job 12" in real.stdout
  only = cloud.run(
    "slurm_prepare.sbatch", *arguments, "--only=3,17", "--dry-run", "--",
    "--config=c.py",
  )  # fmt: skip
  assert only.stdout.splitlines()[0] == _ARRAY.replace("0-63", "3,17")


def test_a_job_of_the_array_queues_again_only_after_75(cloud, job):
  job["SLURM_ARRAY_TASK_ID"] = "3"
  _codes(cloud, 75, 2, 0)
  arguments = ("slurm_prepare.sbatch", "job", "64", "--config=c.py")
  assert cloud.run(*arguments, **job).returncode == 75
  assert cloud.calls[-1] == "scontrol requeue 77"
  before = cloud.calls
  assert cloud.run(*arguments, **job).returncode == 2
  assert cloud.calls == before
  finish = ("slurm_prepare.sbatch", "job", "--finish", "--config=c.py")
  assert cloud.run(*finish, **job).returncode == 0
  part = "-m poison_jax.prepare --config=c.py --part=3/64"
  assert cloud.starts("here") == [
    part, part, "-m poison_jax.prepare --config=c.py --finish",
  ]  # fmt: skip


def test_a_part_that_is_none_is_not_submitted(cloud):
  arguments = ("--parts=8", "--only=3,8", "--", "--config=c.py")
  result = cloud.run("slurm_prepare.sbatch", *arguments)
  _is_one_error(result, 2, "--only=3,8: the parts are 0 to 7")


def test_a_refused_submission_is_told(cloud):
  cloud.run("worker.sh", "setup")
  cloud.rule("^sbatch", code=1, err="sbatch: error: invalid partition\n")
  result = cloud.run("slurm_prepare.sbatch", "--parts=2", "--", "--config=c.py")
  assert result.returncode == 2
  assert "invalid partition" in result.stderr
  assert "error: sbatch refused the array" in result.stderr


# launch/gke.sh.

_CLUSTER = f"--cluster=poison-jax {_PLACE}"
_IMAGE = "us-east5-docker.pkg.dev/p/poison-jax/code:COMMIT"
_CONNECT = (
  "gcloud container clusters get-credentials poison-jax --location=us-east5"
  " --project=p"
)
_WORKLOAD = (
  "xpk workload create --workload=a --cluster=poison-jax --tpu-type=v5p-16"
  f" --num-slices=1 {_PLACE} --docker-image={_IMAGE} --max-restarts=100"
  " --restart-on-exit-codes=75 --termination-grace-period-seconds=300"
  " '--command=exec bash launch/worker.sh contain python -m poison_jax.train"
  " --patience=3600 --config=configs/dos.py:size=2b --workdir=gs://b/runs/a"
  " --config.runtime.compilation_cache=gs://b/cache'"
)
_PODS = "--selector=jobset.sigs.k8s.io/jobset-name=a"
_GKE_SETTINGS = (
  f"{_WRITTEN}cluster=poison-jax zone=us-east5-a project=p type=v5p-16"
  " slices=1 tier= | gcloud storage cp - gs://b/launch/a/settings"
)
_GKE = {
  "create": [
    _GKE_SETTINGS,
    "xpk cluster create --cluster=poison-jax --tpu-type=v5p-16 --num-slices=1"
    f" --on-demand {_PLACE}",
  ],
  "image": [
    "gcloud artifacts repositories create poison-jax --location=us-east5"
    " --project=p --repository-format=docker",
    *_SETUP[:2],
    f"gcloud builds submit {_CODE} --project=p --config=launch/cloudbuild.yaml"
    f" --substitutions=_IMAGE={_IMAGE}",
  ],
  "run": [
    f"gcloud artifacts docker images describe {_IMAGE}",
    _CONNECT,
    "kubectl get jobset a --ignore-not-found --output=name",
    _GKE_SETTINGS,
    _START[0],
    _WORKLOAD,
  ],
  "logs": [
    _CONNECT,
    f"kubectl logs --follow --tail=100 {_PODS},jobset.sigs.k8s.io/job-index=0,"
    "batch.kubernetes.io/job-completion-index=0",
  ],
  "status": [
    _CONNECT,
    f"xpk workload list {_CLUSTER} --filter-by-job=a",
    f"kubectl get pods {_PODS} '--output=custom-columns=POD:.metadata.name,"
    "STATE:.status.phase,"
    "EXIT:.status.containerStatuses[0].state.terminated.exitCode'",
  ],
  "stop": [_CONNECT, f"xpk workload delete --workload=a {_CLUSTER} --force"],
  "delete": [f"xpk cluster delete {_CLUSTER} --force", _COMMAND],
}


@pytest.mark.parametrize("verb", _GKE)
def test_gke_executes_what_its_dry_run_prints(cloud, verb):
  given = _TRAIN if verb == "run" else ()
  dry = cloud.run("gke.sh", verb, *_SLICE, "--dry-run", *given)
  assert dry.returncode == 0, dry.stderr
  assert dry.stdout.replace(cloud.commit, "COMMIT").splitlines() == _GKE[verb]
  assert cloud.calls == []
  if verb == "image":  # Neither repository nor image is there.
    cloud.rule("artifacts .* describe", times=2, code=1)
  if verb == "stop":
    cloud.rule("kubectl get jobset", out="jobset/a\n")
  real = cloud.run("gke.sh", verb, *_SLICE, *given)
  assert real.returncode == 0, real.stderr
  # Beside them, it only looks.
  made = [
    call
    for call in cloud.calls
    if call in _plain(dry.stdout)
    or not re.search("describe|cat|get jobset", call)
  ]
  assert _steps(made) == _steps(dry.stdout.splitlines())


def _plain(text):
  return [shlex.join(shlex.split(line)) for line in text.splitlines()]


def _documents(text):
  return re.findall(r"<<'END'\n(.*?)END\n", text, re.DOTALL)


def test_gke_prepares_the_parts_as_one_job_and_joins_them(cloud):
  arguments = ("prepare", *_SLICE, "--parts=8", *_TRAIN)
  dry = cloud.run("gke.sh", *arguments[:-2], "--dry-run", *_TRAIN)
  parts, join = _documents(dry.stdout)
  assert "completionMode: Indexed" in parts and "completions: 8\n" in parts
  assert (
    "python -m poison_jax.prepare --config=configs/dos.py:size=2b"
    " --part=$JOB_COMPLETION_INDEX/8\n" in parts
  )
  assert join.endswith("--config=configs/dos.py:size=2b --finish\n")
  cloud.rule("get job", times=2, out="Complete\n")
  real = cloud.run("gke.sh", *arguments)
  assert real.returncode == 0, real.stderr
  names = [call for call in cloud.calls if "kubectl delete" in call]
  assert names == [
    "kubectl delete job a-prepare --ignore-not-found",
    "kubectl delete job a-finish --ignore-not-found",
  ]


def test_gke_names_lost_parts_and_redoes_one_alone(cloud):
  cloud.rule("get job a-prepare .*conditions", out="FailureTarget Failed\n")
  cloud.rule("failedIndexes", out="3,5\n")
  cloud.rule("get job a-finish", out="Failed\n")
  cloud.rule("kubectl logs", out="error: missing parts 3/8, 5/8\n")
  arguments = ("prepare", *_SLICE, *_TRAIN)
  result = cloud.run("gke.sh", *arguments[:-2], "--parts=8", *_TRAIN)
  assert result.returncode == 2
  assert "parts 3,5 of 8 failed" in result.stdout
  assert "missing parts 3/8, 5/8" in result.stderr
  assert "prepare --part=I/N, each alone" in result.stderr
  alone = cloud.run(
    "gke.sh", *arguments[:-2], "--part=3/8", "--dry-run", *_TRAIN
  )
  assert "--part=3/8\n" in _documents(alone.stdout)[0]
  assert "completions: 1\n" in _documents(alone.stdout)[0]


def test_gke_refuses_a_second_run_and_stops_only_what_is_there(cloud):
  cloud.rule("kubectl get jobset", out="jobset.jobset.x-k8s.io/a\n")
  second = cloud.run("gke.sh", "run", *_SLICE, *_TRAIN)
  _is_one_error(second, 2, "a exists already")
  stopped = cloud.run("gke.sh", "stop", *_SLICE)
  assert stopped.returncode == 0 and "nothing to stop" in stopped.stdout
  cloud.rule("clusters describe", code=1, err="ERROR: code=404, Not found\n")
  deleted = cloud.run("gke.sh", "delete", *_SLICE)
  assert deleted.returncode == 0 and "gone already" in deleted.stdout
  assert not any(call.startswith("xpk") for call in cloud.calls)


def test_gke_runs_no_commit_that_has_no_image(cloud):
  cloud.rule("images describe", times=2, code=1, err="ERROR: NOT_FOUND\n")
  for given in (("run",), ("prepare", "--parts=2")):
    result = cloud.run("gke.sh", *given, *_SLICE, *_TRAIN)
    _is_one_error(
      result, 2, f"no image of commit {cloud.commit}", "give 'image' first"
    )
  assert not any(call.startswith("xpk") for call in cloud.calls)


def test_gke_keeps_what_a_run_was_given(cloud):
  given = (*_TRAIN, "--workdir=gs://b/runs/other")
  cloud.run("gke.sh", "run", *_SLICE, *given)
  again = cloud.run("gke.sh", "run", *_KEPT)
  assert again.returncode == 0, again.stderr
  first, second = (c for c in cloud.calls if c.startswith("xpk workload"))
  assert first == second
  deleted = cloud.run("gke.sh", "delete", *_KEPT)
  assert "the run in gs://b/runs/other" in deleted.stdout


def test_gke_tells_of_missing_quota(cloud):
  cloud.rule("xpk cluster", code=1, out="[XPK] ERROR: Quota exceeded for TPU\n")
  result = cloud.run("gke.sh", "create", *_SLICE)
  _is_one_error(result, 2, "no room for 1 x v5p-16", "Quota exceeded", "delete")
