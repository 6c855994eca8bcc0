"""Files in a folder: the same on a disk and in a bucket."""

import pytest

from poison_jax.data.folder import Folder


@pytest.fixture(name="folder", params=["disk", "bucket"])
def _folder(request, tmp_path):
  # TensorStore's memory stands in for the bucket; test_bucket.py has another.
  bucket = f"memory://{tmp_path.name}/folder"
  return Folder(bucket if request.param == "bucket" else f"{tmp_path}/folder")


def test_what_is_written_is_there_until_it_is_deleted(folder):
  assert folder.is_empty() and folder.names() == []
  assert folder.read("a") is None and not folder.exists("a")
  for name in ("a", "a.b", "c/d", "c/e/f", "cd"):
    folder.write(name, name.encode())
  folder.write("a", b"anew")
  assert not folder.is_empty()
  assert folder.names() == ["a", "a.b", "c/d", "c/e/f", "cd"]
  assert folder.names("c") == ["c/d", "c/e/f"]
  assert folder.names("nothing") == []
  assert folder.read("a") == b"anew" and folder.read("c/e/f") == b"c/e/f"
  assert all(folder.exists(name) for name in ("a", "c", "c/e", "c/e/f"))
  assert not folder.exists("b") and not folder.exists("c/e/f/g")
  folder.delete("c")
  folder.delete("a")
  folder.delete("nothing")
  assert folder.names() == ["a.b", "cd"]


def test_a_bucket_writes_on_condition_that_nobody_else_has(tmp_path):
  folder = Folder(f"memory://{tmp_path.name}/folder")
  content, missing = folder.read_versioned("a")
  assert content is None
  first = folder.write_versioned("a", b"1", version=missing)
  assert first and folder.write_versioned("a", b"2", version=missing) is None
  assert folder.read_versioned("a") == (b"1", first)
  second = folder.write_versioned("a", b"2", version=first)
  assert second not in (None, first)
  assert folder.write_versioned("a", b"3", version=first) is None
  folder.write_versioned("a", None, version=first)
  assert folder.read("a") == b"2"
  folder.write_versioned("a", None, version=second)
  assert folder.read("a") is None
