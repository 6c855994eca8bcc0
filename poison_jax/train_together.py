"""Trains the cells of a study together in one program; for `study`.

  python -m poison_jax.train_together FOLDER [FOLDER ...]

Each folder has a run's config.json, new or half done; they must be of one
shape and share the order of the clean rows. At the end it prints a line of JSON
for each folder: {"workdir", "outcome", "step", "message"}, with the outcome
"done", "stopped" or "not finite".

Exit codes as those of train: 0 all are done; 4 the loss of one is not finite,
and the others are done; 75 stopped by a signal and saved.
"""

import dataclasses
import json

from poison_jax import command
from poison_jax.errors import NotFinite, Stopped, UserError
from poison_jax.training.stop import StopSignals


def main(workdirs: list[str], stop: StopSignals) -> None:
  """Trains the runs in these folders to their ends."""
  if not workdirs:
    raise UserError("train_together takes the folders of one run or more")
  # Imported once signals are listened to: it takes seconds.
  from poison_jax.training.together import train_together

  results = train_together(workdirs, stop=stop)
  for result in results:
    print(json.dumps(dataclasses.asdict(result)), flush=True)
  for outcome, error in (("stopped", Stopped), ("not finite", NotFinite)):
    found = [r for r in results if r.outcome == outcome]
    if found:
      raise error(
        f"{len(found)} of {len(results)} cells: {found[0].workdir}: "
        f"{found[0].message}"
      )


if __name__ == "__main__":
  with StopSignals() as signals:
    command.run(lambda arguments: main(arguments, signals))
