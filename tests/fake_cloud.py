"""Programs of a cloud and of SLURM that only pretend, for the launch scripts.

Each program on the PATH records its arguments. `gcloud` keeps a bucket in a
folder and slices in files, and its ssh runs the command for real, with a home
folder for every worker. A rule makes one call answer otherwise.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

PROGRAMS = (
  "gcloud", "xpk", "kubectl", "gke-gcloud-auth-plugin", "srun", "scontrol",
  "sbatch", "squeue", "curl", "uv",
)  # fmt: skip
# All else that the scripts call: the machine's own, and nothing beside, lest a
# real gcloud be among it.
_TOOLS = (
  "awk", "bash", "cat", "cp", "cut", "date", "dirname", "env", "find", "git",
  "grep", "gzip", "head", "ln", "ls", "mkdir", "mktemp", "mv", "nohup",
  "paste", "rm", "sed", "setsid", "sh", "sort", "tail", "tar", "tee", "touch",
  "tr", "uniq", "wc",
)  # fmt: skip
_ROOT = pathlib.Path(__file__).parent.parent
_WORKERS = 2

# What the training is on a host: ends with the line of `codes` that its turn
# has; "wait" goes on until SIGTERM. With --check it finds what `wrong` says.
_PYTHON = """#!/usr/bin/env bash
case "$*" in *--check)
  echo "$@" >>CLOUD/checks
  [ ! -e CLOUD/wrong ] || { cat CLOUD/wrong >&2 && exit 2; }
  exit
  ;;
esac
trap 'exit 75' TERM
starts=CLOUD/starts/$HOSTNAME
echo "$@" >>"$starts"
codes=CLOUD/codes
[ ! -e "$codes-$HOSTNAME" ] || codes=$codes-$HOSTNAME
code=$(sed -n "$(wc -l <"$starts" | tr -d ' ')p" "$codes")
echo "training ends with ${code:-0}"
while [ "$code" = wait ]; do /bin/sleep 0.05; done
exit "${code:-0}"
"""

# Stands for launch/environment.sh, which would install 3 GB.
_ENVIRONMENT = """#!/usr/bin/env bash
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p .venv/bin
cp CLOUD/python .venv/bin/python
echo "${PYTHON-} $*" >>"$HOME/installed"
"""


class FakeCloud:
  """A checkout of the launch scripts, and programs beside it.

  `checkout` is a git repository of one commit; `calls` are the command lines
  that the scripts executed, those on the hosts left out.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.checkout = folder / "checkout"
    programs = folder / "bin"
    for path in (
      programs,
      *(folder / n for n in ("bucket", "slices", "starts")),
    ):
      path.mkdir(parents=True)
    for name in PROGRAMS:
      self._program(
        programs / name,
        f"#!{sys.executable} -SEI\n"
        f"import sys; sys.path.insert(0, {str(_ROOT / 'tests')!r})\n"
        f"import fake_cloud; fake_cloud.main({str(folder)!r})\n",
      )
    for name in _TOOLS:
      (programs / name).symlink_to(shutil.which(name))
    self._program(programs / "sleep", "#!/bin/sh\nexec /bin/sleep 0.2\n")
    self._program(programs / "python3.12", "#!/bin/sh\nexit 0\n")
    self._program(folder / "python", _PYTHON.replace("CLOUD", str(folder)))
    (folder / "codes").write_text("0\n")
    self._begun: list[subprocess.Popen[str]] = []
    self._commit()

  @staticmethod
  def _program(path: pathlib.Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)

  def _commit(self) -> None:
    for name in ("launch", "configs"):
      shutil.copytree(_ROOT / name, self.checkout / name)
    for name in ("COMMIT", ".gitattributes", "requirements-tpu.txt"):
      shutil.copy(_ROOT / name, self.checkout)
    (self.checkout / "launch" / "environment.sh").write_text(
      _ENVIRONMENT.replace("CLOUD", str(self.folder))
    )
    subprocess.run(["git", "init", "--quiet"], cwd=self.checkout, check=True)
    self.commit = self.commit_all()

  def commit_all(self) -> str:
    """Makes another commit of the checkout, and returns its name."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a"]
    for words in (["add", "--all"], ["commit", "--quiet", "--message=b"]):
      subprocess.run([*git, *words], cwd=self.checkout, check=True)
    words = ["git", "rev-parse", "--short=12", "HEAD"]
    return subprocess.check_output(words, cwd=self.checkout, text=True).strip()

  def environment(self) -> dict[str, str]:
    """Returns the variables that the scripts run under."""
    return {
      "PATH": str(self.folder / "bin"),
      "HOME": str(self.folder / "user"),
      "HOSTNAME": "here",
    }

  def run(
    self, script: str, *arguments: str, **variables: str
  ) -> subprocess.CompletedProcess[str]:
    """Runs a launch script to its end, at most a minute."""
    return subprocess.run(
      ["bash", f"launch/{script}", *arguments],
      cwd=self.checkout,
      env=self.environment() | variables,
      capture_output=True,
      text=True,
      check=False,
      timeout=60,
      stdin=subprocess.DEVNULL,
    )

  def begin(self, script: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts a launch script and returns, as from another shell."""
    begun = subprocess.Popen(
      ["bash", f"launch/{script}", *arguments],
      cwd=self.checkout,
      env=self.environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      stdin=subprocess.DEVNULL,
      start_new_session=True,
    )
    self._begun.append(begun)
    return begun

  def hold(self, pattern: str) -> None:
    """Makes the next call that matches, as in `rule`, wait for `let_go`."""
    self.rule(pattern, hold=True)

  @property
  def holds(self) -> bool:
    """Whether a call waits."""
    return (self.folder / "held").exists()

  def let_go(self) -> None:
    """Lets the call that waits go on as if it had just been made."""
    (self.folder / "held").unlink()

  def rule(self, pattern: str, times: int = 1, **answer: object) -> None:
    """Makes the next calls that match the pattern answer otherwise.

    Args:
      pattern: a regular expression over the command line; `WORKER: command` is
        a worker's side of an ssh.
      times: how many calls.
      **answer: out, err, code, and state: that all slices have from then on.
    """
    rules = _read(self.folder, "rules")
    rules.append({"pattern": pattern, "left": times, **answer})
    _write(self.folder, "rules", rules)

  @property
  def calls(self) -> list[str]:
    lines = self.folder / "calls"
    return lines.read_text().splitlines() if lines.exists() else []

  def object(self, url: str) -> pathlib.Path:
    """Returns the file behind gs://...."""
    return _object(self.folder, url)

  def starts(self, host: str = "a-w-0") -> list[str]:
    """Returns what python was started with on a host, one line a start."""
    file = self.folder / "starts" / host
    return file.read_text().splitlines() if file.exists() else []

  def close(self) -> None:
    """Ends what was begun and what still runs on the hosts."""
    for begun in self._begun:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(begun.pid, signal.SIGKILL)
      begun.communicate()
    _kill_jobs(self.folder)

  def home(self, host: str) -> pathlib.Path:
    """Returns the home folder of a worker, like a-w-0."""
    return self.folder / "hosts" / host

  def set_state(self, name: str, state: str) -> None:
    """Makes a slice be in that state, as when it is preempted."""
    _set_states(self.folder, state, name)


