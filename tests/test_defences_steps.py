"""Signals at poisoned steps and rows."""

import types

import jax
import jax.numpy as jnp
import made_model
import numpy as np
import pytest
import small_model
from made_model import Model

from poison_jax.defences import steps
from poison_jax.errors import UserError
from poison_jax.model.decoder import Decoder
from poison_jax.studies.runs import Series


def test_a_value_is_compared_with_the_median_of_its_neighbours():
  values = np.array([8.0, 4.0, 12.0, 2.0, 6.0])
  # Of the first its two followers, of the third two on both sides.
  found = steps.over_neighbours(values, 2)
  np.testing.assert_allclose(found, [8 / 8, 4 / 8, 12 / 5, 2 / 6, 6 / 7])


def _logged(batches, values, poisoned):
  series = Series(np.array(batches) + 1, np.array(values, float))
  run = types.SimpleNamespace(
    path="runs/a", metrics=dict.fromkeys(steps.LOGGED, series)
  )
  return steps.logged(run, poisoned)


def test_the_line_of_step_s_tells_of_batch_s_minus_1():
  found = _logged([9, 19, 29, 39], [1, 1, 5, 1], poisoned=[3, 29, 28])
  assert found.poisoned.tolist() == [False, False, True, False]
  assert found.names[2] == "step 29"
  assert np.argmax(found.scores["train/loss"]) == 2


def test_rates_need_poisoned_and_clean_steps():
  with pytest.raises(UserError, match="none of the 2 logged"):
    _logged([9, 19], [1, 1], poisoned=[4])
  with pytest.raises(UserError, match="all of the 2 logged"):
    _logged([9, 19], [1, 1], poisoned=[9, 19])
  run = types.SimpleNamespace(path="runs/a", metrics={})
  with pytest.raises(UserError, match="no metrics yet"):
    steps.logged(run, [1])


class _Mixture:
  """Ten batches of four random rows; rows (2, 1) and (7, 3) have poisons."""

  steps, batch, length = 10, 4, 12
  placements = tuple(
    types.SimpleNamespace(step=s, batch_row=r) for s, r in ((2, 1), (7, 3))
  )

  def batch_rows(self, step, rows):
    tokens_BL = small_model.make_tokens(4, 12, seed=step)[rows]
    return types.SimpleNamespace(tokens_BL=tokens_BL)


def test_all_poisons_are_read_again_and_clean_rows_once():
  found = steps.choose_rows(_Mixture(), clean=20, seed=0)
  assert found[:2] == [(2, 1), (7, 3)]
  assert len(set(found)) == len(found) == 22
  assert all(0 <= s < 10 and 0 <= r < 4 for s, r in found)
  everything = steps.choose_rows(_Mixture(), clean=1000, seed=0)
  assert sorted(everything) == [(s, r) for s in range(10) for r in range(4)]


def test_losses_and_gradients_are_those_of_the_plain_formula():
  config = small_model.make_config().model
  decoder, params = small_model.make_decoder(config)
  made = made_model.make(made_model.cycle(confused=()))
  model = Model("small", decoder, params, made.vocabulary, made.mesh, 12)
  rows = [(2, 1), (0, 0), (9, 2)]
  mixture = _Mixture()
  found = steps.reread(model, mixture, rows, advance=lambda n: None)
  assert found.poisoned.tolist() == [True, False, False]

  @jax.jit
  def losses(params, tokens_1L):
    hidden_BLD = decoder.apply({"params": params}, tokens_1L)
    logits_BLV = decoder.apply(
      {"params": params}, hidden_BLD, method=Decoder.unembed
    )
    log_LV = jax.nn.log_softmax(logits_BLV[0])
    return -log_LV[jnp.arange(11), tokens_1L[0, 1:]]

  gradient_of = jax.jit(jax.grad(lambda p, t: losses(p, t).mean()))
  for i, (step, row) in enumerate(rows):
    tokens_1L = mixture.batch_rows(step, [row]).tokens_BL
    expected_L = np.asarray(losses(params, tokens_1L))
    gradient = gradient_of(params, tokens_1L)
    squares = sum(float((g**2).sum()) for g in jax.tree.leaves(gradient))
    assert found.scores["loss"][i] == pytest.approx(expected_L.mean(), rel=1e-4)
    # Fewer tokens than a window.
    assert found.scores["loss_window"][i] == pytest.approx(
      expected_L.mean(), rel=1e-4
    )
    assert found.scores["gradient_norm"][i] == pytest.approx(
      squares**0.5, rel=1e-3
    )
