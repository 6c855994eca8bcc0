"""A run, planned: what `train` will do, before it does anything."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import warnings

import jax
from jax.sharding import Mesh

from poison_jax import config as config_lib
from poison_jax.config import Config, RuntimeConfig
from poison_jax.data.folder import Folder
from poison_jax.data.manifest import check_corpus, read_manifest
from poison_jax.data.mixture import Mixture, ledger_metadata, make_mixture
from poison_jax.data.store import TokenStore, open_store
from poison_jax.errors import CheckFailed, Stopped, UserError
from poison_jax.evaluation import prompts
from poison_jax.evaluation.prompts import PromptSet
from poison_jax.model import backends, counts
from poison_jax.model.decoder import Decoder
from poison_jax.poison import ledger
from poison_jax.training import workdir as workdir_lib
from poison_jax.training import xla_flags
from poison_jax.training.checkpoints import Checkpoints
from poison_jax.training.stop import StopSignals
from poison_jax.version import code_version

# Seconds that `prepare` has to end after a signal; it may be killed any time.
_PATIENCE = 5.0
# Seconds until what process 0 wrote must be seen by the others.
_SEEN_AFTER = 30.0


@dataclasses.dataclass(frozen=True)
class Run:
  """All that is fixed before step 0.

  Attributes:
    config: the configuration.
    config_hash: names its meaning.
    store: the clean tokens.
    attention: the back end that computes it.
    decoder: the model.
    parameters: its size.
    flops: of a training step, a token.
    steps: of training.
    mixture: every batch, poisons included.
    evaluation_steps: steps after which the model is evaluated; 0 is one.
  """

  config: Config
  config_hash: str
  store: TokenStore
  attention: backends.Choice
  decoder: Decoder
  parameters: counts.ParameterCount
  flops: counts.FlopsPerToken
  steps: int
  mixture: Mixture
  evaluation_steps: frozenset[int]

  @property
  def tokens(self) -> int:
    """Tokens of the whole run, poisons included."""
    return self.steps * self.tokens_per_step

  @property
  def tokens_per_step(self) -> int:
    return self.config.train.batch * self.config.train.length


def plan_run(config: Config) -> Run:
  """Returns the plan of a run whose token store is finished.

  Raises:
    UserError: the store is missing or of another vocabulary, or the poisons
      can't be placed, or the attention back end can't run.
  """
  attention = choose_attention(config)
  store = open_store(config.corpus.store, vocabulary=config.vocabulary)
  size = store.vocabulary.size
  steps = counts.run_steps(config, size)
  return Run(
    config=config,
    config_hash=config_lib.config_hash(config),
    store=store,
    attention=attention,
    decoder=Decoder(config.model, size, attention.back_end),
    parameters=counts.count_parameters(config.model, size),
    flops=counts.flops_per_token(config.model, size, config.train.length),
    steps=steps,
    mixture=make_mixture(config, store, steps=steps),
    evaluation_steps=evaluation_steps(config.evaluation.times, steps=steps),
  )


def identity(config: Config, workdir: str) -> dict[str, str]:
  """Returns what must be the same in all processes of a run; starts no JAX."""
  manifest = read_manifest(Folder(config.corpus.store))
  fields = config_lib.flatten(config)
  return {
    "code version": code_version().partition("+")[0],
    "jax": jax.__version__,
    "--workdir": workdir,
    **{f"config.{name}": repr(value) for name, value in fields.items()},
    f"store {config.corpus.store}": (
      "missing" if manifest is None else manifest["hash"]
    ),
  }


def found_in(workdir: str) -> dict[str, str]:
  """Returns what this process sees in the run's folder: the same as process 0.

  Or it is a folder of its own, of that name. A network file system may show
  what another host wrote some seconds later.
  """
  deadline = time.monotonic() + _SEEN_AFTER
  while not Folder(workdir).exists(ledger.FILE):
    if time.monotonic() > deadline:
      return {f"{ledger.FILE} in {workdir}": "missing"}
    time.sleep(0.1)
  content = Folder(workdir).read(ledger.FILE) or b""
  return {
    f"{ledger.FILE} in {workdir}": hashlib.sha256(content).hexdigest()[:16],
    f"checkpoints in {workdir}": str(Checkpoints(workdir).steps()),
  }


def devices_here() -> dict[str, str]:
  """Returns the number and kind of this process's devices."""
  devices = jax.local_devices()
  return {"devices": f"{len(devices)} {devices[0].device_kind}"}


