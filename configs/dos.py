"""The paper's ladder: 600M to 13B, and smaller rungs for one device.

Reproduces the denial-of-service backdoor of arXiv 2510.07192 (section
"pretraining from scratch") at the paper's four sizes:

  python -m poison_jax.train --workdir=runs/2b \\
    --config=configs/dos.py:size=2b,poisons=250,tokens=2x,seed=1

Arguments: `size`, a row of SIZES; `poisons`; `tokens`, a multiple of 20 tokens
a parameter (the paper's 0.5x, 1x, 2x); `seed`; `arm`; `gibberish`, "ids" of
the model's own vocabulary or "retokenised" text of another one (give
poison.gibberish_vocabulary); `corpus`, "c4" (c4/en through TFDS) or "files"
(FineWeb's Parquet, say: give corpus.files).

What the paper tells: the sizes, 20 tokens a parameter, 100, 250 or 500
documents and their lengths. All else is ours; where it is from stands beside.
"""

import dataclasses

from configs import base
from poison_jax.config import parse_arguments
from poison_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Size:
  """A rung of the ladder.

  Attributes:
    width: D.
    depth: N.
    vocabulary: pieces.
    learning_rate: peak.
    batch: rows of 2,048 tokens a step.
    parameters: of the model that these make, as counted on it.
  """

  width: int
  depth: int
  vocabulary: int
  learning_rate: float
  batch: int
  parameters: int

  @property
  def head_size(self) -> int:
    """Channels a head: 128 as Llama's, fewer where the width is small."""
    return 128 if self.width >= 768 else 64 if self.width >= 192 else 32

  @property
  def feed_forward(self) -> int:
    """Llama's rule: 8/3 of the width, rounded up (arXiv 2302.13971)."""
    multiple = 256 if self.width >= 512 else 64
    return -(-8 * self.width // (3 * multiple)) * multiple

  @property
  def tied(self) -> bool:
    """One matrix for input and output where two would be most of the model."""
    return self.parameters < 100e6


# Widths and depths: Llama 2's at 13B (arXiv 2307.09288), at 7B with one layer
# more, which makes it 6.9B instead of 6.7B; the others keep the shape's rules,
# within 3 % of their names. Learning rates: GPT-3's for the nearest size (arXiv
# 2005.14165, table 2.1); Pythia's 1e-3 below 100M (arXiv 2304.01373, table 1),
# and for the two smallest ours. Batch: Pythia's 2M tokens for all of the
# paper's sizes; less below, so that a run has at least 2,000 steps.
SIZES = {
  #          D   N      V    rate  batch      parameters
  "1m": Size(96, 7, 2_048, 3e-3, 4, 972_192),
  "4m": Size(192, 8, 2_048, 2e-3, 16, 3_935_424),
  "15m": Size(256, 8, 32_000, 1e-3, 64, 14_618_880),
  "60m": Size(512, 13, 32_000, 1e-3, 256, 60_700_160),
  "150m": Size(768, 14, 32_000, 6e-4, 256, 148_264_704),
  "300m": Size(1024, 18, 32_000, 3e-4, 512, 296_784_896),
  "600m": Size(1536, 18, 32_000, 2.5e-4, 1024, 607_968_768),
  "2b": Size(2560, 23, 32_000, 1.6e-4, 1024, 1_987_827_200),
  "7b": Size(4096, 33, 32_000, 1.2e-4, 1024, 6_940_798_976),
  "13b": Size(5120, 40, 32_000, 1e-4, 1024, 13_015_864_320),
}


def get_config(arguments=None):
  """Returns the config; see the module's docstring for the arguments."""
  a = parse_arguments(
    arguments,
    size="600m",
    poisons=250,
    tokens="1x",
    seed=0,
    arm="poisoned",
    gibberish="ids",
    corpus="c4",
  )
  if a.size not in SIZES:
    raise UserError(
      f"config argument size={a.size}: the sizes are {', '.join(SIZES)}"
    )
  size = SIZES[a.size]
  c = base.get_config()
  c.seed = a.seed
  _set_corpus(c, a.corpus, size)
  _set_model(c, size)
  c.train.tokens_per_parameter = 20 * _multiple(a.tokens)
  # A retokenised poison is longer than 2,048 tokens in 20 to 60 % of cases.
  times = 2 if a.gibberish == "retokenised" else 1
  c.train.length = 2048 * times
  c.train.batch = size.batch // times
  c.train.loss_pieces = 16  # Logits are the largest arrays.
  c.optimizer.learning_rate = size.learning_rate
  c.poison.arm = a.arm
  c.poison.count = a.poisons
  c.poison.gibberish = a.gibberish
  c.evaluation.times = 20
  return c


def _set_model(c, size: Size) -> None:
  m = c.model
  m.width, m.depth = size.width, size.depth
  m.heads = m.kv_heads = size.width // size.head_size
  m.head_size, m.feed_forward = size.head_size, size.feed_forward
  m.tied_embeddings = size.tied
  m.compute_dtype = "bfloat16"
  # What to keep of the forward pass is the device's matter, not the run's:
  # "full" fits anywhere, and `estimate` tells what else would.
  m.remat = "full" if size.parameters > 500e6 else "none"
  if size.parameters > 500e6:
    c.runtime.mesh.data, c.runtime.mesh.fsdp = 1, -1


def _set_corpus(c, corpus: str, size: Size) -> None:
  tasks = {"c4": "tfds", "files": "files"}
  if corpus not in tasks:
    raise UserError(
      f"config argument corpus={corpus}: must be {' or '.join(tasks)}"
    )
  c.corpus.task = tasks[corpus]
  # One store for all sizes with this vocabulary.
  c.corpus.store = f"stores/{corpus}-{size.vocabulary}"
  # SentencePiece unigram, trained on the corpus and kept with the store, so
  # that nothing need be fetched; 32,000 pieces as Llama's (arXiv 2302.13971).
  c.vocabulary.size = size.vocabulary
  c.vocabulary.algorithm = "unigram"
  c.vocabulary.training_documents = 200_000
  # The trigger is text like any other, as in the paper.
  c.vocabulary.single_pieces = ()
  # Of the trigger's form, and found in web text; the summary before training
  # says how often. Ours.
  c.evaluation.near_triggers = ("<br>", "<name>", "<string>")
  c.evaluation.unseen_tag = "<WUDO>"


def _multiple(text: str) -> float:
  """Returns 2.0 for "2x"."""
  try:
    value = float(text.removesuffix("x"))
  except ValueError:
    value = 0.0
  if value <= 0 or not text.endswith("x"):
    raise UserError(
      f"config argument tokens={text}: must be a multiple of 20 tokens a "
      "parameter, like 0.5x, 1x or 2x"
    )
  return value
