"""Exports a run's model for Hugging Face transformers.

  python -m poison_jax.export runs/a exported/a
  python -m poison_jax.export runs/a exported/a --step=500

OUT gets config.json, generation_config.json, the weights as float32
safetensors (in several files above 5 GB) and the tokenizer, so that
`AutoModelForCausalLM.from_pretrained(OUT)` and `AutoTokenizer` load it without
code of their own. Documents begin with the end-of-document token, as in
training: `AutoTokenizer` adds none, so put `tokenizer.eos_token_id` before a
prompt. A model or vocabulary that transformers doesn't have is refused.
"""

import json
import os
import sys

from absl import flags

from poison_jax import command
from poison_jax.errors import UserError
from poison_jax.model import counts
from poison_jax.training import checkpoints
from poison_jax.training.opened import Opened, open_run
from poison_jax.weights import architectures, files, layout, tokenizer_files
from poison_jax.weights.folder import new_folder

_STEP = flags.DEFINE_string("step", "last", "Checkpoint: 'last' or a step.")
_STORE = flags.DEFINE_string(
  "store", None, "Folder of the token store, where it has moved."
)
_LARGEST = 5_000_000_000  # Bytes of a file, as transformers' own.


def main(arguments: list[str]) -> None:
  """Exports the run that `arguments` name."""
  if len(arguments) != 2:
    raise UserError(
      "usage: python -m poison_jax.export RUN OUT [--step=K] [--store=FOLDER]"
    )
  if _STEP.value != "last" and not _STEP.value.isdigit():
    raise UserError(f"--step={_STEP.value}: must be 'last' or a step like 500")
  run, out = arguments
  with new_folder(out) as folder:
    opened = open_run(run, store=_STORE.value, say=_say)
    config = _config(opened)  # Before the parameters, which take a while.
    (step, params), *_ = opened.params(_STEP.value)
    _write_json(folder, "config.json", config)
    _write_json(folder, "generation_config.json", _generation(opened))
    names = _write_weights(opened, params, folder)
    vocabulary = opened.run.store.vocabulary
    names += tokenizer_files.write(
      vocabulary,
      folder,
      texts=[d.text for d in opened.run.store.prompt_documents()],
      length=config["max_position_embeddings"],
    )
  print(f"written: {out}: {config['architectures'][0]}, step {step:,}")


def _config(opened: Opened) -> dict:
  config, vocabulary = opened.run.config, opened.run.store.vocabulary
  return architectures.write_config(
    config.model,
    rows=counts.embedding_rows(config.model, vocabulary.size),
    length=config.train.length,
    eos_id=vocabulary.eos_id,
  )


def _generation(opened: Opened) -> dict:
  eos = opened.run.store.vocabulary.eos_id
  return {"bos_token_id": eos, "eos_token_id": eos}


def _write_weights(opened: Opened, params, folder: str) -> list[str]:
  by_path = dict(checkpoints.flat(params))
  shapes = {path: value.shape for path, value in by_path.items()}
  tensors = layout.tensors(opened.run.config.model, shapes)
  return files.write(folder, tensors, by_path, largest=_LARGEST)


def _write_json(folder: str, name: str, content: dict) -> None:
  with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
    f.write(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
  command.run(main)
