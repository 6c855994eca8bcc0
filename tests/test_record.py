"""What a run writes of itself when it ends early."""

import json
import types

import pytest

from poison_jax.data.folder import Folder
from poison_jax.errors import NotFinite, UserError
from poison_jax.training.metrics import part_names
from poison_jax.training.record import Record


def _record(folder):
  quiet = types.SimpleNamespace(
    lap=lambda step: {},
    remaining=lambda step: None,
    show=lambda *_, **__: None,
    poisons_before=lambda step: 0,
  )
  return Record(folder.path, quiet, resume_at=None, clock=quiet, progress=quiet)


@pytest.mark.parametrize(
  ("error", "kept"), [(NotFinite, [1, 2]), (UserError, [1])]
)
def test_in_a_bucket_the_lines_before_a_loss_not_finite_are_kept(
  tmp_path, error, kept
):
  """Any other end leaves what the checkpoints cover: the rest comes again."""
  folder = Folder(f"memory://{tmp_path.name}/run")
  with pytest.raises(error), _record(folder) as record:
    for step in (1, 2):
      record.hold(step, {"train/loss": 1.0})
      record.write()
      if step == 1:
        record.sync()
    raise error("at step 3")
  lines = [
    json.loads(line)
    for name in part_names(folder, "metrics.jsonl")
    for line in folder.read(name).splitlines()
  ]
  assert [line["step"] for line in lines] == kept
