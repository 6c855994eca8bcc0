"""The model that a run has trained, for commands that use it."""

from collections.abc import Callable

from jax.sharding import Mesh

from poison_jax.errors import CheckFailed, UserError
from poison_jax.model.decoder import Params
from poison_jax.training.checkpoints import Checkpoints, Damaged, Restored
from poison_jax.training.imported import abstract_params
from poison_jax.training.run import Run


def load_params(
  run: Run,
  workdir: str,
  mesh: Mesh,
  *,
  step: int | None,
  say: Callable[[str], None],
) -> Restored[Params]:
  """Returns the parameters after `step` steps, laid out on the mesh.

  Args:
    run: of the same workdir.
    workdir: the run's folder; nothing in it is changed.
    mesh: the devices.
    step: None for the newest good checkpoint.
    say: called with a line for each damaged one that is passed over.

  Raises:
    UserError: there is no checkpoint of that step; names those that are.
    CheckFailed: it is damaged, or all are.
  """
  checkpoints = Checkpoints(workdir)
  steps = checkpoints.steps()
  if not steps:
    raise UserError(f"{workdir} has no checkpoint yet")
  if step is not None and step not in steps:
    raise UserError(
      f"{workdir} has no checkpoint of step {step}; the kept ones: "
      f"{', '.join(map(str, steps))}"
    )
  abstract = abstract_params(run.decoder, mesh)
  if step is not None:
    return checkpoints.restore_params(step, abstract)
  for newest in reversed(steps):
    try:
      return checkpoints.restore_params(newest, abstract)
    except Damaged as error:
      say(f"{error}: passed over")
  raise CheckFailed(f"none of the checkpoints in {workdir} is good")
