"""Claims: of several dispatchers one runs a cell, on a disk and in a bucket."""

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys

import pytest
from fake_bucket import FakeBuckets

from poison_jax.data.folder import Folder
from poison_jax.studies.grid import claims as claims_lib
from poison_jax.studies.grid.claims import Claims
from poison_jax.training import lock

_MANY = 8


@pytest.fixture(name="bucket", scope="module")
def _bucket():
  with FakeBuckets() as bucket, pytest.MonkeyPatch.context() as patch:
    for name, value in bucket.environment.items():
      patch.setenv(name, value)
    yield bucket


@pytest.fixture(name="folder", params=["disk", "bucket"])
def _folder(request, tmp_path):
  if request.param == "disk":
    return str(tmp_path / "study")
  request.getfixturevalue("bucket")
  return f"gs://bucket/{tmp_path.name}"


class _Clock:
  """A clock that is set by hand, in epoch seconds."""

  def __init__(self):
    self.time = 1e9

  def __call__(self):
    return self.time


def _elsewhere(monkeypatch):
  """Has claims look as those of machines that we can't ask for processes."""
  monkeypatch.setattr(lock, "process_set", lambda: None)


def _at_once(*actions):
  with concurrent.futures.ThreadPoolExecutor(len(actions)) as pool:
    return [f.result() for f in [pool.submit(action) for action in actions]]


def test_one_has_a_cell_until_it_gives_it_back(folder):
  one, other = Claims(folder), Claims(folder)
  assert one.take("a") and one.holds("a")
  assert not other.take("a") and not other.holds("a")
  assert not one.take("a")  # Nor is it begun twice by the same.
  owner = other.owners()["a"]
  assert (owner.pid, set(other.owners())) == (os.getpid(), {"a"})
  assert str(owner).startswith(f"process {os.getpid()} on ")
  one.release("a")
  assert other.owners() == {} and not one.holds("a")
  assert other.take("a") and not one.take("a")
  assert one.take("b") and set(one.owners()) == {"a", "b"}


def test_of_many_at_once_one_gets_it(folder):
  several = [Claims(folder) for _ in range(_MANY)]
  for cell in "abc":
    taken = _at_once(*[lambda c=c, cell=cell: c.take(cell) for c in several])
    assert sum(taken) == 1


def test_a_silent_owner_is_succeeded_by_one_of_many(folder, monkeypatch):
  _elsewhere(monkeypatch)
  clock = _Clock()
  first = Claims(folder, now=clock)
  several = [Claims(folder, now=clock) for _ in range(_MANY)]
  assert first.take("a")
  clock.time += claims_lib.STALE
  assert not any(claims.take("a") for claims in several)
  clock.time += 1
  assert several[0].owners() == {}
  taken = _at_once(*[lambda c=c: c.take("a") for c in several])
  assert sum(taken) == 1


def test_an_owner_that_renews_keeps_its_cell(folder, monkeypatch):
  _elsewhere(monkeypatch)
  clock = _Clock()
  one, other = Claims(folder, now=clock), Claims(folder, now=clock)
  assert one.take("a")
  for _ in range(5):
    clock.time += claims_lib.STALE - 1
    assert one.renew() == []
    assert not other.take("a")


def test_who_wakes_up_late_learns_what_it_has_lost(folder, monkeypatch):
  _elsewhere(monkeypatch)
  clock = _Clock()
  one, other = Claims(folder, now=clock), Claims(folder, now=clock)
  assert one.take("a") and one.take("b")
  clock.time += claims_lib.STALE + 1
  assert other.take("a")
  assert not one.holds("a") and one.holds("b")
  assert one.renew() == ["a"]
  clock.time += claims_lib.RENEWED_EVERY
  assert one.renew() == []  # Told once.
  assert other.holds("a") and set(other.owners()) == {"a", "b"}


def test_what_another_has_taken_over_is_not_given_back(folder, monkeypatch):
  _elsewhere(monkeypatch)
  clock = _Clock()
  one, other, third = (Claims(folder, now=clock) for _ in range(3))
  assert one.take("a")
  clock.time += claims_lib.STALE + 1
  assert other.take("a")
  one.release("a")
  assert other.holds("a") and not third.take("a")


def test_a_renewal_that_fails_hides_no_loss(folder, monkeypatch):
  _elsewhere(monkeypatch)
  clock = _Clock()
  one, other = Claims(folder, now=clock), Claims(folder, now=clock)
  assert one.take("a") and one.take("b")
  clock.time += claims_lib.STALE + 1
  assert other.take("a")
  write = Folder.write

  def fail(self, name, content):
    raise OSError("no route to host")

  monkeypatch.setattr(Folder, "write", fail)
  with pytest.raises(OSError):
    one.renew()
  monkeypatch.setattr(Folder, "write", write)
  assert one.renew() == ["a"]


def test_renewals_come_no_more_often_than_they_must(folder):
  clock = _Clock()
  claims = Claims(folder, now=clock)
  assert claims.take("a")
  claims.renew()
  written = Folder(folder).read("claims/a.1")
  clock.time += claims_lib.RENEWED_EVERY - 1
  claims.renew()
  assert Folder(folder).read("claims/a.1") == written
  clock.time += 1
  claims.renew()
  assert Folder(folder).read("claims/a.1") != written


def test_a_dead_owner_of_this_machine_is_succeeded_at_once(folder):
  script = (
    "import os, sys\n"
    "from poison_jax.studies.grid.claims import Claims\n"
    "assert Claims(sys.argv[1]).take('a')\n"
    "os._exit(0)  # As if killed.\n"
  )
  subprocess.run(
    [sys.executable, "-c", script, folder],
    check=True,
    timeout=120,
    cwd=os.path.dirname(os.path.dirname(__file__)),
  )
  assert Folder(folder).exists("claims/a.1")
  assert Claims(folder).owners() == {}
  assert Claims(folder).take("a")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"pid": 1}'])
def test_a_damaged_claim_is_nobodys(folder, content):
  Folder(folder).write("claims/a.1", content)
  claims = Claims(folder)
  assert claims.owners() == {}
  assert claims.take("a") and claims.holds("a")


def test_a_claim_whose_answer_was_lost_is_its_own(folder, monkeypatch):
  """A request that is sent again finds what it has itself written."""
  create = Folder.create

  def twice(self, name, content):
    assert create(self, name, content)
    return create(self, name, content)

  monkeypatch.setattr(Folder, "create", twice)
  claims = Claims(folder)
  assert claims.take("a") and claims.holds("a")


def test_files_that_are_no_claims_are_passed_over(folder):
  for name in ("claims/a", "claims/.a.1.77-0.partial", "claims/a.b", "a.1"):
    Folder(folder).write(name, b"x")
  claims = Claims(folder)
  assert claims.owners() == {} and claims.take("a")


def test_a_claim_tells_who_made_it(folder):
  claims = Claims(folder)
  assert claims.take("a")
  found = json.loads(Folder(folder).read("claims/a.1"))
  assert found.keys() == {
    field.name for field in dataclasses.fields(claims_lib.Owner)
  }
  assert found["pid"] == os.getpid() and found["released"] is False
