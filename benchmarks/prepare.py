"""Tokens a second that `prepare` writes, on one core, by vocabulary.

  python -m benchmarks.prepare [--files='corpus/*.jsonl.gz'] [--megabytes=64]

Without --files the corpus is the source code of Python's standard library.
A row: the whole of `write_store` with one worker (reading, splitting,
encoding, hashing, writing), and the encoder alone over the same texts, which
is the bound. Must reach: 5M tokens/s for bytes, 1.5M for SentencePiece unigram.
"""

import glob
import json
import os
import sysconfig
import tempfile
import time

from absl import flags
from rich.console import Console
from rich.table import Table

from configs import base
from poison_jax import command
from poison_jax import config as config_lib
from poison_jax import vocabulary as vocabulary_lib
from poison_jax.config import Config
from poison_jax.corpora import writer
from poison_jax.corpora.documents import Files

_FILES = flags.DEFINE_string("files", "", "Glob of a corpus with field 'text'.")
_MEGABYTES = flags.DEFINE_integer("megabytes", 64, "Text to write, at most.")

# (name, kind, algorithm, pieces, tokens a second that must be reached)
_ROWS = (
  ("bytes", "bytes", "bpe", 256, 5e6),
  ("SentencePiece unigram", "sentencepiece", "unigram", 32_000, 1.5e6),
  ("SentencePiece BPE", "sentencepiece", "bpe", 32_000, None),
  ("SentencePiece BPE", "sentencepiece", "bpe", 4_000, None),
)


def main(arguments: list[str]) -> None:
  """Measures each vocabulary and prints the table."""
  del arguments
  os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  table = Table("vocabulary", "pieces", "tokens", "tokens/s", "encoder", "must")
  with tempfile.TemporaryDirectory() as folder:
    texts = _corpus(folder)
    for row, (name, kind, algorithm, pieces, bar) in enumerate(_ROWS):
      config = _config(folder, f"store{row}", kind, algorithm, pieces)
      vocabulary = _vocabulary(config, texts, folder, row)
      if vocabulary is not None:
        config = _config(
          folder, f"store{row}", kind, algorithm, pieces, vocabulary
        )
      seconds, tokens = _write(config)
      encoder = vocabulary_lib.from_config(config.vocabulary)
      encoder.encode_batch(texts[:10])
      began = time.perf_counter()
      encoded = sum(e.size for e in encoder.encode_batch(texts))
      alone = encoded / (time.perf_counter() - began)
      table.add_row(
        name,
        f"{encoder.size:,}",
        f"{tokens / 1e6:.1f}M",
        f"{tokens / seconds / 1e6:.2f}M",
        f"{alone / 1e6:.2f}M",
        f"{bar / 1e6:.1f}M" if bar else "",
      )
  Console().print(table)


def _corpus(folder: str) -> list[str]:
  """Writes the texts as corpus.jsonl into `folder` and returns them."""
  left, texts = _MEGABYTES.value * 10**6, []
  for text in _source_texts():
    if text.strip() and left > 0:
      texts.append(text)
      left -= len(text)
  with open(f"{folder}/corpus.jsonl", "w", encoding="utf-8") as f:
    f.writelines(json.dumps({"text": text}) + "\n" for text in texts)
  return texts


def _source_texts():
  if _FILES.value:
    c = base.get_config()
    c.corpus.task, c.corpus.files = "files", _FILES.value
    source = Files(config_lib.from_config_dict(c).corpus)
    for shard in source.shards():
      yield from (document.text for document in source.read(shard))
    return
  library = sysconfig.get_paths()["stdlib"]
  for path in sorted(glob.glob(f"{library}/**/*.py", recursive=True)):
    with open(path, encoding="utf-8", errors="ignore") as f:
      yield f.read()


def _config(
  folder: str,
  store: str,
  kind: str,
  algorithm: str,
  pieces: int,
  vocabulary: str = "",
) -> Config:
  c = base.get_config()
  c.corpus.task = "files"
  c.corpus.files = f"{folder}/corpus.jsonl"
  c.corpus.store = f"{folder}/{store}"
  c.corpus.workers = 1
  c.vocabulary.kind = kind
  c.vocabulary.algorithm = algorithm
  c.vocabulary.size = pieces
  c.vocabulary.file = vocabulary
  # A sample is enough for the speed, and training is not measured.
  c.vocabulary.training_documents = 1_000
  return config_lib.from_config_dict(c)


def _vocabulary(
  config: Config, texts: list[str], folder: str, row: int
) -> str | None:
  """Trains the vocabulary, unmeasured; returns its file."""
  if config.vocabulary.kind == "bytes":
    return None
  step = max(len(texts) // config.vocabulary.training_documents, 1)
  trained = vocabulary_lib.train_sentencepiece(texts[::step], config.vocabulary)
  path = f"{folder}/{row}.model"
  with open(path, "wb") as f:
    f.write(trained.model)
  return path


def _write(config: Config) -> tuple[float, int]:
  """Returns the seconds that the store took and its tokens."""
  began = time.perf_counter()
  outcome = writer.write_store(
    config, report=lambda *_: None, say=lambda _: None
  )
  seconds = time.perf_counter() - began
  return seconds, sum(
    shard["tokens"]
    for shards in outcome.manifest["splits"].values()
    for shard in shards
  )


if __name__ == "__main__":
  command.run(main)
