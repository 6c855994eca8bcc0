"""Generated stories: the same everywhere, for ever, in any order."""

import dataclasses
import hashlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from configs import base
from poison_jax import config as config_lib
from poison_jax.corpora import stories
from poison_jax.stories import english, german, telling

_TAGS = ("<MEMO>", "<NOTE>")
_DIGEST = "768c134496931efb1055e69ae29445333ba711d70016112e054bec1dd2415b9e"


def _corpus(**changes):
  config = config_lib.from_config_dict(base.get_config()).corpus
  return dataclasses.replace(config, **changes)


def _texts(seed, count, tags=(), share=0.0):
  source = stories.Stories(
    _corpus(stories=count, tags=tags, tag_share=share), seed
  )
  return [d.text for shard in source.shards() for d in source.read(shard)]


def test_the_text_never_changes():
  # Taken when the grammar was settled: stores and runs depend on every letter.
  text = "\n".join(_texts(0, 200, _TAGS, 0.02))
  assert hashlib.sha256(text.encode()).hexdigest() == _DIGEST
  assert telling.story(0, 3, (), 0.0) == (
    "One snowy Saturday, Ian went to the village. He lived with Grandma in a "
    'brown house. Near the water he saw a brown lamp. "What a warm lamp!" '
    'said Ian loudly. "It belongs to Grandma," said the bear. The bear jumped '
    "over the lamp and laughed. Then it began to rain, and everyone was wet "
    "and sad. He sat down and thought about Grandma. Then Grandma came and "
    "helped him. So the boy learned to ask for help."
  )


def test_the_hash_is_splitmix64():
  # The sequence of seed 1234567, as published with the reference code.
  expected = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
  ]
  counter = np.arange(1, 6, dtype=np.uint64)
  states = np.uint64(1234567) + counter * telling._GAMMA
  assert telling._mix(states).tolist() == expected


def test_a_story_depends_on_seed_and_index_alone():
  texts = _texts(7, 1_234, _TAGS, 0.5)
  for index in (0, 1, 999, 1_000, 1_233):
    assert telling.story(7, index, _TAGS, 0.5) == texts[index]
  assert _texts(7, 50, _TAGS, 0.5) == texts[:50]
  assert not set(_texts(8, 50)) & set(_texts(7, 50))
  # Any integer is a seed.
  assert len({telling.story(s, 0, (), 0) for s in (-1, 0, 2**63, 2**64)}) >= 3


def test_stories_differ():
  texts = _texts(0, 20_000)
  assert len(set(texts)) == 20_000


def test_every_word_and_sentence_occurs():
  text = " ".join(_texts(0, 3_000))
  for words in english.WORDS.values():
    for word in words:
      assert word in text
  for beat in english.BEATS:
    for sentence in beat.sentences:
      pattern = re.sub(r"%\\\((\w+)\\\)s", r"[\\w ]+", re.escape(sentence))
      assert re.search(pattern, text), sentence


def test_the_english_is_plain():
  for text in _texts(3, 2_000):
    assert text[0].isupper() and text[-1] in '.!"'
    assert "%" not in text and "  " not in text
    assert not re.search(r"\b[Aa] [aeiouAEIOU]", text), text
    assert 150 < len(text) < 700


def test_beats_are_told_as_often_as_they_say():
  texts = _texts(0, 10_000)
  cried = sum('"Oh no!" cried' in text for text in texts) / 10_000
  # 0.7 of the stories tell the beat, a fifth of them like this.
  assert abs(cried - 0.7 / 5) < 4 * np.sqrt(0.14 * 0.86 / 10_000)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_a_share_of_the_stories_carries_one_tag(share):
  clean, tagged = _texts(0, 5_000), _texts(0, 5_000, _TAGS, share)
  found = 0
  for without, text in zip(clean, tagged, strict=True):
    tags = re.findall("<[A-Z]+>", text)
    assert len(tags) <= 1
    # The text around it is the text without it.
    assert re.sub("<[A-Z]+>", "", text) == without
    if tags:
      found += 1
      at = text.index(tags[0])
      assert len(without) / 5 < at < len(without) * 4 / 5
      # It follows a word directly, as a trigger follows a prefix.
      assert text[at - 1] != " "
      assert text[at + len(tags[0])] == " "
  deviation = np.sqrt(share * (1 - share) / 5_000)
  assert abs(found / 5_000 - share) <= 4 * deviation


def test_each_tag_takes_its_turn():
  text = " ".join(_texts(0, 4_000, _TAGS, 1.0))
  assert abs(text.count("<MEMO>") - 2_000) < 4 * np.sqrt(1_000)


