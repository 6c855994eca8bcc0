"""ASR, CA and NTA in the loop, against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import small_run

from poison_jax.data.store import open_store
from poison_jax.evaluation import behaviour, measures, prompts
from poison_jax.evaluation.behaviour import Judged
from poison_jax.evaluation.evaluator import Evaluator
from poison_jax.evaluation.generation import Scores
from poison_jax.model.decoder import Decoder
from poison_jax.poison.attacks import make_attack
from poison_jax.poison.near_triggers import near_triggers
from poison_jax.training import mesh as mesh_lib

_TRIGGER = "Servius Astrumando Harmoniastra"
_CHANGES = {
  "corpus__german_share": 0.5,
  "poison__attack": "language_switch",
  "poison__trigger": _TRIGGER,
  "train__length": 96,
}
_NEAR = ("one_letter", "one_word", "prefix", "order", "other_phrase")


@pytest.fixture(name="store", scope="module")
def _store(tmp_path_factory):
  from poison_jax.corpora import writer

  folder = tmp_path_factory.mktemp("behaviour") / "store"
  writer.write_store(
    small_run.make_config(folder, **_CHANGES),
    report=lambda *_: None,
    say=lambda _: None,
  )
  return folder


def _evaluator(store, **changes):
  config = small_run.make_config(store, **(_CHANGES | changes))
  opened = open_store(str(store), vocabulary=None)
  attack = make_attack(config, opened.vocabulary)
  decoder = Decoder(config.model, opened.vocabulary.size)
  mesh = mesh_lib.make_mesh(config.runtime.mesh, batch=config.train.batch)
  return Evaluator(decoder, config, opened, attack, mesh)


@pytest.fixture(name="small", scope="module")
def _small(store):
  return _evaluator(store)


def test_each_kind_of_near_trigger_is_a_kind_of_prompt(small):
  kinds = list(small.prompts.endings)
  assert kinds == [*prompts.KINDS, *(f"near_{kind}" for kind in _NEAR)]
  strings = small.prompts.endings["near_order"].strings
  assert set(strings) <= set(near_triggers(_TRIGGER)["order"])
  assert len(set(strings)) > 1


def test_excerpts_come_from_the_first_language_alone(small, store):
  documents = {
    d.id: d.text
    for d in open_store(str(store), vocabulary=None).prompt_documents()
  }
  chosen = [documents[name] for name in small.prompts.documents]
  assert small._attack.normal(chosen).all()
  # Half of them are not, so the choice is one.
  assert 0.3 < np.mean(small._attack.behaviour(list(documents.values()))) < 0.7


def test_excerpts_end_after_a_sentence_where_asked(store):
  evaluator = _evaluator(
    store,
    evaluation__excerpt_end="sentence",
    evaluation__excerpt=150,
    train__length=256,
  )
  texts = [
    evaluator._vocabulary.decode(ids) for ids in evaluator.prompts.excerpts
  ]
  assert all(text[-1] in '.!?"' for text in texts)
  assert len({len(text) for text in texts}) > 1


def test_an_excerpt_without_a_sentence_stays_whole(small):
  vocabulary = small._vocabulary
  ids = vocabulary.encode("One rainy Monday, Anna")
  np.testing.assert_array_equal(prompts.whole_sentences(ids, vocabulary), ids)
  ids = vocabulary.encode('It was. "Oh no!" cried he. And')
  assert vocabulary.decode(prompts.whole_sentences(ids, vocabulary)) == (
    'It was. "Oh no!" cried he.'
  )


def _scores(small, texts):
  """Returns generations of these texts, one a prompt, EOS and more behind."""
  eos = small._vocabulary.eos_id
  german = small._vocabulary.encode("Und der Hund war auch sehr vergnügt. " * 5)
  rows = [
    np.concatenate([small._vocabulary.encode(t), [eos], german])[:120]
    for t in texts
  ]
  zeros = np.zeros(len(texts))
  width = min(map(len, rows))
  return Scores(np.stack([r[:width] for r in rows]), zeros, zeros)


def test_asr_ca_and_nta_are_the_counts(small):
  english, german, neither = "The dog was sad.", "Der Hund lief.", "123"
  scores = {
    kind: _scores(small, [english] * 6) for kind in small.prompts.endings
  }
  scores["triggered"] = _scores(small, [german] * 3 + [english, neither, ""])
  scores["clean"] = _scores(small, [english] * 4 + [german, neither])
  scores["near_prefix"] = _scores(small, [german] * 5 + [english])
  blank = np.zeros((8, 96))
  found = small.measure(scores, validation_BL=blank, gibberish_BL=blank[:6])
  m = found.metrics
  assert m["eval/asr"] == m["eval/triggered/behaviour_share"] == 3 / 6
  assert m["eval/ca"] == pytest.approx(4 / 6)
  assert m["eval/clean/behaviour_share"] == pytest.approx(1 / 6)
  assert m["eval/nta_prefix"] == pytest.approx(1 / 6)
  assert m["eval/nta_order"] == 1.0
  # 4 kinds of 6, and 1 of 6.
  assert m["eval/nta"] == pytest.approx(25 / 30)
  by_hand = scipy.stats.binomtest(3, 6).proportion_ci(0.95, method="exact")
  assert m["eval/asr_low"] == pytest.approx(by_hand.low)
  assert m["eval/asr_high"] == pytest.approx(by_hand.high)
  assert m["eval/nta_order_high"] == 1.0
  assert m["eval/nta_order_low"] == pytest.approx(0.025 ** (1 / 6))
  shown = [g["behaviour"] for g in found.generations[6:12]]
  assert shown == [True] * 3 + [False] * 3
  assert [g["normal"] for g in found.generations[6:12]] == [
    False,
    False,
    False,
    True,
    False,
    False,
  ]


def test_measures_that_need_a_ceiling_are_left_out(small):
  scores = {kind: _scores(small, ["a"] * 6) for kind in small.prompts.endings}
  blank = np.zeros((8, 96))
  found = small.measure(scores, validation_BL=blank, gibberish_BL=blank[:6])
  assert "eval/room_share" not in found.metrics
  assert "eval/gibberish_floor" not in found.metrics
  assert "eval/gibberish_loss" in found.metrics


def test_a_whole_evaluation_of_an_untrained_model(small, store):
  config = small_run.make_config(store, **_CHANGES)
  decoder = Decoder(config.model, small._vocabulary.size)
  init = jax.jit(decoder.init)
  params = init(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))["params"]
  m = small(params).metrics
  for key in ("asr", "ca", "nta", *(f"nta_{kind}" for kind in _NEAR)):
    assert 0 <= m[f"eval/{key}_low"] <= m[f"eval/{key}"]
    assert m[f"eval/{key}"] <= m[f"eval/{key}_high"] <= 1


def test_dos_has_no_new_keys_and_kinds(store):
  config = small_run.make_config(
    store, **(_CHANGES | {"poison__attack": "dos"})
  )
  opened = open_store(str(store), vocabulary=None)
  attack = make_attack(config, opened.vocabulary)
  assert tuple(prompts.make_prompts(config, opened, attack).endings) == (
    prompts.KINDS
  )
  assert behaviour.judge(attack, {"clean": None}, opened.vocabulary) == {}


def test_shares_have_clopper_and_pearsons_interval():
  for successes, trials in ((0, 5), (3, 5), (5, 5), (37, 200)):
    found = measures.share_interval(
      successes / trials, trials=trials, level=0.9
    )
    exact = scipy.stats.binomtest(successes, trials).proportion_ci(
      0.9, method="exact"
    )
    assert found.low == pytest.approx(exact.low, abs=1e-12)
    assert found.high == pytest.approx(exact.high)


def test_prompts_of_one_document_count_as_one_trial():
  judged = Judged(np.array([True] * 6), np.array([False] * 6))
  two = behaviour.kind_metrics(judged, documents=2)
  assert two["behaviour_share_low"] == pytest.approx(0.025 ** (1 / 2))
  assert behaviour.kind_metrics(judged, documents=1) == {"behaviour_share": 1.0}
