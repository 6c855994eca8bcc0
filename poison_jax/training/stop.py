"""SIGTERM and SIGINT: finish the step, save, exit 75."""

import signal
import types


class StopSignals:
  """Remembers the first SIGTERM or SIGINT instead of dying of it.

  A context manager, which may be entered again inside; the handlers of before
  come back at the outer end. A second SIGINT (an impatient Ctrl-C) interrupts
  at once, nothing saved.
  """

  def __init__(self):
    self.received: signal.Signals | None = None
    self._passed_on = signal.SIGTERM
    self._entered = 0
    self._before = {}

  def __enter__(self):
    self._entered += 1
    if self._entered == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_):
    self._entered -= 1
    if self._entered == 0:
      for number, handler in self._before.items():
        signal.signal(number, handler)

  @property
  def name(self) -> str:
    """The signal's; SIGTERM where another process may have had it."""
    return (self.received or self._passed_on).name

  def pass_on(self) -> None:
    """From now on another handler has SIGTERM; SIGINT comes to it as that."""

    def handle(*_) -> None:
      self._passed_on = signal.SIGINT
      signal.signal(signal.SIGINT, self._before[signal.SIGINT])
      signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGINT, handle)

  def _handle(self, number: int, _: types.FrameType | None) -> None:
    if self.received is not None and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.received = signal.Signals(number)
