"""The clock books each second once and foresees the rest."""

import pytest

from poison_jax.training import clock as clock_lib


@pytest.fixture(name="advance")
def _advance(monkeypatch):
  now = [100.0]

  def advance(seconds):
    now[0] += seconds

  monkeypatch.setattr(clock_lib.time, "monotonic", lambda: now[0])
  return advance


def _clock(peak=None):
  return clock_lib.Clock(
    steps=100,
    evaluation_steps=frozenset({0, 50, 100}),
    tokens_per_step=1000,
    flops_per_token=6,
    peak_flops=peak,
  )


def test_throughput_counts_training_time_only(advance):
  clock = _clock(peak=120_000.0)
  advance(30)  # Compilation and the first step.
  clock.start_training(1)
  advance(5)
  clock.enter("evaluate")
  advance(60)
  clock.enter("train")
  advance(5)
  lap = clock.lap(11)
  assert lap["time/tokens_per_second"] == 10 * 1000 / 10
  assert lap["time/mfu"] == 10 * 1000 / 10 * 6 / 120_000
  assert lap["time/goodput"] == 10 / 100
  assert lap["time/seconds"] == 100


def test_an_unknown_device_has_no_mfu(advance):
  clock = _clock()
  clock.start_training(1)
  advance(5)
  assert "time/mfu" not in clock.lap(11)


def test_waiting_for_data_is_a_share_of_training_time(advance):
  clock = _clock()

  def items():
    for i in range(3):
      advance(1)
      yield i

  clock.start_training(0)
  for _ in clock.waiting(items()):
    advance(3)
  assert clock.lap(3)["time/data_wait"] == pytest.approx(3 / 12)


def test_a_wait_while_the_devices_have_work_does_not_count(advance):
  clock = _clock()
  done = iter([False, True, False, True])

  class Result:
    def is_ready(self):
      return next(done)

  def items():
    for i in range(3):
      advance(1)
      yield i
    advance(1)

  clock.start_training(0)
  clock.dispatched(Result())
  for _ in clock.waiting(items()):
    advance(3)
    clock.dispatched(Result())
  assert clock.lap(3)["time/data_wait"] == pytest.approx(2 / 13)


def test_the_rest_includes_the_evaluations_to_come(advance):
  clock = _clock()
  clock.enter("evaluate")
  advance(20)
  clock.enter("start")
  assert clock.remaining(0) is None
  advance(10)
  clock.start_training(1)
  advance(40)
  # 2 s a step for 79 more, and the evaluations at 50 and 100.
  assert clock.remaining(21) == 79 * 2 + 2 * 20


@pytest.mark.parametrize(
  ("seconds", "words"),
  [
    (None, "?"),
    (0.4, "0 s"),
    (59.6, "1 min 00 s"),
    (3720, "1 h 02 min"),
  ],
)
def test_times_in_words(seconds, words):
  assert clock_lib.in_words(seconds) == words
