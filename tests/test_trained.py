"""Commands find the model that a run has trained."""

import jax
import jax.numpy as jnp
import pytest
import small_run

from poison_jax.errors import CheckFailed, UserError
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import optimizer as optimizer_lib
from poison_jax.training import run as run_lib
from poison_jax.training import step as step_lib
from poison_jax.training.checkpoints import Meta
from poison_jax.training.saving import CheckpointWriter
from poison_jax.training.trained import load_params


@pytest.fixture(name="saved", scope="module")
def _saved(tmp_path_factory):
  """A run, its mesh, its folder, and the states of steps 3 and 6."""
  folder = tmp_path_factory.mktemp("trained")
  small_run.prepare(folder / "store")
  config = small_run.make_config(folder / "store")
  run = run_lib.plan_run(config)
  mesh = mesh_lib.make_mesh(config.runtime.mesh, batch=8)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, steps=run.steps)
  states = {}
  with CheckpointWriter(str(folder / "run"), config.checkpoint) as writer:
    for step in (3, 6):
      states[step] = step_lib.init_state(run.decoder, optimizer, step, mesh)
      writer.save(states[step], Meta(step, 0, 0, "", "", "", "", None))
  return run, mesh, folder / "run", states


def _equal(a, b):
  return all(jax.tree.leaves(jax.tree.map(lambda x, y: (x == y).all(), a, b)))


def test_parameters_of_any_kept_step(saved):
  run, mesh, folder, states = saved
  for step, expected in ((3, 3), (6, 6), (None, 6)):
    loaded = load_params(run, str(folder), mesh, step=step, say=pytest.fail)
    assert loaded.meta.step == expected
    assert _equal(loaded.state, states[expected].params)
    tokens_BL = jnp.zeros((1, 4), jnp.int32)
    run.decoder.apply({"params": loaded.state}, tokens_BL)


def test_a_step_that_was_not_kept_is_named_with_those_that_were(saved):
  run, mesh, folder, _ = saved
  with pytest.raises(UserError, match="no checkpoint of step 4; .*: 3, 6"):
    load_params(run, str(folder), mesh, step=4, say=pytest.fail)
  with pytest.raises(UserError, match="no checkpoint yet"):
    load_params(run, str(folder / "x"), mesh, step=None, say=pytest.fail)


def test_damaged_ones_are_passed_over_and_left_where_they_are(saved):
  run, mesh, folder, states = saved
  manifest = folder / "checkpoints" / "6" / "state" / "manifest.ocdbt"
  content = manifest.read_bytes()
  manifest.write_bytes(b"")
  lines = []
  loaded = load_params(run, str(folder), mesh, step=None, say=lines.append)
  assert loaded.meta.step == 3 and _equal(loaded.state, states[3].params)
  assert len(lines) == 1 and "step 6" in lines[0]
  with pytest.raises(CheckFailed, match="step 6"):
    load_params(run, str(folder), mesh, step=6, say=pytest.fail)
  manifest.write_bytes(content)
  again = load_params(run, str(folder), mesh, step=6, say=pytest.fail)
  assert _equal(again.state, states[6].params)
