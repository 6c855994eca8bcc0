"""A profile of a few steps, for `--profile`."""

import tempfile

import jax

from poison_jax.data.folder import Folder


class Tracer:
  """Traces `steps` steps, from the third one on: compilation is over then.

  A context manager; the trace (for XProf or Perfetto) is written at the end.
  JAX's profiler writes to a local disk alone, so the files go on from there.
  """

  def __init__(self, folder: Folder, *, start: int, steps: int):
    """Args: where to, the run's first step, how many steps (0: none)."""
    self._folder = folder
    self._first = start + 2
    self._end = self._first + steps
    self._running = False

  def before(self, step: int, state) -> None:
    """Starts or ends the trace; `state` is that before `step`."""
    if self._first < self._end and step == self._first:
      jax.block_until_ready(state)
      self._local = tempfile.TemporaryDirectory()
      jax.profiler.start_trace(self._local.name)
      self._running = True
    elif self._running and step == self._end:
      jax.block_until_ready(state)
      self._stop()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._running:
      self._stop()

  def _stop(self) -> None:
    self._running = False
    with self._local as path:
      jax.profiler.stop_trace()
      local = Folder(path)
      for name in local.names():
        self._folder.write(name, local.read(name) or b"")