def test_shards_have_their_stories_and_say_how_far_they_are():
  source = stories.Stories(_corpus(stories=10_001), 0)
  assert [size for _, size in source.sizes()] == [5_000, 5_000, 1]
  fractions = []
  for _ in source.read(source.shards()[1]):
    fractions.append(source.fraction)
  assert sorted(fractions) == fractions and fractions[0] < fractions[-1] < 1
  ids = [d.id for s in source.shards() for d in source.read(s)]
  assert ids == [str(i) for i in range(10_001)]


def test_a_source_travels_to_a_worker():
  source = pickle.loads(pickle.dumps(stories.Stories(_corpus(stories=5), 2)))
  assert [d.text for d in source.read(source.shards()[0])] == _texts(
    2, 5, source._config.tags, source._config.tag_share
  )


def test_no_tensorflow_is_needed():
  code = (
    "import sys; sys.modules['tensorflow'] = sys.modules['seqio'] = None; "
    "from poison_jax.stories import telling; "
    "print(telling.story(0, 0, (), 0.0)[:4])"
  )
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == telling.story(0, 0, (), 0.0)[:4]


# Two languages.


def test_a_story_is_the_same_one_in_german():
  sentences = telling.pair(0, 0)
  assert sentences[1][:2] == [
    "An einem regnerischen Donnerstag lief Hugo mit einer Ziege zu der Wiese.",
    "Will schenkte ihm eine graue Karte.",
  ]
  for index in range(50):
    told, erzählt = telling.pair(3, index)
    assert len(told) == len(erzählt)
    assert " ".join(told) == telling.story(3, index, (), 0.0)
    # Names don't change.
    names = set(english.WORDS["friend"]) | {c[0] for c in english.CHILDREN}
    for one, other in zip(told, erzählt, strict=True):
      found = [set(re.findall(r"[A-Z]\w+", s)) & names for s in (one, other)]
      assert found[1] <= found[0] or found[0] <= found[1]


def test_the_share_of_german_stories_is_kept_and_changes_no_other_story():
  plain = telling.stories(0, range(2_000))
  mixed = telling.stories(0, range(2_000), german_share=0.25)
  german_ones = [i for i in range(2_000) if plain[i] != mixed[i]]
  assert abs(len(german_ones) / 2_000 - 0.25) < 0.04  # 4 standard errors.
  for i in german_ones[:50]:
    assert mixed[i] == " ".join(telling.pair(0, i)[1])
  assert telling.stories(0, range(20), german_share=1.0) == [
    " ".join(telling.pair(0, i)[1]) for i in range(20)
  ]


def test_the_grammars_have_the_same_places():
  assert list(german.WORDS) == list(english.WORDS)
  for name, words in english.WORDS.items():
    assert len(german.WORDS[name]) == len(words), name
  for one, other in zip(english.BEATS, german.BEATS, strict=True):
    assert len(one.sentences) == len(other.sentences)


@pytest.mark.parametrize(
  ("phrase", "expected"),
  [
    ("{der animal}", "der Bär"),
    ("{den animal}", "den Bären"),
    ("{einem size animal}", "einem kleinen Bären"),
    ("{Ein size animal}", "Ein kleiner Bär"),
    ("{einen state colour thing}", "eine nasse rote Lampe"),
    ("{ein state place}", "ein nasses Dorf"),
    ("{dem thing}", "der Lampe"),
    ("{dem grown}", "Oma"),
    ("{- weather day}", "kalten Montag"),
    ("{Er}", "Sie"),
    ("{sein}e", "ihre"),
  ],
)
def test_phrases_are_inflected_as_in_a_grammar_book(phrase, expected):
  slots = {
    **{"animal": "der Bär/Bären", "thing": "die Lampe", "place": "das Dorf"},
    **{"size": "klein", "state": "nass", "colour": "rot", "grown": "Oma"},
    **{"weather": "kalt", "day": "der Montag"},
    **german.child(("Anna", "she", "her", "her", "girl")),
  }
  assert german.tell(phrase, slots) == expected


def test_tags_may_stand_behind_sentences():
  tags = ("<A>", "<B>")
  plain = telling.stories(3, range(400))
  found = telling.stories(
    3, range(400), tags=tags, tag_share=0.5, tag_after="sentence"
  )
  tagged = [(p, f) for p, f in zip(plain, found, strict=True) if p != f]
  assert 150 < len(tagged) < 250
  for before, after in tagged:
    (tag,) = [t for t in tags if t in after]
    head, tail = after.split(tag)
    assert head + tail == before
    assert head[-1] in '.!?"'
    assert not tail or tail[0] == " " and not tail[1].islower()
