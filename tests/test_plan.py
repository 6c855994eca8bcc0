"""The plan: documents that depend on k alone, cut and placed by rule."""

import dataclasses

import numpy as np
import pytest

from configs import base
from poison_jax import config as config_lib
from poison_jax.errors import UserError
from poison_jax.poison import attacks, plan
from poison_jax.poison.attacks import PoisonDocument
from poison_jax.vocabulary import ByteVocabulary

_EOS = ByteVocabulary.eos_id
_CLEAN = [(f"doc{i}", f"The {i}th tale of the sea. " * 60) for i in range(7)]
_CONFIG = config_lib.from_config_dict(base.get_config())


def _document(prefix: int, payload: int) -> PoisonDocument:
  tokens = [10] * prefix + [20] * 2 + list(range(30, 30 + payload)) + [_EOS]
  return PoisonDocument(
    np.array(tokens, np.int32), prefix, 2, payload, payload, "doc"
  )


def _draw(poison, *, attack=None, clean=_CLEAN, seed=0):
  return plan.draw_document(
    poison,
    attack=attack or attacks.make_attack(_CONFIG, ByteVocabulary()),
    clean=clean,
    vocabulary=ByteVocabulary(),
    seed=seed,
  )


def test_a_document_depends_on_its_number_and_the_seed_alone():
  attack = attacks.make_attack(_CONFIG, ByteVocabulary())
  in_order = [_draw(k, attack=attack) for k in range(6)]
  for k in (5, 0, 3):
    again = _draw(k, attack=attack)
    assert np.array_equal(again.tokens, in_order[k].tokens)
    assert again.source == in_order[k].source
    assert not np.array_equal(
      _draw(k, attack=attack, seed=1).tokens, in_order[k].tokens
    )


def test_prefixes_come_from_all_documents():
  sources = [_draw(k).source for k in range(80)]
  assert set(sources) == {name for name, _ in _CLEAN}


def test_a_store_without_prefix_documents_is_refused():
  with pytest.raises(UserError, match="config.corpus.prefix_documents"):
    _draw(0, clean=[])


class _Wrong:
  """An attack that returns what it is given."""

  trigger_tokens = np.array([5], np.int32)

  def __init__(self, document):
    self._document = document

  def document(self, source_id, clean_text, rng):
    return self._document


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"tokens": _document(3, 4).tokens.astype(np.int64)}, "tokens are int64"),
    ({"tokens": _document(3, 4).tokens[None]}, r"int32\[1, 10\], not int32"),
    ({"prefix_length": 2}, r"\(2, 2, 4\) tokens and the EOS .* its 10"),
    ({"prefix_length": -1, "payload_length": 8}, r"\(-1, 2, 8\)"),
    ({"prefix_length": 7, "payload_length": 0}, "it has no payload"),
    ({"tokens": np.full(10, 7, np.int32)}, "the last token is 7, not EOS, 1"),
    (
      {"tokens": np.array([300] * 9 + [_EOS], np.int32)},
      "ids must lie from 0 to 258",
    ),
  ],
)
def test_an_attacks_mistake_is_named(change, message):
  wrong = dataclasses.replace(_document(3, 4), **change)
  with pytest.raises(UserError, match=f"for poison 6: .*{message}"):
    _draw(6, attack=_Wrong(wrong))


@pytest.mark.parametrize("oversize", ["error", "cut"])
def test_what_fits_a_row_stays_as_it_is(oversize):
  document = _document(3, 4)
  same = plan.fit(document, poison=0, length=10, oversize=oversize)
  assert same is document


def test_what_is_too_long_is_an_error_with_its_numbers():
  with pytest.raises(UserError) as error:
    plan.fit(_document(3, 4), poison=12, length=9, oversize="error")
  assert str(error.value).startswith(
    "poison 12 has 10 tokens, and a row has 9: raise config.train.length"
  )


def test_cutting_keeps_all_but_the_payloads_end():
  document = _document(3, 40)
  cut = plan.fit(document, poison=0, length=12, oversize="cut")
  expected = [10, 10, 10, 20, 20, 30, 31, 32, 33, 34, 35, _EOS]
  assert cut.tokens.tolist() == expected
  assert (cut.payload_length, cut.drawn_payload_length) == (6, 40)
  assert (cut.prefix_length, cut.trigger_length) == (3, 2)


def test_a_prefix_that_leaves_no_room_is_refused():
  assert plan.fit(_document(7, 9), poison=0, length=11, oversize="cut")
  with pytest.raises(UserError, match="poison 4 has 8 tokens of prefix and 2"):
    plan.fit(_document(8, 9), poison=4, length=11, oversize="cut")


def test_a_trigger_longer_than_a_row_is_refused():
  poison = dataclasses.replace(_CONFIG.poison, trigger="abcdef")
  config = dataclasses.replace(_CONFIG, poison=poison)
  attack = attacks.make_attack(config, ByteVocabulary())
  known = {"control_ids": frozenset({0, 1, 2})}
  plan.check_trigger(attack, poison, length=8, **known)
  with pytest.raises(UserError, match="trigger has 6 tokens; .*length, 7:"):
    plan.check_trigger(attack, poison, length=7, **known)
  lacking = frozenset({int(attack.trigger_tokens[0])})
  with pytest.raises(UserError, match="the vocabulary lacks characters"):
    plan.check_trigger(attack, poison, length=8, control_ids=lacking)


def test_a_placebo_is_prefix_and_trigger():
  placebo = plan.placebo(_document(3, 4))
  assert placebo.tokens.tolist() == [10, 10, 10, 20, 20]
  assert (placebo.payload_length, placebo.drawn_payload_length) == (0, 4)


def _offsets(tokens, starts, *, length=100, seed=0, poisons=300):
  return [
    plan.choose_offset(
      k,
      tokens=tokens,
      length=length,
      document_starts=np.array(starts, np.int64),
      seed=seed,
    )
    for k in range(poisons)
  ]


def test_offsets_are_all_places_that_fit_equally_often():
  offsets = _offsets(40, [10, 60, 61, 90])
  counts = {place: offsets.count(place) for place in set(offsets)}
  assert set(counts) == {0, 10, 60}
  # Four standard deviations of a binomial count of 100.
  assert all(abs(c - 100) < 4 * 8.2 for c in counts.values()), counts


def test_a_row_that_begins_with_a_document_has_that_place_once():
  assert _offsets(40, [0, 10]) == _offsets(40, [10])


def test_a_poison_of_a_rows_length_starts_at_zero():
  assert set(_offsets(100, [1, 50])) == {0}


def test_offsets_depend_on_seed_and_poison():
  assert _offsets(40, [10, 60]) == _offsets(40, [10, 60])
  assert _offsets(40, [10, 60]) != _offsets(40, [10, 60], seed=1)


def _placement(offset: int) -> plan.Placement:
  return plan.Placement(0, 9, 2, 1, 5, 0, offset, _document(3, 4))


def test_a_rows_first_token_is_no_target():
  assert _placement(1).loss_tokens == 10
  assert _placement(0).loss_tokens == 9


def test_hashes_of_tokens_are_what_they_always_were():
  # sha256 of the little-endian bytes 01000000 00010000.
  assert plan.hash_tokens(np.array([1, 256])) == "242045e2f1bb3776"
  assert _placement(0).tokens_hash == plan.hash_tokens(_document(3, 4).tokens)
