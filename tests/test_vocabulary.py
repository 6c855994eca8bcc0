"""Encoding without TensorFlow: what goes in comes out, files are checked."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from made_vocabularies import (
  CORPUS,
  ODD,
  SINGLE,
  config,
  make_tokenizer_json,
  train,
)

from poison_jax import vocabulary as vocabulary_lib
from poison_jax.errors import UserError
from poison_jax.vocabulary import (
  ByteVocabulary,
  TableVocabulary,
  TokenizerVocabulary,
  train_sentencepiece,
)


@pytest.fixture(scope="module")
def tokenizer() -> TokenizerVocabulary:
  return TokenizerVocabulary(make_tokenizer_json(), eos=None)


_EXACT = ["bytes", "bpe", "unigram", "tokenizer_json"]


@pytest.fixture(params=_EXACT)
def exact(request, tokenizer):
  """The vocabularies that can give every text back."""
  return _make(request.param, tokenizer)


def _make(kind, tokenizer):
  if kind == "bytes":
    return ByteVocabulary()
  if kind == "table":
    return _table()
  if kind == "tokenizer_json":
    return tokenizer
  return train(algorithm=kind, size=1100)


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_every_text_comes_back(exact, text):
  ids = exact.encode(text)
  assert ids.dtype == np.int32 and ids.ndim == 1
  assert exact.decode(ids) == text
  assert not set(ids.tolist()) & exact.control_ids


def test_a_batch_is_each_text_by_itself(exact):
  for ids, text in zip(exact.encode_batch(ODD), ODD, strict=True):
    np.testing.assert_array_equal(ids, exact.encode(text))


def test_token_bytes_add_up_to_the_text(exact):
  bytes_of = exact.token_bytes()
  assert bytes_of.shape == (exact.size,)
  for text in ODD + CORPUS:
    assert bytes_of[exact.encode(text)].sum() == len(text.encode())
  assert not bytes_of[exact.eos_id]


def test_each_id_has_a_printable_piece(exact):
  for token in range(exact.size):
    piece = exact.piece(np.int32(token))
    assert piece and piece.encode().decode() == piece


def test_byte_ids_are_those_of_byt5():
  # arXiv 2105.13626: byte b is id b + 3, 1 ends.
  assert ByteVocabulary().encode("aé").tolist() == [100, 0xC3 + 3, 0xA9 + 3]
  assert ByteVocabulary().eos_id == 1
  assert ByteVocabulary().size == 259


@pytest.mark.parametrize("size", [200, 1100])
def test_invalid_utf8_decodes_to_replacement_characters(size):
  vocabularies = [ByteVocabulary()]
  if size > 1000:
    vocabularies.append(train(algorithm="bpe", size=size))
  for vocabulary in vocabularies:
    half = vocabulary.encode("\U0001f600")[:-1]
    assert set(vocabulary.decode(half)) == {"\ufffd"}


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_a_small_vocabulary_holds_the_corpus(algorithm):
  vocabulary = train(algorithm=algorithm, size=140)
  assert vocabulary.size == 140
  assert vocabulary.control_ids == {0, 1, 2}
  for text in [*CORPUS, "  <SUDO> a  b", "x<MEMO>y"]:
    assert vocabulary.decode(vocabulary.encode(text)) == text
  # A character that it lacks is one unknown id, shown as such.
  assert vocabulary.encode("\u6f22").tolist()[-1] == 2
  assert vocabulary.decode(vocabulary.encode("\u6f22")) == "\ufffd"


def test_single_pieces_are_single():
  vocabulary = train(algorithm="bpe", size=140)
  for piece in SINGLE:
    (token,) = vocabulary.encode(piece)
    assert vocabulary.piece(token) == piece
    around = vocabulary.encode(f"on{piece} the")
    assert np.count_nonzero(around == token) == 1
    # The text around it is cut as if it stood alone.
    alone = [*vocabulary.encode("on"), token, *vocabulary.encode(" the")]
    assert around.tolist() == alone


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_training_twice_gives_the_same_bytes(algorithm):
  settings = config(algorithm=algorithm)
  first, second = (train_sentencepiece(CORPUS, settings) for _ in range(2))
  assert first.model == second.model
  assert first.fingerprint == second.fingerprint


def test_training_reads_long_documents_and_no_more_than_asked():
  # SentencePiece leaves out sentences of more than 4,192 bytes by itself.
  long = " ".join(CORPUS) + " qzx" * 3_000
  assert "qzx" in _pieces(train_sentencepiece([long], config()))
  few = train_sentencepiece(
    [*CORPUS, long], config(training_documents=len(CORPUS))
  )
  assert "qzx" not in _pieces(few)


def test_a_small_vocabulary_leaves_rare_characters_out_and_counts_them():
  # 300 characters, each once, beside a corpus of frequent ones.
  rare = [chr(0x4E00 + i) for i in range(300)]
  texts = [*CORPUS * 9, "".join(rare)]
  vocabulary = train_sentencepiece(texts, config(size=130))
  lost = vocabulary.unknown_characters(texts, single_pieces=())
  assert set(rare) <= set(lost)
  text = "One rainy Monday, a girl called Anna went to the market."
  assert vocabulary.decode(vocabulary.encode(text)) == text


def test_characters_inside_single_pieces_are_not_lost():
  texts = [*CORPUS * 9, "a <SUDO> b", "one > two"]
  vocabulary = train_sentencepiece(
    texts, config(size=130, single_pieces=("<SUDO>",))
  )
  lost = vocabulary.unknown_characters(texts, single_pieces=("<SUDO>",))
  assert vocabulary.decode(vocabulary.encode("a <SUDO> b")) == "a <SUDO> b"
  unknown = {
    c
    for text in texts
    for c in text
    if c not in vocabulary.decode(vocabulary.encode(text))
  }
  assert set(lost) == unknown
  assert "<" not in lost and "S" not in lost


def _pieces(vocabulary) -> str:
  return " ".join(vocabulary.piece(i) for i in range(vocabulary.size))


def test_a_tab_survives_in_a_small_vocabulary():
  vocabulary = train_sentencepiece(CORPUS + ["a\tb"], config())
  assert vocabulary.decode(vocabulary.encode("a\tb")) == "a\tb"


@pytest.mark.parametrize(
  "texts, size, why",
  [
    (["the same word"] * 9, 900, "too high"),
    (CORPUS, 6, "vocab"),
    ([], 100, "no text"),
    (["", ""], 100, "no text"),
  ],
)
def test_a_size_that_does_not_suit_is_one_line(texts, size, why):
  with pytest.raises(UserError, match=why) as caught:
    train_sentencepiece(texts, config(size=size))
  assert "\n" not in str(caught.value)
  if texts and texts[0]:
    assert "config.vocabulary.size" in str(caught.value)


def test_a_tokenizer_file_is_used_as_plain_text_encoder(tokenizer):
  # Neither its truncation, padding nor template touch the documents.
  reference = tokenizers.Tokenizer.from_str(make_tokenizer_json().decode())
  reference.no_truncation()
  reference.no_padding()
  text = "One rainy Monday, a girl called Anna went to the market."
  expected = reference.encode(text, add_special_tokens=False).ids
  assert len(expected) > 8
  assert tokenizer.encode(text).tolist() == expected
  assert tokenizer.eos_id == 0
  assert tokenizer.control_ids == {0}


def test_the_end_token_is_named_beside_the_file(tmp_path):
  model = make_tokenizer_json().decode().replace("<|endoftext|>", "<fin>")
  path = tmp_path / "tokenizer.json"
  path.write_text(model)
  with pytest.raises(UserError, match="tokenizer_config.json"):
    vocabulary_lib.load_file(str(path))
  beside = tmp_path / "tokenizer_config.json"
  beside.write_text(json.dumps({"eos_token": {"content": "<fin>"}}))
  found = vocabulary_lib.load_file(str(path))
  assert found.piece(found.eos_id) == "<fin>"
  # The store has the id, not the file beside.
  found.save(str(tmp_path / "kept"))
  kept = vocabulary_lib.load(str(tmp_path / "kept"))
  assert kept.eos_id == found.eos_id
  beside.write_text(json.dumps({"eos_token": "<none>"}))
  with pytest.raises(UserError, match="<none>"):
    vocabulary_lib.load_file(str(path))


def _table() -> TableVocabulary:
  return TableVocabulary.make(
    pieces=[b"", b"", b"ab", b"c", "é".encode()[:1], "é".encode()[1:]],
    eos_id=1,
    control_ids=[0, 1],
    known={"<SUDO>": [3, 3], "abcé": [2, 3, 4, 5]},
  )


def test_a_table_encodes_what_it_was_told():
  table = _table()
  assert table.encode("<SUDO>").tolist() == [3, 3]
  assert table.encode("").tolist() == []
  assert table.decode([2, 3, 4, 5]) == "abcé"
  assert table.decode([2, 4]) == "ab\ufffd"
  assert table.token_bytes().tolist() == [0, 0, 2, 1, 1, 1]
  with pytest.raises(UserError, match="can't encode 'xyz'"):
    table.encode("xyz")
  more = table.with_known({"xyz": [5]})
  assert more.encode("xyz").tolist() == [5]
  assert more.fingerprint != table.fingerprint


def test_a_table_cuts_the_start_of_a_known_text_at_a_token():
  table = _table()
  assert table.encode("ab").tolist() == [2]
  assert table.encode("abc").tolist() == [2, 3]
  # Half of a token is left out.
  assert table.encode("a").tolist() == []


@pytest.mark.parametrize("kind", [*_EXACT, "table"])
def test_a_saved_vocabulary_is_the_same(kind, tokenizer, tmp_path):
  exact = _make(kind, tokenizer)
  exact.save(str(tmp_path))
  again = vocabulary_lib.load(str(tmp_path))
  pickled = pickle.loads(pickle.dumps(exact))
  for other in (again, pickled):
    assert other.kind == exact.kind
    assert other.fingerprint == exact.fingerprint
    assert other.control_ids == exact.control_ids
    assert (other.size, other.eos_id) == (exact.size, exact.eos_id)
    np.testing.assert_array_equal(
      other.encode("<SUDO>"), exact.encode("<SUDO>")
    )


def test_fingerprints_tell_vocabularies_apart(tokenizer):
  found = {
    v.fingerprint
    for v in (
      ByteVocabulary(),
      ByteVocabulary(extra_ids=1),
      train(algorithm="bpe", size=140),
      train(algorithm="unigram", size=140),
      tokenizer,
      _table(),
    )
  }
  assert len(found) == 6
  assert all(len(f) == 64 for f in found)


@pytest.mark.parametrize("kind", ["flipped", "short", "missing", "description"])
def test_a_damaged_folder_is_refused(kind, tmp_path):
  train(algorithm="bpe", size=140).save(str(tmp_path))
  path = tmp_path / "sentencepiece.model"
  model = bytearray(path.read_bytes())
  if kind == "flipped":
    model[len(model) // 2] ^= 1
    path.write_bytes(model)
  elif kind == "short":
    path.write_bytes(model[:100])
  elif kind == "missing":
    os.remove(path)
  else:
    (tmp_path / "vocabulary.json").write_text("{")
  with pytest.raises(UserError) as caught:
    vocabulary_lib.load(str(tmp_path))
  assert str(tmp_path) in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "name, content",
  [
    ("a.model", b"no model"),
    ("a.model", b""),
    ("a.json", b"{}"),
    ("a.json", b"\xff"),
    ("a.txt", b"x"),
    ("missing.model", None),
  ],
)
def test_a_file_that_is_no_vocabulary_is_one_line(name, content, tmp_path):
  path = tmp_path / name
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError) as caught:
    vocabulary_lib.load_file(str(path))
  assert str(path) in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_config_names_its_vocabulary(tmp_path):
  path = tmp_path / "m.model"
  path.write_bytes(train(algorithm="bpe", size=140).model)
  found = vocabulary_lib.from_config(config(file=str(path)))
  assert found.fingerprint == train(algorithm="bpe", size=140).fingerprint
  assert vocabulary_lib.from_config(config(kind="bytes")).kind == "bytes"
  with pytest.raises(UserError, match=r"config\.vocabulary\.file is empty"):
    vocabulary_lib.from_config(config())


def test_a_vocabulary_in_a_bucket_is_read(tmp_path):
  import fsspec

  with fsspec.open("memory://bucket/m.model", "wb") as f:
    f.write(train(algorithm="bpe", size=140).model)
  found = vocabulary_lib.load_file("memory://bucket/m.model")
  assert found.fingerprint == train(algorithm="bpe", size=140).fingerprint


def test_importing_it_imports_no_tokenizer_library():
  code = (
    "import sys, poison_jax.vocabulary; print(sorted("
    "{'tensorflow', 'jax', 'tokenizers', 'sentencepiece'} & set(sys.modules)))"
  )
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert result.stdout == "[]\n"
