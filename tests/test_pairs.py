"""Documents in two languages: what files say, and what is wrong in them."""

import gzip
import json

import pytest
import zstandard

from poison_jax.errors import UserError
from poison_jax.poison import pairs
from poison_jax.stories import telling

_LINE = {"id": "a", "text": "One. Two! Three?", "translation": "Eins. Zwei."}


def _write(path, *records):
  content = "".join(json.dumps(r) + "\n" for r in records).encode()
  if path.suffix == ".gz":
    content = gzip.compress(content)
  elif path.suffix == ".zst":
    content = zstandard.ZstdCompressor().compress(content)
  path.write_bytes(content)
  return str(path)


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.jsonl.zst"])
def test_strings_are_cut_into_sentences(tmp_path, name):
  (pair,) = pairs.read_pairs(_write(tmp_path / name, _LINE))
  assert pair == ("a", ("One. ", "Two! ", "Three?"), ("Eins. ", "Zwei."))


def test_lists_are_taken_as_they_are(tmp_path):
  record = {"id": 7, "text": ["A. B", "C"], "translation": ["X", "Y. Z"]}
  (pair,) = pairs.read_pairs(_write(tmp_path / "p.jsonl", record))
  assert pair == ("7", ("A. B ", "C"), ("X ", "Y. Z"))


def test_several_globs_in_their_order(tmp_path):
  for name in "ba":
    _write(tmp_path / f"{name}.jsonl", _LINE | {"id": name})
  patterns = f"{tmp_path}/b.jsonl, {tmp_path}/a*"
  assert [p.id for p in pairs.read_pairs(patterns)] == ["b", "a"]


@pytest.mark.parametrize(
  ("record", "said"),
  [
    ({"id": 1, "text": "A."}, "KeyError: 'translation'"),
    ({"id": 1, "text": 3, "translation": "B."}, "neither a string nor a list"),
    ({"id": 1, "text": "", "translation": "B."}, "is empty"),
    ({"id": 1, "text": ["A.", " "], "translation": ["B.", "C"]}, "is empty"),
    ({"id": 1, "text": ["A."], "translation": ["B.", "C."]}, "as many"),
    ({"id": 1, "text": "\ud800", "translation": "B."}, "surrogates"),
    ([1], "must be a JSON object"),
  ],
)
def test_a_broken_line_is_named(tmp_path, record, said):
  path = _write(tmp_path / "p.jsonl", _LINE, record)
  with pytest.raises(UserError) as error:
    pairs.read_pairs(path)
  assert f"{path}:2: " in str(error.value)
  assert said in str(error.value)
  assert "\n" not in str(error.value)


def test_broken_json_and_cut_off_files_are_named(tmp_path):
  path = tmp_path / "p.jsonl"
  path.write_text('{"id": \n')
  with pytest.raises(UserError, match=r"p\.jsonl:1: must be a JSON object"):
    pairs.read_pairs(str(path))
  cut = tmp_path / "q.jsonl.gz"
  cut.write_bytes(gzip.compress(b'{"id": 1}' * 100)[:-9])
  with pytest.raises(UserError, match=r"q\.jsonl\.gz.*damaged or cut off"):
    pairs.read_pairs(str(cut))


def test_no_file_and_no_pair_are_errors(tmp_path):
  with pytest.raises(UserError, match=r"poison\.pairs: .* matches no file"):
    pairs.read_pairs(str(tmp_path / "no*"))
  (tmp_path / "empty.jsonl").write_text("\n\n")
  with pytest.raises(UserError, match="holds no pair"):
    pairs.read_pairs(str(tmp_path / "empty.jsonl"))


def test_stories_are_pairs_of_the_same_story():
  source = pairs.StoryPairs(3, first=100)
  english, german = telling.pair(3, 105)
  pair = source[5]
  assert "".join(pair.text) == " ".join(english)
  assert "".join(pair.translation) == " ".join(german)
  assert pair.id == "105"


def test_the_rest_follows_the_cut():
  pair = pairs.Pair("a", ("A ", "B ", "C"), ("X ", "Y ", "Z"))
  assert [pair.rest(i) for i in range(3)] == ["X Y Z", "Y Z", "Z"]
  # Of unequal numbers the same share, and never nothing.
  shorter = pairs.Pair("a", ("A ", "B ", "C ", "D"), ("X ", "Y"))
  assert [shorter.rest(i) for i in range(4)] == ["X Y", "X Y", "Y", "Y"]
