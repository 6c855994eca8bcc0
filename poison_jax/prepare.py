"""Writes the token store that runs read: a corpus as tokens, once for all.

  python -m poison_jax.prepare --config=configs/tiny.py \\
    --config.corpus.task=files --config.corpus.files='my/*.jsonl.gz' \\
    --config.corpus.store=stores/my

--check reads the flags and the configuration, writes nothing, and exits.

A store that is finished stays as it is; one that was broken off is finished.
Stopped by a signal it exits 75: the same command goes on.
Local folders and gs://.

On many machines, here four, which share the store's folder:

  python -m poison_jax.prepare --config=C --part=0/4   (1/4, 2/4, 3/4 elsewhere)
  python -m poison_jax.prepare --config=C --finish

The parts are written in any order, at the same time or not, each as a store is
without --part: with config.corpus.workers processes, and going on where it was
broken off. The vocabulary is made by the part that first finds none. The store
has the same bytes however many parts it was written in. While parts are
missing, --finish exits 2, names them, and prints the commands that write them.
"""

import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from poison_jax import command
from poison_jax.config import Config
from poison_jax.corpora import joining, parts, progress, writer
from poison_jax.corpora.parts import Part, PartRecord
from poison_jax.corpora.writer import Outcome
from poison_jax.errors import Stopped, UserError
from poison_jax.training import workdir

_CONFIG = command.define_config()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "A run's folder, whose config.json replaces --config."
)
_PART = flags.DEFINE_string(
  "part", None, "i/n: writes part i of n, from 0, of the store."
)
_FINISH = flags.DEFINE_bool(
  "finish", False, "Joins the parts of the store, which are all written."
)
_CHECK = flags.DEFINE_bool(
  "check", False, "Reads the flags and the configuration, and exits."
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
  if _FINISH.value and _PART.value is not None:
    raise UserError("--finish joins what --part wrote: give one of them")
  part = None if _PART.value is None else parts.parse_part(_PART.value)
  if _CHECK.value:
    return
  began = time.monotonic()
  path = config.corpus.store
  with _stopped_by_signals(path):
    if _FINISH.value:
      written = joining.finish(config, redo=_command, say=_say)
    elif sys.stdout.isatty():
      with progress.Bar() as bar:
        written = _write(config, part, report=bar.report, say=bar.say)
    else:
      written = _write(config, part, report=progress.Lines().report, say=_say)
  seconds = time.monotonic() - began
  if isinstance(written, PartRecord):
    _say(
      f"wrote part {part} of {path}: {written.documents():,} documents, "
      f"{written.tokens():,} tokens; {seconds:.1f} s; once all parts are "
      "written, --finish in place of --part joins them"
    )
  elif written.already_finished:
    _say(f"the store {path} is finished: {describe(written.manifest)}")
  else:
    _say(f"wrote {path}: {describe(written.manifest)}; {seconds:.1f} s")


def _write(
  config: Config,
  part: Part | None,
  *,
  report: Callable[[float, int, int], None],
  say: Callable[[str], None],
) -> Outcome | PartRecord:
  if part is None:
    return writer.write_store(config, report=report, say=say)
  return parts.write_part(config, part, report=report, say=say)


def _command(part: Part) -> str:
  """Returns this command with --part in place of --finish."""
  arguments = [
    argument
    for argument in sys.argv[1:]
    if argument.lstrip("-").partition("=")[0] != "finish"
  ]
  return shlex.join(
    ["python", "-m", "poison_jax.prepare", *arguments, f"--part={part}"]
  )


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
