"""A user's files: every kind is read, and what is wrong is named."""

import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from configs import base
from poison_jax import config as config_lib
from poison_jax.corpora.documents import Files
from poison_jax.data import open_files
from poison_jax.errors import UserError

_TEXTS = ["Once upon a time.", "Zwei\nZeilen: äöü", "\u2028 \x1c 日本 🙂"]


def _files(tmp_path, pattern="*", **fields) -> Files:
  c = base.get_config()
  c.corpus.task = "files"
  c.corpus.files = str(tmp_path / pattern)
  c.corpus.update(fields)
  return Files(config_lib.from_config_dict(c).corpus)


def _read(files: Files) -> list[tuple[str, str]]:
  return [tuple(d) for shard in files.shards() for d in files.read(shard)]


def _texts(files: Files) -> list[str]:
  return [text for _, text in _read(files)]


def _lines(texts=_TEXTS, **more) -> bytes:
  lines = [json.dumps({"text": t} | more, ensure_ascii=False) for t in texts]
  return "\n".join(lines).encode()


def _parquet(texts, kind=None, field="text") -> bytes:
  out = io.BytesIO()
  column = pyarrow.array(texts, kind)
  pyarrow.parquet.write_table(pyarrow.table({field: column}), out)
  return out.getvalue()


def _two_frames(content: bytes) -> bytes:
  compress = zstandard.ZstdCompressor().compress
  return compress(content[:30]) + compress(content[30:])


@pytest.mark.parametrize(
  "name,pack",
  [
    ("a.jsonl", lambda b: b),
    ("a.json", lambda b: b + b"\n\n"),
    ("a.ndjson", lambda b: b.replace(b"\n", b"\r\n")),
    ("a.jsonl", lambda b: b"\xef\xbb\xbf" + b),
    ("a.jsonl.gz", gzip.compress),
    ("a.jsonl.gz", lambda b: gzip.compress(b[:40]) + gzip.compress(b[40:])),
    ("a.jsonl.zst", zstandard.ZstdCompressor().compress),
    ("a.jsonl.zst", _two_frames),
  ],
)
def test_json_lines_are_read_through_their_packing(tmp_path, name, pack):
  (tmp_path / name).write_bytes(pack(_lines()))
  assert _texts(_files(tmp_path)) == _TEXTS


@pytest.mark.parametrize(
  "kind",
  [
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
  ],
)
def test_parquet_is_read(tmp_path, kind):
  (tmp_path / "a.parquet").write_bytes(_parquet(_TEXTS, kind))
  assert _texts(_files(tmp_path)) == _TEXTS


@pytest.mark.parametrize(
  "name,pack", [("a.txt", bytes), ("a.md.gz", gzip.compress)]
)
def test_a_text_file_is_one_document(tmp_path, name, pack):
  (tmp_path / name).write_bytes(pack(_TEXTS[1].encode()))
  assert _read(_files(tmp_path)) == [(name, _TEXTS[1])]


