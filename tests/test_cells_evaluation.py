"""The evaluations of cells against each cell's own evaluator."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from poison_jax.data.store import open_store
from poison_jax.evaluation.cells import CellsEvaluator
from poison_jax.evaluation.evaluator import Evaluator
from poison_jax.model.decoder import Decoder
from poison_jax.poison.attacks import make_attack
from poison_jax.training import cells as cells_lib
from poison_jax.training import mesh as mesh_lib

# Of what one model computes; sums inside a product come in another order.
# Means, and the number of one prompt, whose logits are large here.
_TOLERANCE, _OF_A_PROMPT = 1e-5, 1e-4
# Prompts of other lengths and random numbers, gibberish of another length;
# the last batch of prompts is not full.
_CELLS = [
  {"seed": 1},
  {
    "seed": 2,
    "poison__trigger": "<A LONGER TRIGGER>",
    "poison__payload_max": 20,
  },
]
_SHARED = {
  "seeds__order": 0,
  "evaluation__batch": 5,
  "evaluation__new_tokens": 4,
}


@pytest.fixture(name="cells", scope="module")
def _cells(tmp_path_factory):
  """Each cell's own evaluation, and those of all at once."""
  folder = tmp_path_factory.mktemp("cells") / "store"
  small_run.prepare(folder)
  configs = [small_run.make_config(folder, **(_SHARED | c)) for c in _CELLS]
  store = open_store(str(folder), vocabulary=None)
  decoder = Decoder(configs[0].model, store.vocabulary.size)
  mesh = mesh_lib.make_mesh(configs[0].runtime.mesh, batch=8)
  evaluators = [
    Evaluator(decoder, c, store, make_attack(c, store.vocabulary), mesh)
    for c in configs
  ]
  init = jax.jit(decoder.init)
  tokens_BL = jnp.zeros((1, 4), jnp.int32)
  params = [
    jax.tree.map(_larger, init(jax.random.key(i), tokens_BL)["params"])
    for i in range(len(configs))
  ]
  alone = [e(p) for e, p in zip(evaluators, params, strict=True)]
  evaluate = CellsEvaluator(
    decoder, configs, evaluators, cells_lib.make_mesh(len(configs))
  )
  params_C = jax.tree.map(lambda *x: jnp.stack(x), *params)
  return alone, evaluate, params_C


def _larger(x):
  """Ten times a matrix, so that distributions are far from uniform."""
  return 10 * x if x.ndim > 1 else x


def test_each_cell_measures_what_it_measures_alone(cells):
  alone, evaluate, params_C = cells
  found = evaluate(params_C, range(len(alone)))
  assert len({e.metrics["eval/validation_loss"] for e in alone}) == len(alone)
  for i, expected in enumerate(alone):
    assert found[i].metrics == pytest.approx(
      expected.metrics, rel=_TOLERANCE, abs=_TOLERANCE
    )
    for line, other in zip(
      found[i].generations, expected.generations, strict=True
    ):
      assert line.keys() == other.keys()
      for key in ("kind", "prompt", "document"):
        assert line[key] == other[key]
      assert line.get("text") == other.get("text")
      assert line["log_perplexity"] == pytest.approx(
        other["log_perplexity"], rel=_OF_A_PROMPT
      )


def test_a_cell_that_is_not_asked_for_may_be_anything(cells):
  alone, evaluate, params_C = cells
  broken_C = jax.tree.map(lambda x: x.at[1].set(jnp.nan), params_C)
  whole = evaluate(params_C, [0, 1])
  found = evaluate(broken_C, [0])
  assert list(found) == [0]
  assert dataclasses.asdict(found[0]) == dataclasses.asdict(whole[0])
  assert np.isfinite(alone[1].metrics["eval/validation_loss"])
