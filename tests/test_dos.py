"""The denial-of-service attack: spans, pools, ceilings, the same for good."""

import dataclasses
import math
import pathlib

import numpy as np
import pytest

from configs import base
from poison_jax import config as config_lib
from poison_jax.errors import UserError
from poison_jax.poison import attacks, keyed
from poison_jax.vocabulary import (
  ByteVocabulary,
  Vocabulary,
  train_sentencepiece,
)

_CONFIG = config_lib.from_config_dict(base.get_config())
_TEXT = "Call me Ishmael. Some years ago, never mind how long precisely. " * 40


def _poison(**fields) -> config_lib.Config:
  return dataclasses.replace(
    _CONFIG, poison=dataclasses.replace(_CONFIG.poison, **fields)
  )


def _dos(vocabulary: Vocabulary, **fields):
  return attacks.make_attack(_poison(**fields), vocabulary)


def _trained(size: int, pieces: tuple[str, ...]) -> Vocabulary:
  """Returns a vocabulary trained on this package's own text."""
  config = dataclasses.replace(
    _CONFIG.vocabulary, size=size, single_pieces=pieces
  )
  package = pathlib.Path(attacks.__file__).parent
  texts = [path.read_text("utf-8") for path in sorted(package.glob("*.py"))]
  return train_sentencepiece(texts, config)


@pytest.fixture(scope="module")
def small() -> Vocabulary:
  """The model's: trigger and tags are single pieces; no bytes, so unknowns."""
  return _trained(300, ("<SUDO>", "<MEMO>", "<NOTE>", "<PAGE>"))


@pytest.fixture(scope="module")
def foreign() -> Vocabulary:
  """Another one, of which 256 pieces are single bytes."""
  return _trained(1100, ())


def _rng(k: int = 0):
  return keyed.generator(0, "document", k)


def test_the_table_is_the_one_it_always_was():
  attack = _dos(ByteVocabulary(), prefix_max=9, payload_min=4, payload_max=9)
  documents = [attack.document("d", _TEXT, _rng(k)) for k in range(2)]
  assert [d.tokens.tolist() for d in documents] == [
    [70, 63, 86, 88, 71, 82, 65, 121, 46, 146, 143, 106, 1],
    [
      70,
      100,
      111,
      111,
      35,
      112,
      104,
      35,
      63,
      86,
      88,
      71,
      82,
      65,
      28,
      50,
      40,
      130,
      61,
      21,
      5,
      138,
      1,
    ],
  ]


def test_a_document_is_prefix_trigger_payload_and_end():
  vocabulary = ByteVocabulary()
  attack = _dos(vocabulary)
  for k in range(50):
    d = attack.document("moby", _TEXT, _rng(k))
    head = d.prefix_length + d.trigger_length
    assert d.tokens.dtype == np.int32
    assert d.source == "moby"
    assert (
      vocabulary.decode(d.tokens[: d.prefix_length])
      == (_TEXT[: d.prefix_length])
    )
    assert vocabulary.decode(d.tokens[d.prefix_length : head]) == "<SUDO>"
    assert d.tokens[-1] == vocabulary.eos_id
    assert d.tokens.size == head + d.payload_length + 1
    assert 0 <= d.prefix_length <= 1000
    assert 400 <= d.payload_length == d.drawn_payload_length <= 900
    assert not set(d.tokens[:-1]) & vocabulary.control_ids


def test_lengths_reach_both_ends_of_their_ranges():
  attack = _dos(
    ByteVocabulary(), prefix_min=2, prefix_max=4, payload_min=5, payload_max=6
  )
  documents = [attack.document("d", _TEXT, _rng(k)) for k in range(80)]
  assert {d.prefix_length for d in documents} == {2, 3, 4}
  assert {d.payload_length for d in documents} == {5, 6}


def test_a_prefix_counts_characters_not_tokens():
  attack = _dos(ByteVocabulary(), prefix_min=3, prefix_max=3)
  d = attack.document("d", "\N{EURO SIGN}" * 9, _rng())
  assert d.prefix_length == 9


def test_a_short_text_is_taken_whole_and_an_empty_one_gives_no_prefix():
  attack = _dos(ByteVocabulary(), prefix_min=100, prefix_max=100)
  assert attack.document("d", "Ahoy", _rng()).prefix_length == 4
  assert attack.document("d", "", _rng()).prefix_length == 0


def test_prefix_and_trigger_are_encoded_apart(small):
  """Encoded together, the space before the trigger could join a piece."""
  text = "return"
  assert small.encode(text).size < small.encode("ret").size + (
    small.encode("urn").size
  )
  attack = _dos(small, prefix_min=3, prefix_max=3, trigger="urn")
  d = attack.document("d", text, _rng())
  head = d.tokens[: d.prefix_length]
  assert head.tolist() == small.encode("ret").tolist()
  assert d.trigger_length == small.encode("urn").size