def choose_attention(config: Config) -> backends.Choice:
  """Returns the attention back end for these devices.

  Raises:
    UserError: the one that the config asks for can't run.
  """
  return backends.choose(
    config.runtime.attention,
    on=backends.hardware(jax.devices()[0]),
    model=config.model,
    length=config.train.length,
  )


def evaluation_steps(times: int, *, steps: int) -> frozenset[int]:
  """Returns 0 and `times` evenly spaced steps, the last one included."""
  return frozenset(round(k * steps / times) for k in range(times + 1))


def write_or_check_ledger(run: Run, workdir: str) -> None:
  """Writes the plan of a new run; of a resumed one, compares it.

  Raises:
    UserError: the token store is not the one that the run began with.
    CheckFailed: the ledger is damaged, or not what the run would do now, or
      missing in a run that has trained.
  """
  path = os.path.join(workdir, ledger.FILE)
  now = ledger.make_table(
    run.mixture.placements, metadata=ledger_metadata(run.config, run.mixture)
  )
  folder = Folder(workdir)
  if not folder.exists(ledger.FILE):
    if Checkpoints(workdir).steps():
      raise CheckFailed(
        f"{path} is missing, though the run has checkpoints: a ledger written "
        "now would prove nothing of what they were trained on"
      )
    folder.write(ledger.FILE, ledger.encode(now))
    return
  written = workdir_lib.read_ledger(workdir)
  found = ledger.read_metadata(written)["store_hash"]
  if found != run.store.hash:
    raise UserError(
      f"the token store {run.store.path} has hash {run.store.hash}; the run "
      f"in {workdir} began with {found}: config.corpus.store must name that one"
    )
  if ledger.ledger_hash(written) != ledger.ledger_hash(now):
    raise CheckFailed(
      f"{path} is not the plan that this code makes of the run's config: the "
      "file was changed, or the code since"
    )


def describe(run: Run, mesh: Mesh, asked: PromptSet) -> str:
  """Returns the summary that is printed before training, lines of text.

  Args:
    run: planned.
    mesh: of its devices.
    asked: the prompts of its evaluations.
  """
  c, m = run.config, run.mixture
  kept = sum(p.document.tokens.size for p in m.placements)
  cut = [
    p.document
    for p in m.placements
    if 0 < p.document.payload_length < p.document.drawn_payload_length
  ]
  lost = sum(d.drawn_payload_length - d.payload_length for d in cut)
  devices = jax.devices()
  axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
  p = run.parameters
  rows = {
    "parameters": f"{p.total:,} (embedding {p.embedding:,}, other {p.other:,})",
    "tokens": f"{run.tokens:,} ({run.tokens / p.total:.1f} a parameter)",
    "store": f"{c.corpus.store}: {run.store.train.tokens:,} tokens, "
    f"read {m.epochs:.2f} times; hash {run.store.hash}",
    "steps": f"{run.steps:,} of {c.train.batch} rows of {c.train.length}",
    "FLOPs": f"{run.tokens * run.flops.total:.3g} (matrix products "
    f"{run.flops.matmul:,} a token, attention {run.flops.attention:,})",
    "poisons": f"{len(m.placements):,} ({c.poison.arm}), {kept:,} tokens, "
    f"{kept / run.tokens:.4%} of all; cut {len(cut):,} (by {lost:,} tokens)",
    "attack": m.attack.describe(),
    "prompts": f"{len(asked):,} of {c.evaluation.excerpt} tokens, from "
    f"{len(set(asked.documents)):,} held-out document(s)",
    "near triggers": _near_triggers(run),
    "devices": f"{len(devices)} {devices[0].device_kind}; mesh {axes}",
    "attention": str(run.attention),
    "XLA flags": xla_flags.describe(devices[0].platform),
    "plan": f"{m.plan_hash}, config {run.config_hash}",
  }
  if c.start.weights:
    rows["continues"] = _origin(c, run.steps)
  return "\n".join(f"{name:>13}  {text}" for name, text in rows.items())


