"""SIGTERM and SIGINT: finish the step, save, exit 75."""

import signal
import types


class StopSignals:
  """Remembers the first SIGTERM or SIGINT instead of dying of it.

  A context manager; the handlers of before come back at its end. A second
  SIGINT (an impatient Ctrl-C) interrupts at once, nothing saved.
  """

  def __init__(self):
    self.received: signal.Signals | None = None
    self._before = {}

  def __enter__(self):
    for number in (signal.SIGTERM, signal.SIGINT):
      self._before[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  @property
  def name(self) -> str:
    """The signal's; where another process had it, of what it became here."""
    return (self.received or signal.SIGTERM).name

  def pass_on(self) -> None:
    """From now on another handler has SIGTERM; SIGINT comes to it as that."""

    def handle(*_) -> None:
      signal.signal(signal.SIGINT, self._before[signal.SIGINT])
      signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGINT, handle)

  def _handle(self, number: int, _: types.FrameType | None) -> None:
    if self.received is not None and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.received = signal.Signals(number)