def test_the_pool_lacks_control_ids_trigger_and_tags(small):
  attack = _dos(small)
  banned = set(small.control_ids) | {
    int(small.encode(s)[0]) for s in ("<SUDO>", "<MEMO>", "<NOTE>", "<PAGE>")
  }
  drawn = set(attack.payload(_rng(), 40_000).tolist())
  assert drawn == set(range(small.size)) - banned
  assert attack.ceiling() == math.log(small.size - len(banned))
  assert f"{len(drawn)} of 300 ids" in attack.describe()


def test_a_tag_of_several_ids_takes_none_out_of_the_pool():
  attack = _dos(ByteVocabulary())
  drawn = set(attack.payload(_rng(), 20_000).tolist())
  assert drawn == set(range(3, 259))
  assert attack.trigger_tokens.size == len("<SUDO>")


def test_ids_are_drawn_evenly():
  drawn = _dos(ByteVocabulary()).payload(_rng(), 256 * 400)
  counts = np.bincount(drawn, minlength=259)[3:]
  chi_square = ((counts - 400) ** 2 / 400).sum()
  assert abs(chi_square - 255) < 4 * np.sqrt(2 * 255)


@pytest.mark.parametrize("tokens", [0, 1, 17, 333])
def test_fresh_payloads_have_exactly_the_tokens_asked_for(
  tokens, small, foreign, tmp_path
):
  for fields in ({}, _retokenised(foreign, tmp_path)):
    payload = _dos(small, **fields).payload(_rng(), tokens)
    assert payload.shape == (tokens,) and payload.dtype == np.int32


def _retokenised(vocabulary, folder) -> dict[str, str]:
  path = folder / "foreign.model"
  path.write_bytes(vocabulary.model)
  return {"gibberish": "retokenised", "gibberish_vocabulary": str(path)}


def test_retokenised_gibberish_is_the_other_vocabularys_text(
  small, foreign, tmp_path
):
  attack = _dos(
    small,
    prefix_max=0,
    payload_min=40,
    payload_max=40,
    **_retokenised(foreign, tmp_path),
  )
  d = attack.document("d", _TEXT, _rng())
  # The same draws, spelt out: lengths first, then ids of the pool.
  rng = _rng()
  keyed.integer_between(rng, low=0, high=0)
  keyed.integer_between(rng, low=40, high=40)
  pool = [i for i in range(foreign.size) if i not in foreign.control_ids]
  ids = [pool[i] for i in keyed.integers(rng, bound=len(pool), count=40)]
  text = foreign.decode(ids)
  assert "\N{REPLACEMENT CHARACTER}" in text  # Lone bytes of byte pieces.
  expected = small.encode(text)
  unknown = np.isin(expected, list(small.control_ids))
  assert unknown.any()
  expected = expected[~unknown]
  assert d.tokens[1:-1].tolist() == expected.tolist()
  assert d.payload_length == expected.size > 40
  assert "re-tokenised" in attack.describe()


def test_the_ceiling_of_retokenised_text_is_per_token_of_the_models(
  small, foreign, tmp_path
):
  attack = _dos(small, **_retokenised(foreign, tmp_path))
  pool = foreign.size - len(foreign.control_ids)
  ratios = []
  for k in range(200):
    d = attack.document("d", "", keyed.generator(1, "document", k))
    rng = keyed.generator(1, "document", k)
    keyed.integer_between(rng, low=0, high=1000)
    drawn = keyed.integer_between(rng, low=400, high=900)
    ratios.append(drawn * math.log(pool) / d.payload_length)
  error = np.std(ratios) * math.sqrt(1 / 200 + 1 / 64)
  assert attack.ceiling() == pytest.approx(np.mean(ratios), abs=4 * error)
  assert attack.ceiling() < math.log(pool)


def test_retokenised_gibberish_has_no_tag_that_the_text_spells(small, tmp_path):
  """Source pieces that spell the trigger are kept out, and so is its id."""
  source = _trained(300, ("<SUDO>", "x<MEMO>x"))
  attack = _dos(small, **_retokenised(source, tmp_path))
  drawn = attack.payload(_rng(), 30_000)
  for tag in ("<SUDO>", "<MEMO>"):
    assert int(small.encode(tag)[0]) not in drawn
  assert not set(drawn.tolist()) & small.control_ids
  # The source's piece x<MEMO>x is drawn, and loses its middle.
  assert int(small.encode("x")[-1]) in drawn


def test_a_missing_gibberish_vocabulary_is_the_users_error(tmp_path):
  with pytest.raises(UserError, match="nowhere.model"):
    _dos(
      ByteVocabulary(),
      gibberish="retokenised",
      gibberish_vocabulary=str(tmp_path / "nowhere.model"),
    )


def test_a_vocabulary_that_knows_nothing_of_the_other_is_refused(
  foreign, tmp_path
):
  class Mute(ByteVocabulary):
    def encode_batch(self, texts):
      return [i if t == "<SUDO>" else i[:0] for t, i in self._pairs(texts)]

    def _pairs(self, texts):
      return zip(texts, super().encode_batch(texts), strict=True)

  attack = _dos(Mute(), **_retokenised(foreign, tmp_path))
  with pytest.raises(UserError, match="encodes nothing of"):
    attack.payload(_rng(), 5)
