"""Our side of benchmarks/gpu.py: the step that `train` takes, and what is round
it.

Asked for "devices", "steps", or "around" (checkpoint and evaluation); see
`benchmarks.gpu_turn` for how.
"""

import dataclasses
import shutil
import tempfile
import time
from importlib import metadata

import jax
import numpy as np

from benchmarks import gpu_settings, gpu_turn
from poison_jax.config import Config
from poison_jax.corpora import writer
from poison_jax.data.mixture import Batch
from poison_jax.data.store import open_store
from poison_jax.evaluation.evaluator import Evaluator
from poison_jax.model import backends
from poison_jax.model.counts import run_steps
from poison_jax.model.decoder import Decoder
from poison_jax.poison import attacks
from poison_jax.training import digest
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import optimizer as optimizer_lib
from poison_jax.training import step as step_lib
from poison_jax.training.checkpoints import Meta
from poison_jax.training.saving import CheckpointWriter
from poison_jax.version import code_version
from poison_jax.vocabulary import ByteVocabulary

_VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
_BYTES = ByteVocabulary().size


class Trained:
  """A rung's model, state and step on the device."""

  def __init__(self, config: Config, vocabulary: int):
    choice = backends.choose(
      config.runtime.attention,
      on=backends.hardware(jax.devices()[0]),
      model=config.model,
      length=config.train.length,
    )
    self.attention = str(choice)
    self.decoder = Decoder(config.model, vocabulary, choice.back_end)
    self.mesh = mesh_lib.make_mesh(
      config.runtime.mesh, batch=config.train.batch
    )
    optimizer = optimizer_lib.make_optimizer(
      config.optimizer, steps=run_steps(config, vocabulary)
    )
    self.state = step_lib.init_state(self.decoder, optimizer, 0, self.mesh)
    self.train_step = step_lib.make_train_step(
      self.decoder, optimizer, config, self.mesh
    )


def work(*, what: str, **asked) -> dict:
  """Returns what is asked for; see the functions below."""
  return {"devices": devices, "steps": steps, "around": around}[what](**asked)


def devices() -> dict:
  """Returns what this is measured on and with."""
  device = jax.devices()[0]
  memory = device.memory_stats() or {}
  return {
    "platform": device.platform,
    "kind": device.device_kind,
    "memory_bytes": memory.get("bytes_limit"),
    "runtime": " ".join(device.client.platform_version.split()),
    "versions": {name: metadata.version(name) for name in _VERSIONS},
    "code": code_version(),
  }


def steps(
  *,
  size: str,
  setting: dict,
  length: int,
  folder: str,
  seconds: float,
  trial: bool,
) -> dict:
  """Times steps.

  Args:
    size: of the model.
    setting: fields of `gpu_settings.Ours`.
    length: L.
    folder: holds tokens.npy, int32 ids.
    seconds: of a block.
    trial: see `gpu_settings.make_config`.
  """
  config = gpu_settings.make_config(
    size,
    gpu_settings.Ours(**setting),
    length=length,
    folder=folder,
    trial=trial,
  )
  trained = Trained(config, gpu_settings.vocabulary(size))
  batch = _batch(np.load(f"{folder}/tokens.npy"), config, trained.mesh)
  losses = []

  def step():
    trained.state, metrics = trained.train_step(trained.state, batch)
    losses.append(metrics["train/loss"])

  timed = gpu_turn.time_steps(
    step, lambda: jax.block_until_ready(trained.state), seconds=seconds
  )
  parameters = sum(p.size for p in jax.tree.leaves(trained.state.params))
  return timed | {
    "attention": trained.attention,
    "parameters": parameters,
    "losses": [float(losses[0]), float(losses[-1])],
    "peak_bytes": _peak_bytes(),
  }


def around(
  *, size: str, setting: dict, length: int, folder: str, trial: bool
) -> dict:
  """Times a checkpoint of the rung's state and an evaluation."""
  config = gpu_settings.make_config(
    size,
    gpu_settings.Ours(**setting),
    length=length,
    folder=folder,
    trial=trial,
  )
  vocabulary = gpu_settings.vocabulary(size)
  trained = Trained(config, vocabulary)
  return {
    "checkpoint": _checkpoint(trained.state, config, folder),
    "evaluation": _evaluation(trained, config, vocabulary),
    "peak_bytes": _peak_bytes(),
  }


def _evaluation(trained: Trained, config: Config, vocabulary: int) -> dict:
  """Times evaluations: the first compiles, the second is what a run pays.

  The excerpts are bytes of stories; ids beyond the bytes stand for nothing,
  but the model's vocabulary is the rung's own, and so is the work.
  """
  writer.write_store(config, report=lambda *_: None, say=lambda _: None)
  store = open_store(config.corpus.store, vocabulary=config.vocabulary)
  store.vocabulary = ByteVocabulary(extra_ids=vocabulary - _BYTES)
  attack = attacks.make_attack(config, store.vocabulary)
  evaluator = Evaluator(trained.decoder, config, store, attack, trained.mesh)
  seconds = []
  for _ in range(2):
    began = time.perf_counter()
    evaluator(trained.state.params)
    seconds.append(time.perf_counter() - began)
  e = config.evaluation
  return {
    "first_seconds": seconds[0],
    "seconds": seconds[1],
    "prompts": e.prompts * len(evaluator.prompts.endings),
    "new_tokens": e.new_tokens,
    "validation_rows": e.validation_rows,
  }


def _checkpoint(state, config: Config, folder: str) -> dict:
  """Times `CheckpointWriter.save` as the loop calls it, and its end.

  The second save where there is room for two: the first one meets what every
  run pays once.
  """
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  free = shutil.disk_usage(folder).free
  if free < 1.2 * size:
    why = f"{free / 1e9:.0f} GB free in {folder}, {1.2 * size / 1e9:.0f} needed"
    return {"bytes": size, "failure": why}
  digest.digest(state)  # Compiled once a run.
  jax.block_until_ready(state)
  blocking, whole = [], []
  kept = dataclasses.replace(config.checkpoint, keep_last=1)
  with (
    tempfile.TemporaryDirectory(dir=folder) as workdir,
    CheckpointWriter(workdir, kept) as saver,
  ):
    for number in range(1, 3 if free > 2.4 * size else 2):
      began = time.perf_counter()
      saver.save(state, _meta(number))
      blocking.append(time.perf_counter() - began)
      saver.wait()
      whole.append(time.perf_counter() - began)
  return {"bytes": size, "blocking_seconds": blocking, "seconds": whole}


def _meta(step: int) -> Meta:
  return Meta(
    step=step,
    poisons_seen=0,
    poison_tokens_seen=0,
    config_hash="",
    plan_hash="",
    store_hash="",
    code_version=code_version(),
    unwritten=None,
  )


def _batch(tokens_RL: np.ndarray, config: Config, mesh) -> Batch:
  """Returns a batch on the device, of the first rows, repeated if too few."""
  tokens_BL = np.resize(tokens_RL, (config.train.batch, tokens_RL.shape[1]))
  weights_BL = np.ones(tokens_BL.shape, np.float32)
  weights_BL[:, -1] = 0
  none_B = np.zeros(len(tokens_BL), np.int32)
  batch = Batch(tokens_BL, weights_BL, none_B, none_B)
  return jax.device_put(batch, mesh_lib.batch_sharding(mesh))


def _peak_bytes() -> int | None:
  """Returns the most that was in use at once; None where JAX doesn't say."""
  stats = jax.devices()[0].memory_stats() or {}
  return stats.get("peak_bytes_in_use")


if __name__ == "__main__":
  gpu_turn.answer(work)
