"""A run folder, opened by a command that uses the trained model."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

from poison_jax.config import Config, MeshConfig
from poison_jax.errors import UserError
from poison_jax.model.decoder import Params
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import run as run_lib
from poison_jax.training.checkpoints import Checkpoints, Damaged
from poison_jax.training.run import Run
from poison_jax.training.trained import load_params
from poison_jax.training.workdir import load_config

# More devices than the run had, or fewer: weights cut over all of them.
_ANY_DEVICES = MeshConfig(data=1, fsdp=-1, tensor=1)


@dataclasses.dataclass(frozen=True)
class Opened:
  """A run folder whose model can be loaded.

  Attributes:
    workdir: the folder; nothing in it is changed.
    run: its plan.
    mesh: the devices here, laid out as in the run where they allow it.
    say: called with a line for each checkpoint that is passed over.
  """

  workdir: str
  run: Run
  mesh: Mesh
  say: Callable[[str], None]

  def params(self, steps: str) -> Iterator[tuple[int, Params]]:
    """Yields steps done and the parameters then.

    Args:
      steps: "last", "all", or numbers joined by commas.

    Raises:
      UserError: not such a text, or a step of which there is no checkpoint, or
        the store is not the one that the run was trained on.
      CheckFailed: a step asked for by number is damaged, or all are.
    """
    if steps == "last":
      found = self._load(None)
      yield found.meta.step, found.state
    elif steps == "all":
      yield from self._all()
    else:
      for step in _numbers(steps):
        yield step, self._load(step).state

  def _all(self) -> Iterator[tuple[int, Params]]:
    good = 0
    for step in Checkpoints(self.workdir).steps():
      try:
        found = self._load(step)
      except Damaged as error:
        self.say(f"{error}: passed over")
        continue
      good += 1
      yield step, found.state
    if not good:
      self._load(None)  # Says which error it is.

  def _load(self, step: int | None):
    found = load_params(
      self.run, self.workdir, self.mesh, step=step, say=self.say
    )
    if found.meta.store_hash != self.run.store.hash:
      raise UserError(
        f"the token store {self.run.store.path} has hash "
        f"{self.run.store.hash}; the run in {self.workdir} was trained on "
        f"{found.meta.store_hash}: name that one with --store"
      )
    return found


def open_run(
  workdir: str, *, store: str | None, say: Callable[[str], None]
) -> Opened:
  """Returns the opened run.

  Args:
    workdir: the run's folder.
    store: the token store's folder where it isn't the run's any more.
    say: called with a line for each checkpoint that is passed over.

  Raises:
    UserError: no run there, or no store of the run's vocabulary.
  """
  config = load_config(workdir)
  if store is not None:
    corpus = dataclasses.replace(config.corpus, store=store)
    config = dataclasses.replace(config, corpus=corpus)
  config = _with_attention(config)
  run_lib.use_compilation_cache(config.runtime)
  return Opened(workdir, run_lib.plan_run(config), _mesh(config), say)


def _with_attention(config: Config) -> Config:
  """Returns the config with another back end where its own can't run here."""
  try:
    run_lib.choose_attention(config)
  except UserError:
    runtime = dataclasses.replace(config.runtime, attention="auto")
    return dataclasses.replace(config, runtime=runtime)
  return config


def _mesh(config: Config) -> Mesh:
  """Returns the run's mesh where its axes give the number of devices."""
  devices = jax.device_count()
  try:
    return mesh_lib.make_mesh(config.runtime.mesh, batch=devices)
  except UserError:
    return mesh_lib.make_mesh(_ANY_DEVICES, batch=devices)


def _numbers(steps: str) -> list[int]:
  try:
    return [int(step) for step in steps.split(",")]
  except ValueError:
    raise UserError(
      f"--step={steps}: must be 'last', 'all', or steps like 500 or 500,1000"
    ) from None