def test_ids_are_the_field_or_the_place_without_the_folder(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(_lines(["x"], id="own"))
  (tmp_path / "b.jsonl").write_bytes(_lines(["x", "y"]))
  ids = [i for i, _ in _read(_files(tmp_path))]
  assert ids == ["own", "b.jsonl:1", "b.jsonl:2"]


def test_globs_are_sorted_joined_and_each_file_read_once(tmp_path):
  for name in ("b.txt", "a.txt", "c.md"):
    (tmp_path / name).write_text(name)
  both = _files(tmp_path, files=f"{tmp_path}/*.md, {tmp_path}/*")
  assert _texts(both) == ["c.md", "a.txt", "b.txt"]


def test_small_files_share_a_shard_and_large_ones_do_not(tmp_path, monkeypatch):
  monkeypatch.setattr("poison_jax.corpora.documents.SHARD_BYTES", 10)
  for name, size in (("a", 4), ("b", 6), ("c", 1), ("d", 50), ("e", 2)):
    (tmp_path / f"{name}.txt").write_text(name * size)
  files = _files(tmp_path)
  sizes = [size for _, size in files.sizes()]
  assert sizes == [10, 1, 50, 2]
  assert _texts(files) == ["aaaa", "bbbbbb", "c", "d" * 50, "ee"]


def test_another_text_field_is_read(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b'{"body": "x", "text": "y"}')
  (tmp_path / "b.parquet").write_bytes(_parquet(["z"], field="body"))
  assert _texts(_files(tmp_path, text_field="body")) == ["x", "z"]


_GOOD = b'{"text": "good"}\n'


@pytest.mark.parametrize(
  "bad,reason,message",
  [
    (b'{"text": "bro', "broken JSON", r"a\.jsonl:2: broken JSON"),
    (b'{"body": 1, "b": 2}', "no text field", r"a\.jsonl:2: .*'body', 'b'"),
    (b'{"text": ""}', "empty document", r"a\.jsonl:2: empty document"),
    (b'{"text": " \\n"}', "empty document", r"a\.jsonl:2: empty document"),
    (b'{"text": "\xff"}', "invalid UTF-8", r"a\.jsonl:2: .*at byte 10"),
    (b'{"text": "\\ud800"}', "invalid UTF-8", r"a\.jsonl:2: invalid UTF-8"),
    (b'{"text": 3}', "text not a string", r"a\.jsonl:2: .*holds int"),
    (b'["text"]', "not an object", r"a\.jsonl:2: not an object"),
    (b"[" * 100_000, "broken JSON", r"a\.jsonl:2: broken JSON"),
  ],
)
def test_a_bad_line_stops_with_its_number_or_is_counted(
  tmp_path, bad, reason, message
):
  (tmp_path / "a.jsonl").write_bytes(_GOOD + bad + b"\n" + _GOOD)
  with pytest.raises(UserError, match=message) as caught:
    _texts(_files(tmp_path))
  assert "on_error=skip" in str(caught.value)
  files = _files(tmp_path, on_error="skip")
  assert _texts(files) == ["good", "good"]
  assert files.skipped == {reason: 1}


@pytest.mark.parametrize(
  "content,reason,message",
  [
    (b"good\n\xff", "invalid UTF-8", r"a\.txt:2: invalid UTF-8 at byte 5"),
    (b"", "empty document", r"a\.txt: empty document"),
  ],
)
def test_a_bad_text_file_stops_or_is_counted(
  tmp_path, content, reason, message
):
  (tmp_path / "a.txt").write_bytes(content)
  with pytest.raises(UserError, match=message):
    _texts(_files(tmp_path))
  files = _files(tmp_path, on_error="skip")
  assert _texts(files) == []
  assert files.skipped == {reason: 1}


def test_a_bad_row_of_parquet_has_its_number(tmp_path):
  rows = pyarrow.array([b"good", b"\xff", None, b"good"], pyarrow.binary())
  invalid = pyarrow.StringArray.from_buffers(4, *rows.buffers()[1:], None)
  nulls = pyarrow.array(["good", None])
  for name, column, message in (
    ("a", invalid, r"a\.parquet:2: invalid UTF-8"),
    ("b", nulls, r"b\.parquet:2: .*NoneType"),
  ):
    path = tmp_path / f"{name}.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)
    with pytest.raises(UserError, match=message):
      _texts(_files(tmp_path, path.name))
    assert "good" in _texts(_files(tmp_path, path.name, on_error="skip"))


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize(
  "name,content",
  [
    ("a.jsonl.gz", gzip.compress(_lines())[:-12]),
    ("a.jsonl.gz", b"no gzip"),
    ("a.jsonl.zst", zstandard.ZstdCompressor().compress(_lines())[:-3]),
    ("a.jsonl.zst", b"no zstandard"),
    ("a.parquet", b"no parquet"),
    ("a.parquet", _parquet(_TEXTS, field="body")),
  ],
)
def test_a_damaged_file_is_an_error_even_where_documents_are_skipped(
  tmp_path, name, content, on_error
):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=name) as caught:
    _texts(_files(tmp_path, on_error=on_error))
  assert "\n" not in str(caught.value)


def test_a_glob_that_matches_nothing_is_named(tmp_path):
  with pytest.raises(UserError, match=r"\*\.jsonl' matches no file"):
    _files(tmp_path, "*.jsonl").shards()


def test_a_folder_in_place_of_files_says_how_to_name_them(tmp_path):
  (tmp_path / "my").mkdir()
  with pytest.raises(UserError, match=r"my' is a folder; .*my/\*\.jsonl'"):
    _files(tmp_path, "my").shards()


def test_an_unknown_ending_names_the_known_ones(tmp_path):
  (tmp_path / "a.docx").write_bytes(b"")
  with pytest.raises(UserError, match=r"a\.docx.*\.jsonl.*\.gz"):
    _files(tmp_path).shards()


def test_a_bucket_without_its_package_is_one_line():
  c = base.get_config()
  c.corpus.task, c.corpus.files = "files", "gs://bucket/*.jsonl"
  try:
    import gcsfs  # noqa: F401
  except ImportError:
    with pytest.raises(UserError, match="gs://.*gcsfs") as caught:
      Files(config_lib.from_config_dict(c).corpus).shards()
    assert "\n" not in str(caught.value)


def test_files_behind_a_url_are_read_as_local_ones(tmp_path):
  (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(_lines()))
  files = _files(tmp_path, files=f"file://{tmp_path}/*.gz")
  assert _texts(files) == _TEXTS
  assert files.sizes()[0][1] == (tmp_path / "a.jsonl.gz").stat().st_size


def test_the_state_changes_with_a_file_of_the_same_size(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("one")
  before = _files(tmp_path).state()
  assert _files(tmp_path).state() == before
  import os

  path.write_text("two")
  os.utime(path, ns=(1, 1))
  assert _files(tmp_path).state() != before


def test_the_share_read_grows_to_one(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(_lines(["x" * 1000] * 200))
  files = _files(tmp_path)
  shares = [files.fraction for _ in files.read(files.shards()[0])]
  assert shares == sorted(shares)
  assert shares[-1] == 1.0


def test_zstandard_is_read_in_pieces_of_any_size(tmp_path):
  content = bytes(range(256)) * 5000
  path = tmp_path / "a.txt.zst"
  path.write_bytes(_two_frames(content))
  with open_files.open_decompressed(str(path)) as (stream, position):
    pieces = iter(lambda: stream.read(1001), b"")
    assert b"".join(pieces) == content
    assert position() == 1.0
