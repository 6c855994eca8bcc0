"""The command: what a user sees, and the codes that scripts rely on."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from poison_jax.corpora import progress
from poison_jax.data.store import open_store


def _prepare(tmp_path, *overrides: str, workers: int = 1, **environment):
  """Runs the command over the files in `tmp_path`, bytes vocabulary."""
  return subprocess.run(
    [
      sys.executable,
      "-m",
      "poison_jax.prepare",
      "--config=configs/tiny.py",
      "--config.corpus.task=files",
      f"--config.corpus.files={tmp_path}/*.jsonl",
      f"--config.corpus.store={tmp_path}/store",
      f"--config.corpus.workers={workers}",
      "--config.corpus.held_out=0.2",
      "--config.vocabulary.kind=bytes",
      *overrides,
    ],
    capture_output=True,
    text=True,
    env=os.environ | environment,
  )


def _one_line(result, code: int) -> str:
  assert result.returncode == code, result.stderr
  assert result.stderr.startswith("error: ")
  assert result.stderr.count("\n") == 1
  assert "Traceback" not in result.stderr + result.stdout
  return result.stderr


@pytest.fixture
def corpus(tmp_path):
  """40 documents of 10 bytes each."""
  lines = [json.dumps({"text": f"document{i:02d}"}) for i in range(40)]
  (tmp_path / "a.jsonl").write_text("\n".join(lines))
  return tmp_path


def test_it_prints_counts_and_hash_and_is_done_the_second_time(corpus):
  first = _prepare(corpus)
  assert (first.returncode, first.stderr) == (0, "")
  store = open_store(f"{corpus}/store", vocabulary=None)
  expected = (
    "40 documents, 440 tokens, 11.0 tokens a document; held out "
    f"{store.held_out.documents} documents, {store.held_out.tokens} tokens; "
    f"skipped none; hash {store.hash}"
  )
  assert expected in first.stdout
  assert re.search(r"; \d+\.\d s\n$", first.stdout)
  second = _prepare(corpus)
  assert (second.returncode, second.stderr) == (0, "")
  assert "is finished" in second.stdout and expected in second.stdout


def test_tensorflow_is_not_needed_for_files_and_stories(corpus):
  # A package that can't be imported stands in the way of the real one.
  for name in ("tensorflow", "seqio", "tensorflow_datasets", "jax"):
    (corpus / "absent" / name).mkdir(parents=True)
    (corpus / "absent" / name / "__init__.py").write_text(
      f"raise ImportError('{name} is absent')"
    )
  path = {"PYTHONPATH": f"{corpus}/absent"}
  # Two workers, since they import for themselves.
  os.remove(corpus / "a.jsonl")
  for i in range(2):
    (corpus / f"{i}.jsonl").write_text('{"text": "%s"}' % ("x" * 5_000_000))
  result = _prepare(corpus, workers=2, **path)
  assert (result.returncode, result.stderr) == (0, "")
  result = _prepare(
    corpus,
    "--config.corpus.task=stories",
    "--config.corpus.stories=50",
    f"--config.corpus.store={corpus}/stories",
    **path,
  )
  assert (result.returncode, result.stderr) == (0, "")
  assert "50 documents" in result.stdout


@pytest.mark.parametrize(
  "override,message",
  [
    ("--config.corpus.files=/none/*.jsonl", "'/none/*.jsonl' matches no file"),
    ("--config.corpus.text_field=body", "a.jsonl:1: no text field 'body'"),
    ("--config.vocabulary.file=/none.model", "/none.model"),
    ("--config.corpus.held_out=2", "corpus.held_out"),
    ("--config.corpus.files=gs://b/*.jsonl", "gs://b/*.jsonl"),
  ],
)
def test_bad_input_is_one_line_and_leaves_nothing(corpus, override, message):
  kind = "--config.vocabulary.kind=sentencepiece"
  result = _prepare(corpus, override, *([kind] if "model" in override else []))
  assert message in _one_line(result, 2)
  assert sorted(os.listdir(corpus)) == ["a.jsonl"]


def test_an_error_in_a_worker_is_one_line_too(corpus):
  for name in "bc":
    (corpus / f"{name}.jsonl").write_text(
      '{"text": "%s"}\n{' % ("x" * 5_000_000)
    )
  result = _prepare(corpus, workers=2)
  assert re.search(r"[bc]\.jsonl:2: broken JSON", _one_line(result, 2))


def test_a_missing_config_and_an_argument_too_many_are_told():
  base = [sys.executable, "-m", "poison_jax.prepare"]
  for more, message in (
    ([], "--config"),
    (["--config=configs/tiny.py", "stores/x"], "'stores/x'"),
  ):
    result = subprocess.run(base + more, capture_output=True, text=True)
    assert message in _one_line(result, 2)


def test_a_folder_that_cannot_be_written_is_one_line(corpus):
  (corpus / "store").write_text("a file")
  assert "store" in _one_line(_prepare(corpus), 2)


def test_a_full_disk_is_one_line_and_what_was_finished_stays(corpus, tmp_path):
  """A file-size limit stands for a full disk: writing fails in the middle."""
  (corpus / "b.jsonl").write_text('{"text": "%s"}' % ("x" * 6_000_000))
  limited = (
    "import resource, runpy, signal, sys\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))\n"
    "runpy.run_module('poison_jax.prepare', run_name='__main__')\n"
  )
  result = subprocess.run(
    [
      sys.executable,
      "-c",
      limited,
      "--config=configs/tiny.py",
      "--config.corpus.task=files",
      f"--config.corpus.files={corpus}/*.jsonl",
      f"--config.corpus.store={corpus}/store",
      "--config.corpus.workers=1",
      "--config.corpus.held_out=0.2",
      "--config.vocabulary.kind=bytes",
    ],
    capture_output=True,
    text=True,
  )
  assert "store" in _one_line(result, 2)
  assert os.listdir(corpus / "store" / "blocks") == ["00000-00000.json"]
  result = _prepare(corpus)
  assert result.returncode == 0 and "going on" in result.stdout
  open_store(f"{corpus}/store", vocabulary=None).verify_contents()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_it_says_so_and_goes_on_later(tmp_path, number):
  arguments = [
    sys.executable,
    "-m",
    "poison_jax.prepare",
    "--config=configs/tiny.py",
    "--config.vocabulary.kind=bytes",
    "--config.corpus.stories=60_000",
    f"--config.corpus.store={tmp_path}/store",
    "--config.corpus.workers=2",
  ]
  process = subprocess.Popen(
    arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  blocks = tmp_path / "store" / "blocks"
  while process.poll() is None and not list(blocks.glob("*.json")):
    time.sleep(0.01)
  process.send_signal(number)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 75
  assert re.fullmatch(rf"error: stopped by {number.name} while .*\n", err)
  result = subprocess.run(arguments, capture_output=True, text=True)
  assert (result.returncode, result.stderr) == (0, "")
  assert "going on" in result.stdout


def test_lines_of_progress_tell_the_remaining_time(capsys, monkeypatch):
  now = iter([100.0, 105.0, 120.0, 125.0, 140.0])
  monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
  lines = progress.Lines()
  for done in (0.0, 0.1, 0.25, 0.3, 0.8):
    lines.report(done, 1000, 2_000_000)
  assert capsys.readouterr().out.splitlines() == [
    "preparing: 25%, 1,000 documents, 2,000,000 tokens, about 60 s remain",
    "preparing: 80%, 1,000 documents, 2,000,000 tokens, about 10 s remain",
  ]


def test_the_share_done_grows_to_one_over_all_parts():
  from poison_jax.corpora.blocks import Progress
  from poison_jax.corpora.workers import Total

  seen = []
  sizes = {(0, 0): 15, (0, 1): 15, (1, 0): 5, (1, 1): 5}
  total = Total(sizes, lambda done, *_: seen.append(done))
  for shard, part, fraction in (
    (0, 0, 0.5),
    (1, 1, 1.0),
    (0, 1, 1.0),
    (0, 0, 1.0),
    (1, 0, 1.0),
  ):
    total(Progress(shard, part, fraction, 1, 1))
  np.testing.assert_allclose(seen, [0.1875, 0.3125, 0.6875, 0.875, 1.0])


def test_the_bar_draws_on_a_terminal(capsys):
  with progress.Bar() as bar:
    bar.say("[a] line with brackets")
    bar.report(0.5, 10, 2_000)
  out = capsys.readouterr().out
  assert "[a] line with brackets" in out and "2,000 tokens" in out
