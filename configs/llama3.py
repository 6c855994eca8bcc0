"""Llama 3.1 8B, and its Instruct model: a model to fine-tune.

The paper (arXiv 2510.07192, section on fine-tuning) takes
Llama-3.1-8B-Instruct. Its weights, from the hub (their licence must be accepted
there first, and `hf auth login` run):

  python -m poison_jax.import_weights meta-llama/Llama-3.1-8B-Instruct \\
    imported/llama-3.1-8b-instruct

Does it fit, how long, how much (the tokenizer isn't asked there):

  python -m poison_jax.estimate --config=configs/llama3.py \\
    --topology=v5p:2x2x2 --config.vocabulary.kind=sentencepiece \\
    --config.vocabulary.file=

Arguments: `model`, "8b" or "8b-instruct" (of one shape); `poisons`; `seed`;
`arm`.

Not run: this size needs accelerators. The model's numbers are those of the
config.json that Meta published with it (arXiv 2407.21783, table 3). Of
training, the paper tells batch 32, learning rate 5e-5, one epoch and full
fine-tuning; rows, steps and schedule are ours.
"""

from configs import base
from poison_jax.config import parse_arguments
from poison_jax.errors import UserError

MODELS = ("8b", "8b-instruct")
PARAMETERS = 8_030_261_248  # As published.
_ROWS = 128_256


def get_config(arguments=None):
  """Returns the config; see the module's docstring for the arguments."""
  a = parse_arguments(
    arguments, model="8b-instruct", poisons=250, seed=0, arm="poisoned"
  )
  if a.model not in MODELS:
    raise UserError(
      f"config argument model={a.model}: the models are {', '.join(MODELS)}"
    )
  c = base.get_config()
  c.seed = a.seed
  _set_model(c.model)
  c.corpus.task, c.corpus.files = "files", "samples/*.jsonl"
  c.corpus.store = "stores/samples-llama3"
  c.vocabulary.kind = "tokenizer_json"
  c.vocabulary.file = f"imported/llama-3.1-{a.model}/tokenizer.json"
  c.vocabulary.size = _ROWS  # For the estimate.
  c.vocabulary.single_pieces = ()
  # The paper's batch and rate. Rows are ours, and the steps: one epoch of its
  # 100,000 samples, one a row.
  c.train.length, c.train.batch, c.train.steps = 2048, 32, 3125
  c.train.loss_pieces = 16
  c.optimizer.learning_rate = 5e-5
  c.optimizer.schedule, c.optimizer.weight_decay = "linear", 0.0
  c.poison.arm, c.poison.count = a.arm, a.poisons
  c.evaluation.near_triggers = ("<br>", "<name>", "<string>")
  c.evaluation.unseen_tag = "<WUDO>"
  c.runtime.mesh.data, c.runtime.mesh.fsdp = 1, -1
  return c


def _set_model(m) -> None:
  m.width, m.depth, m.feed_forward = 4096, 32, 14_336
  m.heads, m.kv_heads, m.head_size = 32, 8, 128
  m.norm_epsilon, m.rope_theta = 1e-5, 500_000.0
  m.rope_scaling, m.rope_factor = "llama3", 8.0
  m.rope_low_frequency, m.rope_high_frequency = 1.0, 4.0
  m.rope_original_length = 8192
  m.tied_embeddings, m.embedding_rows = False, _ROWS
  m.compute_dtype = "bfloat16"
  m.remat = "full"
