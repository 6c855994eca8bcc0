"""A stand-in for training, and dispatchers in processes of their own.

  python tests/stand_in.py train FOLDER CELL
  python tests/stand_in.py dispatch FOLDER SLOTS STUDY

FOLDER is a local one, that of the study where it is on the disk. Its file
`acts/CELL` says what each successive start of a cell does, a line each, the
last one again and again; "0" where it says nothing:

  0              a step more, and done
  75             a step more, saved
  75 no step     saved, without a step more
  wait           waits for SIGTERM; then a step more, saved
  kill SIGNAL    dies of it
  crash WORDS    a mistake of ours: the words are its traceback's last line
  CODE MESSAGE   an error

All that happens is in `events`, a line each: CELL begins, or CELL and its end.
"""

import json
import os
import pathlib
import signal
import sys
import time

_LONGEST = 300  # Seconds that the stand-in waits at most.


def act(study: pathlib.Path, cell: str, *acts: str) -> None:
  """Says what the successive starts of a cell do."""
  (study / "acts").mkdir(exist_ok=True)
  (study / "acts" / cell).write_text("\n".join(acts))


def events(study: pathlib.Path) -> list[tuple[str, str]]:
  """Returns what happened: (cell, event)."""
  try:
    lines = (study / "events").read_text().splitlines()
  except FileNotFoundError:
    return []
  return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def _tell(study: pathlib.Path, cell: str, event: str) -> None:
  # One write: lines of several processes don't mix.
  with open(study / "events", "ab", buffering=0) as file:
    file.write(f"{cell} {event}\n".encode())


def _train(study: pathlib.Path, cell: str) -> int:
  signalled = []
  signal.signal(signal.SIGTERM, lambda *_: signalled.append(1))
  before = events(study).count((cell, "begins"))
  _tell(study, cell, "begins")
  try:
    acts = (study / "acts" / cell).read_text().splitlines()
  except FileNotFoundError:
    acts = ["0"]
  word, _, rest = acts[min(before, len(acts) - 1)].partition(" ")
  if word == "kill":
    os.kill(os.getpid(), signal.Signals[rest])
  if word == "wait":
    deadline = time.monotonic() + _LONGEST
    while not signalled and time.monotonic() < deadline:
      time.sleep(0.01)
    word = "75"
  if word in ("0", "75") and not rest:
    run = study / "cells" / cell
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "metrics.jsonl", "a") as file:
      file.write(json.dumps({"step": before + 1, "time/seconds": 1.0}) + "\n")
  elif word == "crash":
    word = "1"
    print(rest, flush=True)
  elif rest:
    print(f"error: {rest}", flush=True)
  _tell(study, cell, f"ends {word}")
  return int(word)


class StandIn:
  """A back end of stand-ins."""

  when_stopped = ""

  def __init__(self, slots: int, folder: str | None = None):
    """Args: how many at once; FOLDER, the study's own by default."""
    self.slots, self._folder = slots, folder

  def check(self, plan) -> None:
    pass

  def start(self, plan, cell, slot):
    from poison_jax.studies.grid.backends import Start

    own = (sys.executable, "-SEI", os.path.abspath(__file__))
    return Start(
      (*own, "train", self._folder or plan.workdir, cell.hash), {}, ()
    )


def _dispatch(folder: pathlib.Path, slots: int, study: str) -> int:
  sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
  from poison_jax.errors import PoisonJaxError
  from poison_jax.studies.grid import dispatch
  from poison_jax.studies.grid import plan as plan_lib
  from poison_jax.training.stop import StopSignals

  dispatch._LOOKED_EVERY = 0.01
  with StopSignals() as stop:
    (folder / f"ready-{os.getpid()}").touch()
    while not (folder / "go").exists():
      time.sleep(0.01)
    try:
      dispatch.run(
        plan_lib.read(study),
        StandIn(slots, str(folder)),
        logs=str(folder / "logs"),
        retry=False,
        mix=False,
        stop=stop,
        show=lambda *_: None,
      )
    except PoisonJaxError as error:
      print(error)
      return error.code
  return 0


if __name__ == "__main__":
  role, folder, argument, *rest = sys.argv[1:]
  if role == "train":
    sys.exit(_train(pathlib.Path(folder), argument))
  sys.exit(_dispatch(pathlib.Path(folder), int(argument), *rest))