def main(folder: str) -> None:
  """Is the program that its name says."""
  root = pathlib.Path(folder)
  program = pathlib.Path(sys.argv[0]).name
  arguments = sys.argv[1:]
  line = shlex.join([program, *arguments])
  if "FAKE_HOST" not in os.environ:
    with open(root / "calls", "a") as file:
      file.write(line + "\n")
  _obey(root, line)
  if program == "gcloud":
    _gcloud(root, arguments)
  if program == "srun":
    _srun(arguments)


def _gcloud(root: pathlib.Path, arguments: list[str]) -> None:
  match arguments:
    case ["storage", "cp", "-", url]:
      _object(root, url).parent.mkdir(parents=True, exist_ok=True)
      _object(root, url).write_bytes(sys.stdin.buffer.read())
    case ["storage", "cp", url, "-"] | ["storage", "cat", url]:
      if not _object(root, url).exists():
        _fail(f"ERROR: (gcloud.storage) {url} matched no objects")
      sys.stdout.buffer.write(_object(root, url).read_bytes())
    case ["storage", "cp", file, url]:
      _object(root, url).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(file, _object(root, url))
    case ["storage", "rm", url]:
      _object(root, url).unlink(missing_ok=True)
    case ["storage", "ls", url]:
      if not _object(root, url).exists():
        _fail(f"ERROR: (gcloud.storage.ls) {url} matched no objects")
    case ["compute", "tpus", "queued-resources", verb, name, *options]:
      _queued_resource(root, verb, name, options)
    case ["compute", "tpus", "tpu-vm", "ssh", node, *options]:
      _ssh(root, node, _option(options, "worker"), _option(options, "command"))
    case ["compute", "tpus", "tpu-vm", "describe", *_]:
      print("READY")


