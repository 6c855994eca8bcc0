"""A stand-in for training, and dispatchers in processes of their own.

  python tests/stand_in.py train FOLDER CELL
  python tests/stand_in.py together FOLDER CELLS... of cells/HASH
  python tests/stand_in.py dispatch FOLDER SLOTS STUDY

FOLDER is a local one, that of the study where it is on the disk. Its file
`acts/CELL` says what each successive start of a cell does, a line each, the
last one again and again; "0" where it says nothing:

  0              a step more, and done
  75             a step more, saved
  75 no step     saved, without a step more
  wait           waits for SIGTERM; then a step more, saved
  rise 8 9       evaluations with these increases in nats; then as "wait"
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


def evaluate(run: pathlib.Path, *nats: float, success: bool = False) -> None:
  """Adds evaluations at the steps 9, 10, ..., all poisons seen before."""
  run.mkdir(parents=True, exist_ok=True)
  with open(run / "metrics.jsonl", "a") as file:
    for step, value in enumerate(nats, 9):
      line = {
        "step": step,
        "poisons_seen": 100,
        "eval/log_perplexity_increase": value,
        "eval/perplexity_increase": 1000.0 if success else 1.0,
      }
      file.write(json.dumps(line) + "\n")


def _train_together(study: pathlib.Path, paths: list[str]) -> int:
  """Does what each cell's own process would, one after another."""
  codes = []
  lines = []
  for path in paths:
    cell = path.rpartition("/")[2]
    codes.append(_train(study, cell))
    outcome = {0: "done", 75: "stopped", 4: "not finite"}.get(codes[-1])
    if outcome is None:  # The others stop in the middle.
      if codes[-1] != 2:  # Which has told it.
        print(f"error: {path}: it ends", flush=True)
      return codes[-1]
    lines.append({"workdir": path, "outcome": outcome, "step": 1})
  for line in lines:
    print(json.dumps({**line, "message": f"{line['outcome']} here"}))
  print("error: some are not done")
  return max(codes)


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
  if word == "rise":
    evaluate(study / "cells" / cell, *map(float, rest.split()))
    word, rest = "wait", ""
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

  def start(self, plan, cells, slot):
    from poison_jax.studies.grid.backends import Start

    own = (sys.executable, "-SEI", os.path.abspath(__file__))
    folder = self._folder or plan.workdir
    if len(cells) == 1:
      return Start((*own, "train", folder, cells[0].hash), {}, ())
    return Start((*own, "together", folder, *map(plan.path, cells)), {}, ())

  def end(self, plan, cell):
    return ()


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
        choices=dispatch.Choices(),
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
  if role == "together":
    sys.exit(_train_together(pathlib.Path(folder), [argument, *rest]))
  sys.exit(_dispatch(pathlib.Path(folder), int(argument), *rest))
