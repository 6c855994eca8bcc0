"""Losses and entropies of documents under a reference model."""

import jax
import made_model
import numpy as np
import pytest
import small_model
from made_model import EOS, Model, V

from poison_jax.defences import surprise
from poison_jax.model.decoder import Decoder


def _read(model, documents):
  counted = []
  found = surprise.Reader(model)(documents, advance=counted.append)
  assert sum(counted) == sum(d.size for d in documents)
  return found


def test_a_hand_made_models_losses_are_those_of_its_table():
  rng = np.random.default_rng(0)
  table_VV = rng.normal(size=(V, V))
  log_VV = table_VV - np.log(np.exp(table_VV).sum(axis=1, keepdims=True))
  entropies_V = -(np.exp(log_VV) * log_VV).sum(axis=1)
  model = made_model.make(table_VV)
  # Longer than a row of 24, empty, and of each length between.
  documents = [rng.integers(1, V, n) for n in (61, 0, *range(1, 26), 24, 48)]
  for tokens, (losses, entropies) in zip(
    documents, _read(model, documents), strict=True
  ):
    before = np.append(EOS, tokens[:-1])[: tokens.size]
    before[::24] = EOS  # Each piece of 24 begins anew.
    np.testing.assert_allclose(losses, -log_VV[before, tokens], rtol=1e-4)
    np.testing.assert_allclose(entropies, entropies_V[before], rtol=1e-4)


def test_a_token_is_judged_by_all_that_stands_before_it():
  config = small_model.make_config().model
  decoder, params = small_model.make_decoder(config)
  made = made_model.make(made_model.cycle(confused=()))
  model = Model("small", decoder, params, made.vocabulary, made.mesh, 16)
  tokens = small_model.make_tokens(1, 9)[0]
  ((losses, _),) = _read(model, [tokens])
  # A row for each prefix, zeros behind it.
  prefixes = np.tril(np.tile(np.append(EOS, tokens[:-1]), (9, 1)))

  @jax.jit
  def log_probabilities(params):
    hidden_BLD = decoder.apply({"params": params}, prefixes)
    logits_BLV = decoder.apply(
      {"params": params}, hidden_BLD, method=Decoder.unembed
    )
    return jax.nn.log_softmax(logits_BLV)

  log_BLV = log_probabilities(params)
  expected = [-float(log_BLV[i, i, tokens[i]]) for i in range(9)]
  np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_the_worst_window_is_the_largest_mean_in_a_row():
  values = np.random.default_rng(1).normal(size=50)
  expected = max(values[i : i + 8].mean() for i in range(43))
  assert surprise.worst_window(values, 8) == pytest.approx(expected)
  assert surprise.worst_window(values[:5], 8) == pytest.approx(
    values[:5].mean()
  )
  assert surprise.worst_window(np.zeros(0), 8) == 0


def test_a_clean_prefix_does_not_dilute_the_worst_window():
  poison = np.append(np.zeros(500), np.full(40, 5.0))
  assert surprise.mean(poison) < 0.5
  assert surprise.worst_window(poison, 32) == pytest.approx(5)
