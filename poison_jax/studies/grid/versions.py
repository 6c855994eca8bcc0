"""Which code trained the cells of a study."""

import json
from collections.abc import Sequence

from poison_jax.data.folder import Folder
from poison_jax.errors import UserError
from poison_jax.studies.grid.plan import Plan
from poison_jax.studies.grid.states import Kind, State
from poison_jax.training import workdir as workdir_lib
from poison_jax.version import code_version


def current() -> str:
  """Returns the version of the files as they are now, with its commit."""
  code_version.cache_clear()
  return code_version()


def code_hash(version: str) -> str:
  """Names the code alone: the commit may be another where it is the same."""
  return version.partition("+")[0]


def check_code(plan: Plan, *, found: Sequence[State], mix: bool) -> None:
  """Checks that cells begun before were made by this very code.

  Args:
    plan: the study's.
    found: the state of each cell.
    mix: whether cells of several versions are wanted.

  Raises:
    UserError: some were made by other code, and that isn't wanted.
  """
  others: dict[str, int] = {}
  for state in found:
    for version in _code_versions(plan, state):
      if code_hash(version) != code_hash(code_version()):
        others[version] = others.get(version, 0) + 1
  if others and not mix:
    told = ", ".join(f"{version} ({n} cells)" for version, n in others.items())
    raise UserError(
      f"cells in {plan.workdir} were made by code {told}, this is "
      f"{code_version()}: check that code out, or mix the two by --mix_code"
    )


def _code_versions(plan: Plan, state: State) -> tuple[str, ...]:
  """Returns what code trained a cell, as far as it has been trained."""
  if state.ending is not None:
    return state.ending.code_versions
  if state.step == 0 and state.kind is not Kind.RUNNING:
    return ()
  content = Folder(plan.path(state.cell)).read(workdir_lib.CONFIG)
  try:  # Of a dispatcher that runs it, or was killed.
    return (json.loads(content or b"{}")["code_version"],)
  except (ValueError, KeyError, TypeError):
    return ()  # The run itself says what is wrong with it.
