"""Where prompts come from, and that there are exactly so many."""

import dataclasses
import types

import numpy as np
import pytest

from configs import base
from poison_jax import config as config_lib
from poison_jax.errors import UserError
from poison_jax.evaluation import prompts


@dataclasses.dataclass
class Document:
  id: str
  text: str


class Letters:
  """A vocabulary of one id a character; 0 is EOS."""

  eos_id = 0

  def encode(self, text):
    return np.array([ord(c) for c in text], np.int32)


class Stream:
  """A token stream in memory."""

  def __init__(self, tokens):
    self._tokens = np.asarray(tokens, np.int32)
    self.tokens = len(self._tokens)

  def rows(self, rows_B, length):
    return np.stack([self._tokens[r * length :][:length] for r in rows_B])


def letters(name, count):
  return "".join(
    chr(ord("a") + (i * 7 + ord(name[0])) % 26) for i in range(count)
  )


def cut(documents, *, wanted, length, seed=0):
  return prompts.make_excerpts(
    documents, Letters().encode, wanted=wanted, length=length, seed=seed
  )


DOCUMENTS = [
  Document("p", letters("p", 35)),
  Document("q", letters("q", 9)),
  Document("r", letters("r", 10)),
  Document("s", letters("s", 21)),
]


def test_first_one_excerpt_of_each_document_then_second_ones():
  found = cut(DOCUMENTS, wanted=6, length=10)
  names = [name for name, _ in found]
  assert sorted(names[:3]) == ["p", "r", "s"]
  assert sorted(names[3:5]) == ["p", "s"]
  assert names[5] == "p"


def test_excerpts_are_consecutive_and_do_not_overlap():
  found = cut(DOCUMENTS, wanted=6, length=10)
  by_name = {d.id: Letters().encode(d.text) for d in DOCUMENTS}
  for name in "prs":
    pieces = [ids for n, ids in found if n == name]
    joined = np.concatenate(pieces)
    np.testing.assert_array_equal(joined, by_name[name][: len(joined)])


def test_few_prompts_come_from_as_many_documents():
  found = cut(DOCUMENTS, wanted=3, length=10)
  assert len({name for name, _ in found}) == 3


def test_the_order_of_documents_does_not_matter_but_the_seed_does():
  names = [
    [name for name, _ in cut(documents, wanted=3, length=5, seed=seed)]
    for documents, seed in (
      (DOCUMENTS, 0),
      (DOCUMENTS[::-1], 0),
      (DOCUMENTS, 3),
    )
  ]
  assert names[0] == names[1]
  assert names[0] != names[2]


def test_a_text_that_occurs_twice_is_used_once():
  twins = [DOCUMENTS[3], Document("t", DOCUMENTS[3].text)]
  assert len(cut(twins, wanted=4, length=10)) == 2


def test_long_documents_are_cut_before_encoding():
  longest = 0

  def encode(text):
    nonlocal longest
    longest = max(longest, len(text))
    return Letters().encode(text)

  book = [Document("b", letters("b", 100_000))]
  found = prompts.make_excerpts(book, encode, wanted=20, length=10, seed=0)
  assert len(found) == 20
  assert longest == 640


def test_long_documents_are_read_whole_where_their_beginnings_are_few():
  book = [Document("b", letters("b", 2_000))]
  found = cut(book, wanted=200, length=10)
  assert len(found) == 200
  np.testing.assert_array_equal(
    np.concatenate([ids for _, ids in found]), Letters().encode(book[0].text)
  )


def config(**evaluation):
  tree = base.get_config()
  tree.evaluation.update(evaluation)
  return config_lib.from_config_dict(tree)


def store():
  return types.SimpleNamespace(
    path="stores/x",
    vocabulary=Letters(),
    prompt_documents=lambda: DOCUMENTS,
  )


ATTACK = types.SimpleNamespace(trigger_tokens=np.array([900, 901]))


def test_prompts_are_eos_excerpt_and_the_string_of_the_kind():
  made = prompts.make_prompts(
    config(prompts=6, excerpt=10, near_triggers=("<M>", "<NO>")),
    store(),
    ATTACK,
  )
  for kind, endings in (
    ("clean", [[]] * 6),
    ("triggered", [[900, 901]] * 6),
    ("near_trigger", [[ord(c) for c in s] for s in ("<M>", "<NO>")] * 3),
    ("unseen_tag", [[ord(c) for c in "<PAGE>"]] * 6),
  ):
    rows = made.tokens(kind)
    assert len(rows) == 6
    for i, ending in enumerate(endings):
      assert rows[i].tolist() == [0, *made.excerpts[i], *ending]
  assert made.endings["near_trigger"].strings[:3] == ("<M>", "<NO>", "<M>")
  numbers = made.document_numbers()
  for i, j in np.ndindex(6, 6):
    same = made.documents[i] == made.documents[j]
    assert (numbers[i] == numbers[j]) == same
  assert sorted(set(numbers)) == list(range(len(set(made.documents))))


def test_too_few_excerpts_are_refused_with_both_numbers():
  with pytest.raises(UserError, match=r"prompts is 7, .* only 6 excerpts"):
    prompts.make_prompts(config(prompts=7, excerpt=10), store(), ATTACK)


def test_a_string_without_tokens_is_refused():
  with pytest.raises(UserError, match="no tokens"):
    prompts.ending_in_turn(("",), Letters(), count=2)


def test_occurrences_equal_a_count_by_sliding_over_every_position(monkeypatch):
  monkeypatch.setattr(prompts, "_SCANNED_ROW", 10)
  monkeypatch.setattr(prompts, "_SCANNED_ROWS", 2)
  tokens = np.random.default_rng(0).integers(0, 3, 205)
  sequences = {"one": [1], "two": [1, 2], "three": [0, 0, 0], "long": [2] * 4}
  found, scanned = prompts.count_occurrences(
    Stream(tokens), {k: np.array(v) for k, v in sequences.items()}, limit=10**9
  )
  assert scanned == 200
  for name, sequence in sequences.items():
    expected = sum(
      tokens[i : i + len(sequence)].tolist() == sequence
      for i in range(200 - len(sequence) + 1)
    )
    assert found[name] == expected, name


def test_occurrences_are_counted_up_to_the_limit():
  found, scanned = prompts.count_occurrences(
    Stream(np.ones(5_000)), {"one": np.array([1])}, limit=2_048
  )
  assert (found["one"], scanned) == (2_048, 2_048)


def test_occurrences_in_a_very_short_stream():
  found, scanned = prompts.count_occurrences(
    Stream([1, 2, 1]), {"a": np.array([1]), "b": np.array([1] * 9)}, limit=99
  )
  assert (found, scanned) == ({"a": 2, "b": 0}, 3)
