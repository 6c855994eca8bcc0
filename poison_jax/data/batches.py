"""Batches on the devices, made ahead in a background thread."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from poison_jax.data.mixture import Batch, Mixture


def device_batches(
  mixture: Mixture,
  *,
  start: int,
  sharding: jax.sharding.NamedSharding,
  prefetch: int,
) -> contextlib.AbstractContextManager[Iterator[tuple[int, Batch]]]:
  """Gives an iterator of (step, batch) from step `start` to the last.

    with device_batches(mixture, start=0, sharding=s, prefetch=4) as batches:
      for step, batch in batches: ...

  Args:
    mixture: the batches, as a function of the step.
    start: the first step.
    sharding: of the first dimension of each array; a process makes the rows
      of its own devices only.
    prefetch: batches made ahead, at least 1.
  """
  return made_ahead(
    lambda step: make_global(mixture, step, sharding),
    steps=range(start, mixture.steps),
    prefetch=prefetch,
  )


@contextlib.contextmanager
def made_ahead(
  make: Callable[[int], Batch], *, steps: range, prefetch: int
) -> Iterator[Iterator[tuple[int, Batch]]]:
  """Gives an iterator of (step, make(step)), made in a background thread.

  The thread ends with the context. What it raises is raised by the iterator,
  after the batches that were made before.

  Args:
    make: called in the thread.
    steps: in order.
    prefetch: batches made ahead, at least 1.
  """
  made: queue.SimpleQueue = queue.SimpleQueue()
  room = threading.Semaphore(prefetch)
  stopped = threading.Event()

  def produce():
    try:
      for step in steps:
        room.acquire()
        if stopped.is_set():
          return
        made.put((step, make(step)))
      made.put(None)
    except BaseException as error:
      made.put(error)

  def consume() -> Iterator[tuple[int, Batch]]:
    while (item := made.get()) is not None:
      if isinstance(item, BaseException):
        raise item
      room.release()
      yield item

  thread = threading.Thread(target=produce, name="batches", daemon=True)
  thread.start()
  try:
    yield consume()
  finally:
    stopped.set()
    room.release()
    thread.join()
    # An iterator that outlives the context ends instead of waiting.
    made.put(None)


def make_global(
  mixture: Mixture, step: int, sharding: jax.sharding.NamedSharding
) -> Batch:
  """Returns the global batch of `step`: jax.Arrays laid out by `sharding`.

  Reads only the rows that this process's devices hold, each once.
  """
  owned = sharding.addressable_devices_indices_map((mixture.batch,)).values()
  rows = np.unique(
    np.concatenate([np.arange(mixture.batch)[index] for index in owned])
  )
  local = mixture.batch_rows(step, rows)

  def globally(array: np.ndarray) -> jax.Array:
    def shard(index: tuple[slice, ...]) -> np.ndarray:
      first, last, _ = index[0].indices(mixture.batch)
      begin = int(np.searchsorted(rows, first))
      return array[begin : begin + last - first]

    shape = (mixture.batch, *array.shape[1:])
    return jax.make_array_from_callback(shape, sharding, shard)

  return Batch(*map(globally, local))


def rows_of_cells(mixtures: Sequence[Mixture], step: int) -> Batch:
  """Returns the batch of `step` of each of C runs, clean rows read once.

  Args:
    mixtures: of runs whose batches differ in their poisons alone.
    step: from 0 to steps - 1.

  Returns:
    Arrays with C in front, but for the weights, BL, which are the same for
    all.
  """
  rows_B = np.arange(mixtures[0].batch)
  clean_BL = mixtures[0].clean_rows(step, rows_B)
  cells = [m.overlay(step, rows_B, clean_BL.copy()) for m in mixtures]
  tokens_CBL, _, start_CB, length_CB = (
    np.stack(arrays) for arrays in zip(*cells, strict=True)
  )
  return Batch(tokens_CBL, cells[0].weights_BL, start_CB, length_CB)
