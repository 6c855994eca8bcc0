"""Writes the token store that runs read: a corpus as tokens, once for all.

  python -m poison_jax.prepare --config=configs/tiny.py \\
    --config.corpus.task=files --config.corpus.files='my/*.jsonl.gz' \\
    --config.corpus.store=stores/my

A store that is finished stays as it is; one that was broken off is finished.
Stopped by a signal it exits 75: the same command goes on.
Local folders and gs://.
"""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from absl import flags

from poison_jax import command
from poison_jax.corpora import progress, writer
from poison_jax.errors import Stopped, UserError
from poison_jax.training import workdir

_CONFIG = command.define_config()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "A run's folder, whose config.json replaces --config."
)


def main(arguments: list[str]) -> None:
  """Writes the store and prints what it holds."""
  config = command.load_config(_CONFIG)
  if config is None and _WORKDIR.value:
    config = workdir.load_config(_WORKDIR.value)
  if arguments or config is None:
    raise UserError(
      "prepare takes --config=FILE.py (or --workdir=RUN) and no other argument"
      + (f", got {arguments[0]!r}" if arguments else "")
    )
  began = time.monotonic()
  path = config.corpus.store
  with _stopped_by_signals(path):
    if sys.stdout.isatty():
      with progress.Bar() as bar:
        outcome = writer.write_store(config, report=bar.report, say=bar.say)
    else:
      lines = progress.Lines()
      outcome = writer.write_store(config, report=lines.report, say=_say)
  if outcome.already_finished:
    _say(f"the store {path} is finished: {describe(outcome.manifest)}")
    return
  seconds = time.monotonic() - began
  _say(f"wrote {path}: {describe(outcome.manifest)}; {seconds:.1f} s")


@contextlib.contextmanager
def _stopped_by_signals(path: str) -> Iterator[None]:
  """Ends the writing, workers and all, at SIGTERM or SIGINT.

  Raises:
    Stopped: one came.
  """

  def interrupt(number: int, _) -> None:
    # Nothing between here and there catches it.
    raise KeyboardInterrupt(signal.Signals(number).name)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, interrupt)
  try:
    yield
  except KeyboardInterrupt as error:
    raise Stopped(
      f"stopped by {error} while writing {path}; the same command goes on"
    ) from None


def describe(manifest: dict[str, Any]) -> str:
  """Returns one line: documents, tokens, held out, skipped, hash."""
  train, held_out = (
    {
      unit: sum(shard[unit] for shard in manifest["splits"][split])
      for unit in ("documents", "tokens")
    }
    for split in ("train", "held_out")
  )
  documents = train["documents"] + held_out["documents"]
  tokens = train["tokens"] + held_out["tokens"]
  skipped = ", ".join(f"{n:,} {why}" for why, n in manifest["skipped"].items())
  return (
    f"{documents:,} documents, {tokens:,} tokens, "
    f"{tokens / documents:,.1f} tokens a document; held out "
    f"{held_out['documents']:,} documents, {held_out['tokens']:,} tokens; "
    f"skipped {skipped or 'none'}; hash {manifest['hash']}"
  )


def _say(line: str) -> None:
  print(line, flush=True)


if __name__ == "__main__":
  command.run(main)
