"""A run's folder belongs to one run and one process."""

import dataclasses
import errno
import json
import os
import subprocess
import sys

import pytest
import small_run

from poison_jax.data.folder import Folder
from poison_jax.errors import UserError
from poison_jax.training import workdir as workdir_lib


@pytest.fixture(name="config")
def _config(tmp_path):
  return small_run.make_config(tmp_path / "store")


@pytest.fixture(name="folder")
def _folder(tmp_path):
  return tmp_path / "runs" / "a"


def _begin(folder, config):
  with workdir_lib.locked(str(folder)):
    workdir_lib.claim(str(folder), config)
    (folder / "ledger.parquet").write_text("")


def test_config_json_gives_the_config_back(folder, config):
  _begin(folder, config)
  assert workdir_lib.load_config(str(folder)) == config
  with workdir_lib.locked(str(folder)):
    assert workdir_lib.claim(str(folder), None) == config


def test_another_run_is_refused_naming_each_field(folder, config):
  _begin(folder, config)
  other = dataclasses.replace(
    config,
    seed=5,
    poison=dataclasses.replace(config.poison, count=7),
    checkpoint=dataclasses.replace(config.checkpoint, every=99),
  )
  with (
    workdir_lib.locked(str(folder)),
    pytest.raises(UserError) as error,
  ):
    workdir_lib.claim(str(folder), other)
  assert "seed: the run has 0, asked for 5" in str(error.value)
  assert "poison.count: the run has 12, asked for 7" in str(error.value)
  assert "checkpoint" not in str(error.value)
  assert workdir_lib.load_config(str(folder)) == config


def test_what_does_not_change_the_meaning_may_change(folder, config):
  _begin(folder, config)
  free = dataclasses.replace(
    config, checkpoint=dataclasses.replace(config.checkpoint, every=99)
  )
  with workdir_lib.locked(str(folder)):
    assert workdir_lib.claim(str(folder), free) == free
    # It may be refused yet: a mesh that the devices don't make.
    assert workdir_lib.load_config(str(folder)) == config
    workdir_lib.keep(str(folder), free)
  assert workdir_lib.load_config(str(folder)) == free


def test_a_folder_with_other_things_is_refused_untouched(folder, config):
  folder.mkdir(parents=True)
  (folder / "thesis.tex").write_text("x")
  with (
    pytest.raises(UserError, match="is not empty and holds no run"),
    workdir_lib.locked(str(folder)),
  ):
    pass
  assert os.listdir(folder) == ["thesis.tex"]


def test_a_refused_new_run_leaves_nothing(folder, config):
  with pytest.raises(UserError), workdir_lib.locked(str(folder)):
    workdir_lib.claim(str(folder), config)
    raise UserError("too many poisons")
  assert not folder.exists()


def test_a_refused_run_leaves_the_config_that_a_study_gave_it(folder, config):
  workdir_lib.write_config(str(folder), config)
  with pytest.raises(UserError), workdir_lib.locked(str(folder)):
    assert workdir_lib.claim(str(folder), None) == config
    raise UserError("too many poisons")
  assert os.listdir(folder) == ["config.json"]


def test_a_full_disk_before_the_run_has_begun_leaves_nothing(
  folder, config, monkeypatch
):
  def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError) as error, workdir_lib.locked(str(folder)):
    workdir_lib.claim(str(folder), config)
  assert error.value.filename == str(folder / "config.json")
  assert not folder.exists()


def test_a_run_that_lost_its_ledger_is_not_taken_for_a_new_one(folder, config):
  _begin(folder, config)
  (folder / "ledger.parquet").unlink()
  (folder / "checkpoints").mkdir()
  other = dataclasses.replace(config, seed=5)
  with workdir_lib.locked(str(folder)), pytest.raises(UserError, match="seed"):
    workdir_lib.claim(str(folder), other)
  assert workdir_lib.load_config(str(folder)) == config


def test_a_refused_resumption_leaves_the_run(folder, config):
  _begin(folder, config)
  with pytest.raises(UserError), workdir_lib.locked(str(folder)):
    raise UserError("no store")
  assert workdir_lib.load_config(str(folder)) == config


def test_two_processes_cannot_share_a_workdir(folder, config):
  code = f"""
import sys
from poison_jax.training import workdir
with workdir.locked({str(folder)!r}):
  print("held", flush=True)
  sys.stdin.read()
"""
  holder = subprocess.Popen(
    [sys.executable, "-c", code],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert holder.stdout.readline() == "held\n"
    with (
      pytest.raises(UserError, match=f"in use by process {holder.pid}:"),
      workdir_lib.locked(str(folder)),
    ):
      pass
  finally:
    holder.kill()
    holder.communicate()
  with workdir_lib.locked(str(folder)):  # Its death freed the folder.
    pass


@pytest.mark.parametrize(
  "damage",
  [
    lambda text: text[: len(text) // 2],
    lambda text: text.replace('"format": 1', '"format": 2'),
    lambda text: text.replace('"count": 12', '"count": 13'),
    lambda text: json.dumps({"format": 1}),
    lambda text: "[]",
  ],
)
def test_a_damaged_config_json_is_one_error(folder, config, damage):
  _begin(folder, config)
  path = folder / "config.json"
  path.write_text(damage(path.read_text()))
  with pytest.raises(UserError, match="config.json"):
    workdir_lib.load_config(str(folder))


def test_a_folder_without_a_run_is_named(tmp_path):
  with pytest.raises(UserError, match="holds no run"):
    workdir_lib.load_config(str(tmp_path / "nowhere"))
  assert not (tmp_path / "nowhere").exists()


@pytest.fixture(name="bucket")
def _bucket(tmp_path):
  # TensorStore's memory keeps the conditions on writes that a bucket keeps.
  return Folder(f"memory://{tmp_path.name}/runs/a")


def test_in_a_bucket_a_run_goes_on_and_another_is_refused(bucket, config):
  with workdir_lib.locked(bucket.path):
    workdir_lib.claim(bucket.path, config)
    bucket.write("ledger.parquet", b"")
  assert workdir_lib.load_config(bucket.path) == config
  other = dataclasses.replace(config, seed=5)
  with (
    pytest.raises(UserError, match="seed: the run has 0"),
    workdir_lib.locked(bucket.path),
  ):
    workdir_lib.claim(bucket.path, other)
  assert bucket.names() == ["config.json", "ledger.parquet"]


def test_in_a_bucket_a_refused_new_run_leaves_nothing(bucket, config):
  with pytest.raises(UserError), workdir_lib.locked(bucket.path):
    workdir_lib.claim(bucket.path, config)
    raise UserError("too many poisons")
  assert bucket.names() == []


def test_in_a_bucket_other_things_are_left_untouched(bucket):
  bucket.write("thesis.tex", b"x")
  with (
    pytest.raises(UserError, match="is not empty and holds no run"),
    workdir_lib.locked(bucket.path),
  ):
    pass
  with pytest.raises(UserError, match="holds no run"):
    workdir_lib.load_config(bucket.path)
  assert bucket.names() == ["thesis.tex"]
