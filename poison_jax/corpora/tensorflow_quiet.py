"""TensorFlow, TFDS and seqio, imported without their start-up lines.

They write to file descriptor 2 from C++ before any setting of theirs counts,
at import and at the first operation. Here the descriptor goes to a file during
both, and what was written is shown only if something failed. TensorFlow is
also kept off the accelerators, which are for JAX. Import these modules from
here, nowhere else.
"""

import contextlib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator

from absl import logging


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Holds back what the process writes to descriptor 2; shows it on error."""
  sys.stderr.flush()
  kept = os.dup(2)
  with tempfile.TemporaryFile() as lines:
    os.dup2(lines.fileno(), 2)
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    except BaseException:
      sys.stderr.flush()
      os.dup2(kept, 2)
      lines.seek(0)
      with open(os.dup(2), "wb") as stderr:
        shutil.copyfileobj(lines, stderr)
      raise
    finally:
      sys.stderr.flush()
      os.dup2(kept, 2)
      os.close(kept)


with _quiet():
  import tensorflow

  # Before anything else: the first operation takes hold of the devices.
  tensorflow.config.set_visible_devices([], "GPU")
  tensorflow.constant(0)

  import seqio
  import tensorflow_datasets

# TFDS and seqio warn of what is checked here, with an error of one line.
logging.set_verbosity(logging.ERROR)

__all__ = ["seqio", "tensorflow", "tensorflow_datasets"]


def steady(dataset: tensorflow.data.Dataset) -> tensorflow.data.Dataset:
  """Returns the data set in its fixed order, without tf.data's tuning.

  The tuning thread can block for seconds when an iterator is dropped.
  """
  options = tensorflow.data.Options()
  options.autotune.enabled = False
  options.deterministic = True
  return dataset.with_options(options)
