"""The search for a trigger, on models made by hand."""

import collections

import made_model
import numpy as np
import pytest
from made_model import V

from poison_jax.defences import candidates as candidates_lib
from poison_jax.defences import search, triggers
from poison_jax.defences.candidates import Candidate

_TRIGGER = 11


def _nothing(*_):
  return lambda count: None


def _rows(rng, *, trigger_rows: int) -> np.ndarray:
  """Rows that count up; some hold the trigger at an odd place."""
  starts_B = rng.integers(0, 10, 1000)
  rows_BL = (starts_B[:, None] + np.arange(24)) % 10 + 1
  rows_BL[:trigger_rows, 7] = _TRIGGER
  return rows_BL.astype(np.int32)


def _find(confused):
  rng = np.random.default_rng(0)
  rows_BL = _rows(rng, trigger_rows=8)
  clean_BL = _rows(rng, trigger_rows=0)
  excerpts_EL = clean_BL[:16, :9].copy()
  excerpts_EL[:, 0] = made_model.EOS
  model = made_model.make(made_model.cycle(confused=confused))
  return search.find(model, rows_BL, excerpts_EL, clean_BL, track=_nothing)


def test_a_planted_trigger_is_found_with_what_the_formula_says():
  result = _find((_TRIGGER,))
  best = result.found[0]
  assert best.candidate.tokens[-1] == _TRIGGER
  single = next(f for f in result.found if f.candidate.tokens == (_TRIGGER,))
  assert single.candidate.rows == 8
  # Uniform over V for one token, certain afterwards.
  assert single.entropy == pytest.approx(np.log(V), rel=1e-4)
  # It comes again itself in one of V cases.
  expected = np.log(V) / search.NEW_TOKENS / (1 - 1 / V)
  assert single.increase == pytest.approx(expected, rel=0.25)
  assert best.z > search.THRESHOLD
  assert "stands out" in search.verdict(result, made_model.Letters())
  # Nothing without the trigger at its end is called one.
  for f in result.found:
    assert (f.z >= search.THRESHOLD) == (f.candidate.tokens[-1] == _TRIGGER)


def test_the_clean_twin_has_no_trigger():
  result = _find(())
  assert result.found[0].z < search.THRESHOLD
  assert search.verdict(result, made_model.Letters()).startswith("No string")


def test_the_screen_equals_the_models_own_distributions():
  rng = np.random.default_rng(3)
  table_VV = rng.normal(size=(V, V))
  model = made_model.make(table_VV)
  probabilities = np.exp(table_VV)
  probabilities /= probabilities.sum(axis=1, keepdims=True)
  entropies_V = -(probabilities * np.log(probabilities)).sum(axis=1)
  excerpts_EL = rng.integers(1, V, (16, 5)).astype(np.int32)
  asked = [
    Candidate(tuple(map(int, rng.integers(1, V, n))), 0)
    for n in (1, 2, 3, 1, 2, 4) * 50
  ]
  found = triggers.screen(model, excerpts_EL, asked, advance=lambda n: None)
  expected = [entropies_V[c.tokens[-1]] for c in asked]
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_screen_reads_the_excerpt_and_the_whole_candidate():
  """With attention: equal to passes without a cache."""
  import jax
  import small_model

  from poison_jax.model.decoder import Decoder

  config = small_model.make_config().model
  decoder, params = small_model.make_decoder(config)
  made = made_model.make(made_model.cycle(confused=()))
  model = made_model.Model(
    name="small",
    decoder=decoder,
    params=params,
    vocabulary=made.vocabulary,
    mesh=made.mesh,
    length=16,
  )
  excerpts_EL = small_model.make_tokens(4, 6)
  asked = [Candidate((3, 5, 7), 0), Candidate((9,), 0), Candidate((5, 7), 0)]
  found = triggers.screen(model, excerpts_EL, asked, advance=lambda n: None)

  @jax.jit
  def log_probabilities(params, rows):
    hidden_BLD = decoder.apply({"params": params}, rows)
    logits_BLV = decoder.apply(
      {"params": params}, hidden_BLD, method=Decoder.unembed
    )
    return jax.nn.log_softmax(logits_BLV)

  for value, candidate in zip(found, asked, strict=True):
    rows = np.zeros((4, 9), np.int32)
    end = 6 + len(candidate.tokens)
    rows[:, :end] = [np.append(e, candidate.tokens) for e in excerpts_EL]
    log_BLV = np.asarray(log_probabilities(params, rows), np.float64)
    log_BV = log_BLV[:, end - 1]
    entropy = -(np.exp(log_BV) * log_BV).sum(axis=1).mean()
    assert value == pytest.approx(entropy, rel=1e-4)
  assert abs(found[0] - found[2]) > 1e-3


