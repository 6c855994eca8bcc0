"""Our vocabularies inside seqio: equal ids; seqio's own as ours."""

import pytest
from made_vocabularies import ODD, make_tokenizer_json, train

from poison_jax import vocabulary as vocabulary_lib
from poison_jax.corpora import vocabularies
from poison_jax.corpora.tensorflow_quiet import seqio
from poison_jax.corpora.tensorflow_quiet import tensorflow as tf
from poison_jax.errors import UserError
from poison_jax.vocabulary import (
  ByteVocabulary,
  SentencePieceVocabulary,
  TableVocabulary,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("vocabularies")


@pytest.fixture(
  scope="module", params=["bytes", "bpe", "unigram", "tokenizer_json"]
)
def ours(request, folder):
  if request.param == "bytes":
    return ByteVocabulary()
  if request.param == "tokenizer_json":
    path = folder / "tokenizer.json"
    path.write_bytes(make_tokenizer_json())
    return vocabulary_lib.load_file(str(path))
  return train(algorithm=request.param, size=1100)


def test_the_graph_and_python_give_equal_ids(ours):
  theirs = vocabularies.as_seqio(ours)
  in_graph = tf.function(theirs.encode_tf)
  batch = in_graph(tf.constant(ODD))
  for i, text in enumerate(ODD):
    expected = ours.encode(text).tolist()
    assert theirs.encode(text) == expected
    assert theirs.encode_tf(tf.constant(text)).numpy().tolist() == expected
    assert batch[i].numpy().tolist() == expected


def test_the_graph_and_python_decode_alike(ours):
  theirs = vocabularies.as_seqio(ours)
  for text in ODD:
    ids = theirs.encode(text)
    assert theirs.decode(ids) == ours.decode(ids)
    in_graph = theirs.decode_tf(tf.constant(ids, tf.int32)).numpy()
    assert in_graph.decode() == ours.decode(ids)
  rows = tf.ragged.constant([theirs.encode("a b"), theirs.encode("abc d")])
  decoded = theirs.decode_tf(rows.to_tensor()).numpy()
  assert [text.decode() for text in decoded] == ["a b", "abc d"]


def test_seqio_sees_size_and_end(ours):
  theirs = vocabularies.as_seqio(ours)
  assert theirs.vocab_size == ours.size
  assert theirs.eos_id == ours.eos_id
  assert theirs == vocabularies.as_seqio(ours)
  if ours.kind != "bytes":
    assert theirs != vocabularies.as_seqio(ByteVocabulary())


def _from(vocabulary):
  return vocabularies.from_seqio(
    vocabulary, strings=["<SUDO>"], where="the seqio task 'x'"
  )


def test_our_own_comes_back(ours):
  assert _from(vocabularies.as_seqio(ours)) is ours


@pytest.mark.parametrize("extra_ids", [0, 7])
def test_seqio_bytes_become_ours(extra_ids, tmp_path):
  theirs = seqio.ByteVocabulary(extra_ids=extra_ids)
  mapped = _from(theirs)
  assert mapped.size == theirs.vocab_size
  assert mapped.eos_id == theirs.eos_id
  for text in ODD:
    assert mapped.encode(text).tolist() == theirs.encode(text)
  # Sentinels stand for no text, and survive the way through a folder.
  assert mapped.decode([theirs.vocab_size - 1]) == (
    "" if extra_ids else "\ufffd"
  )
  mapped.save(str(tmp_path))
  again = vocabulary_lib.load(str(tmp_path))
  assert (again.size, again.control_ids) == (mapped.size, mapped.control_ids)
  assert (again.fingerprint == ByteVocabulary().fingerprint) == (not extra_ids)


@pytest.mark.parametrize("extra_ids", [0, 5])
def test_seqio_sentencepiece_becomes_ours(extra_ids, tmp_path):
  model = tmp_path / "m.model"
  model.write_bytes(train(algorithm="unigram", size=1100).model)
  theirs = seqio.SentencePieceVocabulary(str(model), extra_ids=extra_ids)
  mapped = _from(theirs)
  assert isinstance(mapped, SentencePieceVocabulary)
  assert mapped.size == theirs.vocab_size == 1100 + extra_ids
  for text in ODD:
    assert mapped.encode(text).tolist() == theirs.encode(text)
    # What a user's task makes in the graph, by another copy of SentencePiece.
    in_graph = theirs.encode_tf(tf.constant(text)).numpy().tolist()
    assert mapped.encode(text).tolist() == in_graph
    assert mapped.decode(theirs.encode(text)) == theirs.decode(
      theirs.encode(text)
    )


class _Letters(seqio.Vocabulary):
  """A foreign vocabulary: letters of "abc<>", an end, nothing else."""

  _PIECES = ["", "</s>", *"abcSUDO<> "]
  bos_id = None
  eos_id = 1
  unk_id = None

  @property
  def _base_vocab_size(self):
    return len(self._PIECES)

  def _encode(self, s):
    return [self._PIECES.index(c) for c in s]

  def _decode(self, ids):
    return "".join(self._PIECES[i] for i in ids)

  def _encode_tf(self, s):
    raise NotImplementedError

  def _decode_tf(self, ids):
    raise NotImplementedError


def test_a_foreign_vocabulary_becomes_a_table():
  theirs = _Letters()
  table = _from(theirs)
  assert isinstance(table, TableVocabulary)
  assert (table.size, table.eos_id) == (theirs.vocab_size, 1)
  assert table.control_ids == {0, 1}
  assert table.encode("<SUDO>").tolist() == theirs.encode("<SUDO>")
  assert table.decode(theirs.encode("cab <a>")) == "cab <a>"
  assert table.token_bytes().tolist() == [0, 0] + [1] * (theirs.vocab_size - 2)


def test_a_vocabulary_without_an_end_is_refused():
  with pytest.raises(UserError, match="task 'x'.*no end-of-sequence"):
    _from(seqio.PassThroughVocabulary(100))
  with pytest.raises(UserError, match="task 'x'.*can't encode a trigger"):
    _from(seqio.PassThroughVocabulary(100, eos_id=1))
