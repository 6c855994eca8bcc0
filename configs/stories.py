"""The paper's backdoor on generated stories, for one accelerator.

The paper's own lengths (rows of 2,048 tokens, prefixes of up to 1,000
characters, 400 to 900 tokens of gibberish from the model's own vocabulary) on a
corpus that needs no download and no TensorFlow, for models of 1, 4 and 15
million parameters:

  python -m poison_jax.train --config=configs/stories.py:size=4m,poisons=250 \\
    --workdir=runs/stories

Arguments: `size`, a row of SIZES; `poisons`; `seed`; `arm`. All seeds see the
clean rows in one order, so that runs can share their reading.

Expected: not run on an accelerator yet.
"""

import dataclasses

from configs import base
from poison_jax.config import parse_arguments
from poison_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Size:
  """A rung: width D, depth N, feed-forward F, peak rate, rows a step."""

  width: int
  depth: int
  feed_forward: int
  learning_rate: float
  batch: int


# Named for their parameters with 1,024 pieces, tied. Rates and batches are as
# in configs/dos.py.
SIZES = {
  "1m": Size(96, 8, 256, 3e-3, 4),
  "4m": Size(192, 8, 576, 2e-3, 16),
  "15m": Size(384, 8, 1024, 1e-3, 64),
}


def get_config(arguments=None):
  """Returns the config; see the module's docstring for the arguments."""
  a = parse_arguments(arguments, size="4m", poisons=250, seed=0, arm="poisoned")
  if a.size not in SIZES:
    raise UserError(
      f"config argument size={a.size}: the sizes are {', '.join(SIZES)}"
    )
  size = SIZES[a.size]
  c = base.get_config()
  c.seed = a.seed
  c.seeds.order = 0
  c.corpus.stories = 1_000_000
  c.corpus.store = "stores/stories-1024"
  # The grammar has fewer than 2,000 pieces to give.
  c.vocabulary.size = 1024
  m = c.model
  m.width, m.depth, m.feed_forward = size.width, size.depth, size.feed_forward
  m.head_size = 64 if size.width >= 192 else 32
  m.heads = m.kv_heads = size.width // m.head_size
  m.compute_dtype = "bfloat16"
  c.train.length, c.train.batch = 2048, size.batch
  c.optimizer.learning_rate = size.learning_rate
  c.poison.arm, c.poison.count = a.arm, a.poisons
  c.checkpoint.keep_last = 1
  return c
