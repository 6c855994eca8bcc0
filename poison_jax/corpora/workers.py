"""Deals the shards of a source out to processes that write blocks.

The processes are spawned, not forked: threads of libraries don't survive a
fork. With one worker everything happens in the calling process.
"""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection

from poison_jax.config import Config
from poison_jax.corpora import sources
from poison_jax.corpora.blocks import BlockRecord, BlockWriter, Progress
from poison_jax.data.folder import Folder
from poison_jax.data.store import load_vocabulary
from poison_jax.errors import UserError

# One a process: set by `_start`, used by `_write_part`.
_writer: BlockWriter | None = None


class Cancelled(Exception):
  """Ends a worker's part because another one failed."""


class Total:
  """Adds up the progress of all parts, shards weighed by their size."""

  def __init__(
    self, sizes: list[int], report: Callable[[float, int, int], None]
  ):
    whole = sum(sizes)
    self._weights = [s / whole if whole else 1 / len(sizes) for s in sizes]
    self._fractions: dict[tuple[int, int], float] = {}
    self._done, self._documents, self._tokens = 0.0, 0, 0
    self._report = report

  def __call__(self, progress: Progress, parts: int) -> None:
    key = (progress.shard, progress.part)
    step = progress.fraction - self._fractions.get(key, 0.0)
    self._fractions[key] = progress.fraction
    self._done += step * self._weights[progress.shard] / parts
    self._documents += progress.documents
    self._tokens += progress.tokens
    self._report(self._done, self._documents, self._tokens)


def write_blocks(
  config: Config,
  *,
  shards: list[str],
  splittable: bool,
  earlier: Iterable[str],
  report: Callable[[Progress, int], None],
) -> list[BlockRecord]:
  """Writes all blocks of a corpus; returns their records, in order.

  Args:
    config: names corpus, store (its vocabulary already lies there), workers.
    shards: the source's shards.
    splittable: whether several workers may share a shard.
    earlier: names of blocks that an earlier attempt finished.
    report: called with each progress and the number of parts of a shard.

  Raises:
    UserError: a document can't be used, or the store not be written.
  """
  workers = config.corpus.workers or available_cores()
  parts = -(-workers // len(shards)) if splittable else 1
  names = sorted(earlier)
  tasks = [
    {
      "shard_name": name,
      "shard": shard,
      "part": part,
      "parts": parts,
      "earlier": [n for n in names if n.startswith(f"{shard:05d}-")],
    }
    for shard, name in enumerate(shards)
    for part in range(parts)
  ]
  workers = min(workers, len(tasks))
  if workers == 1:
    writer = _make_writer(config, lambda progress: report(progress, parts))
    records = [writer.write_part(**task) for task in tasks]
  else:
    records = _in_processes(
      config, tasks, workers, lambda progress: report(progress, parts)
    )
  return sorted(
    (r for part_records in records for r in part_records), key=lambda r: r.name
  )


def available_cores() -> int:
  """Returns how many cores this process may use."""
  return len(os.sched_getaffinity(0))


def _in_processes(
  config: Config,
  tasks: list[dict],
  workers: int,
  report: Callable[[Progress], None],
) -> list[list[BlockRecord]]:
  context = multiprocessing.get_context("spawn")
  queue, stop = context.Queue(), context.Event()
  pool = concurrent.futures.ProcessPoolExecutor(
    workers, context, initializer=_start, initargs=(config, queue, stop)
  )
  listener = threading.Thread(target=_listen, args=(queue, report), daemon=True)
  listener.start()
  try:
    futures = [pool.submit(_write_part, task) for task in tasks]
    for future in concurrent.futures.as_completed(futures):
      future.result()
    return [future.result() for future in futures]
  except BrokenProcessPool:
    raise UserError(
      "a process that wrote the store died (out of memory?); what was finished "
      "stays: start again, with a lower config.corpus.workers"
    ) from None
  finally:
    stop.set()
    pool.shutdown(wait=True, cancel_futures=True)
    queue.put(None)
    listener.join()
    queue.close()


def _listen(queue, report: Callable[[Progress], None]) -> None:
  while (progress := queue.get()) is not None:
    report(progress)


def _make_writer(
  config: Config, report: Callable[[Progress], None]
) -> BlockWriter:
  folder = Folder(config.corpus.store)
  vocabulary = load_vocabulary(folder)
  return BlockWriter(
    folder=folder,
    source=sources.make_source(config, vocabulary),
    vocabulary=vocabulary,
    corpus=config.corpus,
    report=report,
  )


def _start(config: Config, queue, stop) -> None:
  """Prepares a worker process."""
  global _writer
  # Ctrl-C reaches the whole group; the parent stops its workers itself.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  threading.Thread(
    target=_die_with, args=(parent.sentinel,), daemon=True
  ).start()

  def report(progress: Progress) -> None:
    if stop.is_set():
      raise Cancelled
    queue.put(progress)

  _writer = _make_writer(config, report)


def _die_with(sentinel: int) -> None:
  """Ends this process when its parent is gone, even killed by -9."""
  connection.wait([sentinel])
  os._exit(1)


def _write_part(task: dict) -> list[BlockRecord]:
  return _writer.write_part(**task)