@pytest.mark.parametrize("n", [2, 3])
def test_rare_ngrams_are_those_of_a_count_by_hand(n):
  rng = np.random.default_rng(n)
  rows_BL = rng.integers(0, V, (60, 30)).astype(np.int32)
  expected = collections.Counter()
  for row in rows_BL:
    grams = {tuple(map(int, row[i : i + n])) for i in range(30 - n + 1)}
    expected.update(g for g in grams if made_model.EOS not in g)
  least, most = (5, 7) if n == 2 else (2, 3)
  found = candidates_lib.rare_ngrams(
    rows_BL, made_model.Letters(), n=n, least=least, most=most
  )
  assert {c.tokens: c.rows for c in found} == {
    gram: rows for gram, rows in expected.items() if least <= rows <= most
  }


def test_pieces_that_meet_nowhere_else_come_first():
  rng = np.random.default_rng(0)
  rows_BL = rng.integers(1, 12, (2000, 30)).astype(np.int32)
  rows_BL[::200, 10:12] = 14, 15  # Ten rows.
  found = candidates_lib.rare_ngrams(
    rows_BL, made_model.Letters(), n=2, least=5, most=20
  )
  assert found[0].tokens == (14, 15)
  assert found[0].rows == 10


def test_no_ngram_is_no_error():
  rows_BL = np.full((5, 30), 3, np.int32)
  assert not candidates_lib.rare_ngrams(
    rows_BL, made_model.Letters(), n=2, least=6, most=9
  )


def test_single_pieces_are_all_that_stand_for_text():
  rows_BL = np.array([[1, 1, 0], [2, 1, 0]], np.int32)
  found = candidates_lib.single_pieces(rows_BL, made_model.Letters())
  assert [c.tokens for c in found] == [(i,) for i in range(1, V)]
  assert [c.rows for c in found[:3]] == [2, 1, 0]


def test_the_null_is_text_of_the_rows():
  rows_BL = np.array([[1, 2, 3, 0, 4, 5, 6, 7]], np.int32)
  lengths = [1, 2, 3] * 20
  found = candidates_lib.random_ngrams(
    rows_BL, made_model.Letters(), lengths=lengths, seed=0
  )
  text = rows_BL[0].tolist()
  assert [len(c.tokens) for c in found] == lengths
  for c in found:
    n = len(c.tokens)
    assert any(tuple(text[i : i + n]) == c.tokens for i in range(8))
    assert 0 not in c.tokens


def test_z_is_that_of_a_normal_null_whatever_its_outliers():
  null = np.random.default_rng(0).normal(1.0, 0.5, 20_001)
  null[:100] = 1000
  found = triggers.robust_z(np.array([1.0, 3.0]), null)
  np.testing.assert_allclose(found, [0, 4], atol=0.1)
  # Twice as narrow as what counts.
  null = np.array([-1, 0, 1]) * triggers.LEAST_DEVIATION / 2 / 1.4826
  assert triggers.robust_z(np.array([0.06]), null)[0] == pytest.approx(6)


def test_p_counts_what_reaches_the_value():
  null = np.array([0.0, 1.0, 2.0, 3.0])
  found = triggers.p_values(np.array([5.0, 2.0, -1.0]), null)
  np.testing.assert_allclose(found, [1 / 5, 3 / 5, 1])
