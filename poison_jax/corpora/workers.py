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
from typing import NamedTuple

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


class Share(NamedTuple):
  """Every `of`-th block of a shard, from block `part` on: a worker's task."""

  shard: int
  part: int
  of: int

  def has(self, block: str) -> bool:
    """Says whether the block of that name belongs to it."""
    shard, number = map(int, block.split("-"))
    return shard == self.shard and number % self.of == self.part


class Total:
  """Adds up the progress of all shares, weighed by their size."""

  def __init__(
    self,
    sizes: dict[tuple[int, int], float],
    report: Callable[[float, int, int], None],
  ):
    """Takes the size of each share by (shard, part); 0 where unknown."""
    whole = sum(sizes.values())
    self._weights = {
      key: size / whole if whole else 1 / len(sizes)
      for key, size in sizes.items()
    }
    self._fractions: dict[tuple[int, int], float] = {}
    self._done, self._documents, self._tokens = 0.0, 0, 0
    self._report = report

  def __call__(self, progress: Progress) -> None:
    key = (progress.shard, progress.part)
    step = progress.fraction - self._fractions.get(key, 0.0)
    self._fractions[key] = progress.fraction
    self._done += step * self._weights[key]
    self._documents += progress.documents
    self._tokens += progress.tokens
    self._report(self._done, self._documents, self._tokens)


def deal(
  shards: int,
  *,
  splittable: bool,
  workers: int,
  part: int = 0,
  parts: int = 1,
) -> list[Share]:
  """Returns what part `part` of a store in `parts` parts consists of.

  The parts take shards in turn, or, where they are more than the shards, every
  so-many-th block of a shard; the workers of a part share its shards alike.

  Args:
    shards: how many the source has.
    splittable: whether several workers may share a shard.
    workers: processes of this part; they change no more than how fine the
      shares are cut.
    part: from 0 to `parts` - 1.
    parts: how many machines or jobs write the store.
  """
  of = -(-parts // shards) if splittable else 1
  mine = [(s, p) for s in range(shards) for p in range(of)][part::parts]
  finer = -(-workers // len(mine)) if splittable and mine else 1
  return [
    Share(shard, share + of * i, of * finer)
    for shard, share in mine
    for i in range(finer)
  ]


def write_blocks(
  config: Config,
  *,
  shards: list[tuple[str, int]],
  shares: list[Share],
  earlier: Iterable[str],
  report: Callable[[float, int, int], None],
) -> list[BlockRecord]:
  """Writes the blocks of `shares`; returns their records, in order.

  Args:
    config: names corpus, store (its vocabulary already lies there), workers.
    shards: the source's shards and their sizes.
    shares: from `deal`.
    earlier: names of blocks that an earlier attempt finished.
    report: called with the share done, 0 to 1, and the documents and tokens
      written by this call.

  Raises:
    UserError: a document can't be used, or the store not be written.
  """
  total = Total({s[:2]: shards[s.shard][1] / s.of for s in shares}, report)
  names = sorted(earlier)
  tasks = [
    {
      "shard_name": shards[s.shard][0],
      "shard": s.shard,
      "part": s.part,
      "parts": s.of,
      "earlier": [n for n in names if n.startswith(f"{s.shard:05d}-")],
    }
    for s in shares
  ]
  workers = min(count(config), len(tasks))
  if workers <= 1:
    writer = _make_writer(config, total)
    records = [writer.write_part(**task) for task in tasks]
  else:
    records = _in_processes(config, tasks, workers, total)
  return sorted(
    (r for part_records in records for r in part_records), key=lambda r: r.name
  )


def count(config: Config) -> int:
  """Returns how many processes write: as configured, or one a core."""
  return config.corpus.workers or len(os.sched_getaffinity(0))


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