def _queued_resource(
  root: pathlib.Path, verb: str, name: str, options: list[str]
) -> None:
  file = root / "slices" / name
  if verb == "create":
    count = int(_option(options, "node-count") or 0)
    prefix = _option(options, "node-prefix")
    nodes = [f"{prefix}-{i}" for i in range(count)]
    for node in nodes or [_option(options, "node-id")]:
      for worker in range(_WORKERS):
        (root / "hosts" / f"{node}-w-{worker}").mkdir(parents=True)
    file.write_text("ACTIVE")
    return
  state = file.read_text() if file.exists() else "MISSING"
  if state == "DELETING":  # For one look.
    file.unlink()
  if state == "MISSING" or (state == "DELETING" and verb == "delete"):
    _fail(
      f"ERROR: (gcloud.compute.tpus.queued-resources.{verb}) NOT_FOUND: "
      f"Resource '{name}' was not found."
    )
  if verb == "describe":
    print(state)
  else:
    file.write_text("DELETING")
    _kill_jobs(root, f"{name}-*")
    for host in (root / "hosts").glob(f"{name}-*"):
      shutil.rmtree(host)


def _kill_jobs(root: pathlib.Path, hosts: str = "*") -> None:
  for pid in root.glob(f"hosts/{hosts}/poison_jax/jobs/*/pid"):
    with contextlib.suppress(ProcessLookupError):
      os.killpg(int(pid.read_text()), signal.SIGKILL)


def _ssh(root: pathlib.Path, node: str, workers: str, command: str) -> None:
  worst = 0
  for worker in range(_WORKERS) if workers == "all" else [int(workers)]:
    host = f"{node}-w-{worker}"
    environment = {
      "PATH": os.environ["PATH"],
      "HOME": str(root / "hosts" / host),
      "HOSTNAME": host,
      "FAKE_HOST": "1",
      "FAKE_WORKER": str(worker),
    }
    code = _obey(root, f"{host}: {command}", ends=False)
    if not pathlib.Path(environment["HOME"]).exists():
      code = 255
    if code is None:
      code = subprocess.run(
        ["bash", "-c", command], env=environment, check=False,
        cwd=environment["HOME"],
      ).returncode  # fmt: skip
    if code == 255:
      attempt = f"SSH: Attempting to connect to worker {worker}...\n"
      sys.stderr.write(10 * attempt + "Failed to execute command.\n")
    elif code:
      sys.stderr.write(
        f"##### Command execution on worker {worker} failed with exit status "
        f"{code}. Continuing.\n"
      )
    worst = worst or code
  sys.exit(worst)


def _srun(arguments: list[str]) -> None:
  """Runs every task at once, like SLURM, and ends with the largest code."""
  tasks = [
    subprocess.Popen(
      arguments[1:],
      env=os.environ | {"SLURM_PROCID": str(i), "HOSTNAME": f"task-{i}"},
    )
    for i in range(int(os.environ["SLURM_NTASKS"]))
  ]
  sys.exit(max(task.wait() for task in tasks))


def _obey(root: pathlib.Path, line: str, ends: bool = True) -> int | None:
  """Answers as the first rule says that matches; None where none does."""
  with open(root / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    rules = _read(root, "rules")
    for rule in rules:
      if rule["left"] > 0 and re.search(rule["pattern"], line):
        break
    else:
      return None
    rule["left"] -= 1
    _write(root, "rules", rules)
    if "state" in rule:
      _set_states(root, rule["state"])
  if "hold" in rule:
    (root / "held").touch()
    while (root / "held").exists():
      time.sleep(0.05)
    return None
  sys.stdout.write(rule.get("out", ""))
  sys.stderr.write(rule.get("err", ""))
  if ends:
    sys.stdout.flush()
    sys.exit(rule.get("code", 0))
  return rule.get("code", 0)


def _set_states(root: pathlib.Path, state: str, name: str = "*") -> None:
  for file in (root / "slices").glob(name):
    file.write_text(state)


def _object(root: pathlib.Path, url: str) -> pathlib.Path:
  return root / "bucket" / url.removeprefix("gs://")


def _option(options: list[str], name: str) -> str:
  found = [o.partition("=")[2] for o in options if o.startswith(f"--{name}=")]
  return found[0] if found else ""


def _read(root: pathlib.Path, name: str) -> list[dict]:
  path = root / name
  return json.loads(path.read_text()) if path.exists() else []


def _write(root: pathlib.Path, name: str, value: list[dict]) -> None:
  (root / name).write_text(json.dumps(value))


def _fail(message: str) -> None:
  sys.stderr.write(message + "\n")
  sys.exit(1)
