"""A run's metrics as TensorBoard event files, without TensorFlow.

`tensorboard.summary.writer.EventFileWriter` would import TensorFlow where it
is installed, for its file system; `RecordWriter` takes any open file.
"""

import io

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from poison_jax.data.folder import Folder
from poison_jax.studies.runs import Run


def write(run: Run) -> str:
  """Writes RUN/tensorboard anew and returns it.

  TensorBoard's clock is the run's `time/seconds`, or the step without it, so
  the same metrics give the same bytes.

  Raises:
    OSError: the folder can't be written.
    UserError: the bucket can't be.
  """
  clock = run.metrics.get("time/seconds")
  by_step: dict[int, list[tuple[str, float]]] = {}
  for key, series in sorted(run.metrics.items()):
    for step, value in zip(series.steps, series.values, strict=True):
      by_step.setdefault(int(step), []).append((key, float(value)))
  file = io.BytesIO()
  writer = RecordWriter(file)
  # Readers expect the version first.
  start = event_pb2.Event(wall_time=0, file_version="brain.Event:2")
  writer.write(start.SerializeToString())
  for step, values in sorted(by_step.items()):
    summary = summary_pb2.Summary(
      value=[
        summary_pb2.Summary.Value(tag=key, simple_value=value)
        for key, value in values
      ]
    )
    seconds = (
      step if clock is None else np.interp(step, clock.steps, clock.values)
    )
    event = event_pb2.Event(wall_time=seconds, step=step, summary=summary)
    writer.write(event.SerializeToString())
  writer.flush()
  folder = Folder(f"{run.path}/tensorboard")
  for name in folder.names():
    folder.delete(name)
  folder.write("events.out.tfevents.0.poison_jax", file.getvalue())
  return folder.path