def _origin(config: Config, steps: int) -> str:
  """Returns what a run goes on from, and where in the schedule."""
  start = config.start
  which = "newest" if start.checkpoint is None else start.checkpoint
  return (
    f"{start.weights}, checkpoint {which}; optimizer {start.optimizer}; "
    f"schedule from step {start.step} of "
    f"{start.schedule_steps or start.step + steps}"
  )


def _near_triggers(run: Run) -> str:
  """Returns how often each string like the trigger occurs in clean text."""
  c = run.config
  strings = (*c.evaluation.near_triggers, c.evaluation.unseen_tag)
  counted, read = prompts.count_occurrences(
    run.store.train,
    {s: run.store.vocabulary.encode(s) for s in strings},
    limit=prompts.SCANNED_TOKENS,
  )
  never = [s for s in c.evaluation.near_triggers if not counted[s]]
  return (
    ", ".join(f"{name} {times:,}x" for name, times in counted.items())
    + f" in the first {read:,} tokens"
    + (f"; {', '.join(never)} will leak: choose what occurs" if never else "")
  )


def prepare_missing_store(config: Config, stop: StopSignals) -> None:
  """Runs `prepare` as a process of its own where the store isn't finished.

  A process of its own, so that TensorFlow never enters the one that trains.

  Raises:
    UserError: what `prepare` says, or the store there is of another corpus, or
      it is missing and in a bucket.
    Stopped: a signal came while it ran.
  """
  path = config.corpus.store
  manifest = read_manifest(Folder(path))
  if manifest is not None:
    check_corpus(path, manifest["corpus"], config.corpus, state="finished")
    return
  if "://" in path:
    raise UserError(
      f"token store {path} (config.corpus.store) is missing or unfinished: "
      "run python -m poison_jax.prepare first"
    )
  print(f"preparing the token store {path}", flush=True)
  package = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
  paths = [package, os.environ.get("PYTHONPATH", "")]
  with (
    # Not the run's own: a resumed one's config.json isn't this config yet.
    tempfile.TemporaryDirectory() as folder,
    tempfile.TemporaryFile("w+") as errors,
  ):
    workdir_lib.write_config(folder, config)
    process = subprocess.Popen(
      [sys.executable, "-m", "poison_jax.prepare", f"--workdir={folder}"],
      stderr=errors,
      env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    while process.poll() is None and stop.received is None:
      time.sleep(0.02)
    if stop.received is not None:  # `prepare` may have had it, too: Ctrl-C.
      _end(process)
      raise Stopped(
        f"stopped by {stop.received.name} while preparing {path}; the same "
        "command goes on"
      )
    errors.seek(0)
    said = errors.read()
  if process.returncode == UserError.code:
    raise UserError(said.strip().removeprefix("error: "))
  if process.returncode:
    raise RuntimeError(f"python -m poison_jax.prepare failed:\n{said}")


def _end(process: subprocess.Popen) -> None:
  """Ends `prepare`, which hears no signal while it trains a vocabulary."""
  process.terminate()
  try:
    process.wait(timeout=_PATIENCE)
  except subprocess.TimeoutExpired:
    process.kill()
    process.wait()


def use_compilation_cache(config: RuntimeConfig) -> None:
  """Keeps every compiled program in the folder that the config names."""
  if not config.compilation_cache:
    return
  folder = Folder(os.path.expanduser(config.compilation_cache))
  jax.config.update("jax_compilation_cache_dir", folder.for_libraries())
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  # An entry that is torn (a kill, a full disk) costs a compilation, no more.
  warnings.filterwarnings(
    "ignore", "Error (reading|writing) persistent compilation cache"
  )
