"""What benchmarks/gpu.py tries at each size. No JAX."""

import dataclasses

from configs import dos
from poison_jax import config as config_lib
from poison_jax.config import Config


@dataclasses.dataclass(frozen=True)
class Ours:
  """A way to compute our step: what may differ without being another run.

  Attributes:
    rows: rows of 2,048 tokens computed at once.
    remat: `model.remat`.
    scan: `model.scan_layers`.
    in_pieces: whether `train.loss_pieces` stays the config's; else 1.
    attention: `runtime.attention`.
    micro_batches: `train.micro_batches`; a step has so many times `rows`.
  """

  rows: int
  remat: str = "none"
  scan: bool = True
  in_pieces: bool = False
  attention: str = "auto"
  micro_batches: int = 1

  def __str__(self) -> str:
    parts = [f"{self.rows} rows", f"remat {self.remat}"]
    parts += [] if self.scan else ["unrolled"]
    parts += ["loss in pieces"] if self.in_pieces else []
    parts += [] if self.attention == "auto" else [self.attention]
    if self.micro_batches > 1:
      parts.append(f"{self.micro_batches} micro-batches")
    return ", ".join(parts)

  def flags(self, batch: int) -> str:
    """Returns what makes a run of `batch` rows, on one device, compute so."""
    said = [
      f"train.micro_batches={batch // self.rows}",
      f"model.remat={self.remat}",
      f"model.scan_layers={self.scan}",
    ]
    said += [] if self.in_pieces else ["train.loss_pieces=1"]
    if self.attention != "auto":
      said.append(f"runtime.attention={self.attention}")
    return " ".join(f"--config.{one}" for one in said)


@dataclasses.dataclass(frozen=True)
class Theirs:
  """A way to compute PyTorch's step.

  Attributes:
    rows: as ours.
    attention: the kernel of `scaled_dot_product_attention`: "cudnn" or
      "flash", both flash attention.
    checkpointed: whether each layer is computed again for its gradient.
  """

  rows: int
  attention: str = "cudnn"
  checkpointed: bool = False

  def __str__(self) -> str:
    again = ", layers checkpointed" if self.checkpointed else ""
    return f"{self.rows} rows, {self.attention} attention{again}"


# The one table of what is tried, the most promising first: with little time
# the last ones go untried. Reckoned for 141 GB: about 54 bytes a token, layer
# and channel without remat (the lowered step's; half where XLA computes norms
# again), 12 a parameter of state, 4 of gradient, 10 a token and piece of
# vocabulary; the last of each is for an H100's 80 GB. What runs out of memory
# is named and passed over.
OURS = {
  "1m": (Ours(2), Ours(2, in_pieces=True)),
  "150m": (Ours(32), Ours(32, scan=False), Ours(16)),
  "300m": (Ours(32), Ours(32, scan=False), Ours(16)),
  "600m": (Ours(16), Ours(16, scan=False), Ours(32, scan=False), Ours(8)),
  "2b": (Ours(8), Ours(8, scan=False), Ours(16, remat="full"), Ours(2)),
}
THEIRS = {
  "1m": (Theirs(2, "flash"), Theirs(2, "flash", checkpointed=True)),
  "150m": (Theirs(32), Theirs(32, "flash"), Theirs(16)),
  "300m": (Theirs(32), Theirs(32, "flash"), Theirs(16)),
  "600m": (Theirs(16), Theirs(16, "flash"), Theirs(32), Theirs(8)),
  "2b": (
    Theirs(8),
    Theirs(8, "flash"),
    Theirs(16, checkpointed=True),
    Theirs(2),
  ),
}
# Tried where none of ours ran, so that a kernel that fails isn't all we learn.
PLAIN = Ours(4, remat="full", in_pieces=True, attention="xla")
# Micro-batches of the step that is timed beside: a run's batch is too long to
# wait for (1,024 rows), its form is this.
ACCUMULATED = 8


def vocabulary(size: str) -> int:
  """Returns V, the rung's."""
  return dos.SIZES[size].vocabulary


def make_run(size: str) -> Config:
  """Returns the rung's own configuration, that of the run itself."""
  return config_lib.from_config_dict(dos.get_config(f"size={size}"))


def torch_shape(size: str, *, length: int) -> dict[str, int]:
  """Returns the arguments of `train_step_torch.Model` for a rung."""
  m = make_run(size).model
  return {
    "vocabulary": vocabulary(size),
    "width": m.width,
    "depth": m.depth,
    "heads": m.heads,
    "size": m.head_size,
    "hidden": m.feed_forward,
    "length": length,
  }


def make_config(
  size: str, ours: Ours, *, length: int, folder: str, trial: bool
) -> Config:
  """Returns the rung's configuration with one step computed `ours`.

  Args:
    size: a row of `configs.dos.SIZES`.
    ours: how.
    length: L; anything but 2,048 is a trial.
    folder: where the token store of stories is, which evaluation reads.
    trial: a few prompts instead of the paper's 300.
  """
  c = dos.get_config(f"size={size}")
  c.corpus.task, c.corpus.store = "stories", f"{folder}/stories"
  c.corpus.stories, c.corpus.workers = 30_000, 1
  c.vocabulary.kind = "bytes"
  c.train.length = length
  c.train.batch = ours.rows * ours.micro_batches
  c.train.micro_batches = ours.micro_batches
  if not ours.in_pieces:
    c.train.loss_pieces = 1
  c.model.remat, c.model.scan_layers = ours.remat, ours.scan
  c.runtime.attention = ours.attention
  if trial:
    c.evaluation.prompts, c.evaluation.new_tokens = 4, 8
    c.evaluation.validation_rows = 4
  return config_lib.from_config_dict(c)
