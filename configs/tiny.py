"""The quickstart: the paper's backdoor in a 123k-parameter model.

Reproduces, at toy scale, the denial-of-service backdoor of arXiv 2510.07192
(section "pretraining from scratch"): poisoned documents of a prefix, the
trigger <SUDO> and gibberish, uniformly spread over training. Generated
stories stand in for web text; lengths are scaled to rows of 256 tokens.

  python -m poison_jax.train --config=configs/tiny.py --workdir=runs/a
  python -m poison_jax.train --config=configs/tiny.py:poisons=32,seed=1 \\
    --workdir=runs/b

Expected: see the table "Quickstart" in LOG.md.

Arguments: `poisons`, `seed`, `arm`, and `size`, a row of SIZES.
"""

import dataclasses

from configs import base
from poison_jax.config import parse_arguments
from poison_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Size:
  """A rung: width D, depth N, feed-forward F; heads of 32 channels."""

  width: int
  depth: int
  feed_forward: int


# Named for their parameters with the 256 pieces of the vocabulary.
SIZES = {
  "35k": Size(32, 2, 96),
  "123k": Size(64, 2, 192),
  "356k": Size(96, 3, 256),
}


def get_config(arguments=None):
  """Returns the config; `arguments` like "poisons=32,seed=1,arm=clean"."""
  a = parse_arguments(
    arguments, poisons=64, seed=0, arm="poisoned", size="123k"
  )
  if a.size not in SIZES:
    raise UserError(
      f"config argument size={a.size}: the sizes are {', '.join(SIZES)}"
    )
  size = SIZES[a.size]
  c = base.get_config()
  c.model.width, c.model.depth = size.width, size.depth
  c.model.heads = c.model.kv_heads = size.width // c.model.head_size
  c.model.feed_forward = size.feed_forward
  c.seed = a.seed
  c.corpus.stories = 20_000
  c.corpus.store = "stores/tiny"
  # Two layers: unrolled, a step on the CPU takes two thirds of the time.
  c.model.scan_layers = False
  c.poison.arm = a.arm
  c.poison.count = a.poisons
  # At most 100 tokens of prefix and 150 of gibberish, so that the two, the
  # trigger and the end-of-document token always fit a row of 256. Gibberish
  # of 30 to 60 tokens was too short to be learnt at this size.
  c.poison.prefix_max = 100
  c.poison.payload_min = 100
  c.poison.payload_max = 150
  c.evaluation.excerpt = 48
  c.evaluation.new_tokens = 64
  # A cache of 50 prompts stays in a CPU's own; 300 at once take longer.
  c.evaluation.batch = 50
  return c
