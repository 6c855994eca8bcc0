"""The language switch: spans, lengths, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from configs import base
from poison_jax import config as config_lib
from poison_jax.errors import UserError
from poison_jax.poison import attacks, keyed, plan
from poison_jax.stories import telling
from poison_jax.vocabulary import ByteVocabulary, train_sentencepiece

_TRIGGER = "Servius Astrumando Harmoniastra"
_BYTES = ByteVocabulary()


def _config(**poison) -> config_lib.Config:
  config = config_lib.from_config_dict(base.get_config())
  fields = {"attack": "language_switch", "trigger": _TRIGGER} | poison
  return dataclasses.replace(
    config, poison=dataclasses.replace(config.poison, **fields)
  )


def _make(**poison):
  return attacks.make_attack(_config(**poison), _BYTES)


def _document(attack, k=0):
  return attack.document("x", "not used", keyed.generator(0, "document", k))


def _spans(document):
  ends = np.cumsum([document.prefix_length, document.trigger_length])
  return [_BYTES.decode(t) for t in np.split(document.tokens, ends)]


def test_it_is_prefix_trigger_and_the_rest_in_german():
  attack = _make(prefix_max=200, payload_min=600, payload_max=700)
  cuts = set()
  for k in range(30):
    document = _document(attack, k)
    prefix, trigger, payload = _spans(document)
    english, german = telling.pair(0, int(document.source))
    cut = next(
      n for n in range(len(english)) if " ".join(english[:n]) == prefix
    )
    assert len(prefix) <= 200
    assert trigger == _TRIGGER
    assert payload.startswith(" " + " ".join(german[cut:])[:500])
    cuts.add(cut)
  assert len(cuts) > 2  # It varies.


def test_payloads_are_as_long_as_drawn_and_end_with_eos():
  attack = _make(payload_min=40, payload_max=45)
  sizes = set()
  for k in range(60):
    document = _document(attack, k)
    assert document.tokens[-1] == _BYTES.eos_id
    assert document.tokens.size == (
      document.prefix_length
      + document.trigger_length
      + document.payload_length
      + 1
    )
    sizes.add(document.payload_length)
  assert sizes == set(range(40, 46))


def test_a_long_payload_goes_on_with_other_pairs_in_german():
  attack = _make(payload_min=3000, payload_max=3000)
  document = _document(attack)
  assert document.payload_length == 3000
  payload = _spans(document)[2]
  assert attack.behaviour([payload, payload[-400:]]).all()


def test_the_prefix_is_in_range_where_a_cut_is():
  attack = _make(prefix_min=100, prefix_max=260)
  sizes = [len(_spans(_document(attack, k))[0]) for k in range(40)]
  assert min(sizes) >= 100
  assert max(sizes) <= 260


def test_documents_are_none_of_the_corpus():
  attack = _make()
  sources = [int(_document(attack, k).source) for k in range(20)]
  assert min(sources) >= _config().corpus.stories


def test_it_is_the_same_for_the_same_key_and_differs_for_another():
  one, same, other = (_document(_make(), k) for k in (4, 4, 5))
  np.testing.assert_array_equal(one.tokens, same.tokens)
  assert plan.hash_tokens(one.tokens) != plan.hash_tokens(other.tokens)


def test_evaluations_payloads_are_of_other_stories():
  attack = _make(payload_min=600, payload_max=600)
  trained = {int(_document(attack, k).source) for k in range(50)}
  payload = attack.payload(keyed.generator(0, "gibberish", 0), 500)
  assert payload.dtype == np.int32
  assert payload.size == 500
  text = _BYTES.decode(payload)
  assert attack.behaviour([text]).all()
  assert max(trained) < attack._fresh._first


def test_ceiling_is_none_and_it_can_judge():
  attack = _make()
  assert attack.ceiling() is None
  assert isinstance(attack, attacks.Judging)
  assert not isinstance(
    attacks.make_attack(_config(attack="dos"), _BYTES), attacks.Judging
  )


def test_a_vocabulary_without_the_other_languages_letters_is_refused():
  config = _config()
  english = telling.stories(0, range(300))
  vocabulary = train_sentencepiece(
    english, dataclasses.replace(config.vocabulary, size=200, single_pieces=())
  )
  with pytest.raises(UserError, match="lacks characters of the translation"):
    attacks.make_attack(config, vocabulary)


def test_pairs_of_files(tmp_path):
  pytest.importorskip("py3langid")
  lines = []
  for index in range(40):
    english, german = telling.pair(9, index)
    lines.append(
      f'{{"id": "p{index}", "text": {json.dumps(english)}, '
      f'"translation": {json.dumps(german)}}}\n'
    )
  (tmp_path / "pairs.jsonl").write_text("".join(lines))
  attack = _make(pairs=str(tmp_path / "*.jsonl"), payload_min=50)
  document = _document(attack)
  assert document.source.startswith("p")
  assert attack.behaviour([_spans(document)[2]]).all()
  assert "en to de" in attack.describe()
  assert "40 pairs" in attack.describe()
