"""Pythia: GPT-NeoX models of 70M to 12B, trained alike on the Pile.

The models and the training of arXiv 2304.01373, from which the paper (arXiv
2510.07192, its section on continued pretraining) takes Pythia-6.9B-deduped at
step 71,000. Its weights, from the hub:

  python -m poison_jax.import_weights EleutherAI/pythia-6.9b-deduped \\
    imported/pythia-6.9b-deduped --revision=step71000

Does it fit, how long, how much (the tokenizer isn't asked there):

  python -m poison_jax.estimate --config=configs/pythia.py:size=6.9b \\
    --topology=v5p:4x4x4 --config.vocabulary.kind=sentencepiece \\
    --config.vocabulary.file=

Arguments: `size`, a row of SIZES; `poisons`; `seed`; `arm`. The Pile lies in
JSONL files of yours: --config.corpus.files='pile/*.jsonl.zst'.

Not run: these sizes need accelerators. The numbers of a model are those of its
config.json on the hub; those of training are of `pythia-6.9b-deduped.yml` in
github.com/EleutherAI/pythia, the learning rates of the paper's table.
"""

import dataclasses

from configs import base
from poison_jax.config import parse_arguments
from poison_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Size:
  """A model.

  Attributes:
    width: D.
    depth: N.
    heads: H, of width / heads channels.
    rows: of the embedding; the tokenizer has fewer ids.
    learning_rate: peak.
    parameters: as published.
  """

  width: int
  depth: int
  heads: int
  rows: int
  learning_rate: float
  parameters: int


SIZES = {
  #              D   N   H    rows    rate      parameters
  "70m": Size(512, 6, 8, 50_304, 1e-3, 70_426_624),
  "160m": Size(768, 12, 12, 50_304, 6e-4, 162_322_944),
  "410m": Size(1024, 24, 16, 50_304, 3e-4, 405_334_016),
  "1b": Size(2048, 16, 8, 50_304, 3e-4, 1_011_781_632),
  "1.4b": Size(2048, 24, 16, 50_304, 2e-4, 1_414_647_808),
  "2.8b": Size(2560, 32, 32, 50_304, 1.6e-4, 2_775_208_960),
  "6.9b": Size(4096, 32, 32, 50_432, 1.2e-4, 6_857_302_016),
  "12b": Size(5120, 36, 40, 50_688, 1.2e-4, 11_846_072_320),
}


def get_config(arguments=None):
  """Returns the config; see the module's docstring for the arguments."""
  a = parse_arguments(
    arguments, size="6.9b", poisons=250, seed=0, arm="poisoned"
  )
  if a.size not in SIZES:
    raise UserError(
      f"config argument size={a.size}: the sizes are {', '.join(SIZES)}"
    )
  size = SIZES[a.size]
  c = base.get_config()
  c.seed = a.seed
  _set_model(c.model, size)
  c.corpus.task, c.corpus.files = "files", "pile/*.jsonl.zst"
  c.corpus.store = "stores/pile-neox"
  c.vocabulary.kind = "tokenizer_json"
  c.vocabulary.file = f"imported/pythia-{a.size}-deduped/tokenizer.json"
  c.vocabulary.size = size.rows  # For the estimate.
  c.vocabulary.single_pieces = ()
  c.train.length, c.train.batch, c.train.steps = 2048, 1024, 143_000
  c.train.loss_pieces = 16  # Ours: logits are the largest arrays.
  o = c.optimizer
  o.learning_rate, o.schedule = size.learning_rate, "cosine"
  o.warmup, o.final = 0.01, 0.1
  o.b1, o.b2, o.epsilon = 0.9, 0.95, 1e-8
  o.weight_decay, o.clip = 0.1, 1.0
  c.poison.arm, c.poison.count = a.arm, a.poisons
  c.evaluation.near_triggers = ("<br>", "<name>", "<string>")
  c.evaluation.unseen_tag = "<WUDO>"
  if size.parameters > 500e6:
    c.runtime.mesh.data, c.runtime.mesh.fsdp = 1, -1
  return c


def _set_model(m, size: Size) -> None:
  m.width, m.depth = size.width, size.depth
  m.heads = m.kv_heads = size.heads
  m.head_size = size.width // size.heads
  m.feed_forward = 4 * size.width
  m.activation = "gelu_exact"
  m.parallel_residual = m.biases = True
  m.norm, m.norm_epsilon = "layer", 1e-5
  m.rope_theta, m.rotary_share = 10_000.0, 0.25
  m.tied_embeddings, m.embedding_rows = False, size.rows
  m.compute_dtype = "bfloat16"  # Ours; Pythia's was float16.
  m.remat = "full"
