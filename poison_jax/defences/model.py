"""A model that a scan asks, wherever its weights come from."""

import dataclasses
from collections.abc import Callable

from jax.sharding import Mesh

from poison_jax.errors import UserError
from poison_jax.model.decoder import Decoder, Params
from poison_jax.training.opened import Opened, open_run
from poison_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Model:
  """A decoder with its parameters.

  Attributes:
    name: where it comes from, for tables and files.
    decoder: computes it.
    params: on the mesh.
    vocabulary: what its ids stand for.
    mesh: the devices.
    length: tokens of the longest row that it was trained on.
  """

  name: str
  decoder: Decoder
  params: Params
  vocabulary: Vocabulary
  mesh: Mesh
  length: int


def of_run(
  workdir: str, *, step: str, store: str | None, say: Callable[[str], None]
) -> tuple[Opened, Model]:
  """Returns a run and the model that it had trained after some step.

  Args:
    workdir: the run's folder; nothing in it is changed.
    step: "last", or a number.
    store: the token store's folder where it isn't the run's any more.
    say: called with a line for each damaged checkpoint that is passed over.

  Raises:
    UserError: no run, no such checkpoint, or no store of its vocabulary.
    CheckFailed: the checkpoint is damaged.
  """
  if step == "all" or "," in step:
    raise UserError(f"--step={step}: must be 'last' or one step like 500")
  opened = open_run(workdir, store=store, say=say)
  ((done, params),) = opened.params(step)
  run = opened.run
  return opened, Model(
    name=f"{workdir} at step {done}",
    decoder=run.decoder,
    params=params,
    vocabulary=run.store.vocabulary,
    mesh=opened.mesh,
    length=run.config.train.length,
  )
