"""Loads an exported run as any user of transformers would; for a test.

  python tests/oracles/loads.py FOLDER

Reads FOLDER/asked.json ({"texts", "tokens"}), writes FOLDER/found.npz: the
logits of the tokens, greedy continuations by `generate`, and each text's ids.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

_NEW = 12


def main(folder: pathlib.Path) -> None:
  torch.set_num_threads(1)
  asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
  path = folder / "exported"
  model = AutoModelForCausalLM.from_pretrained(path).eval()
  tokenizer = AutoTokenizer.from_pretrained(path)
  tokens = torch.tensor(asked["tokens"])
  with torch.no_grad():
    logits = model(tokens).logits
    model.generation_config.eos_token_id = None  # Ours doesn't stop either.
    greedy = model.generate(tokens, do_sample=False, max_new_tokens=_NEW)
  ids = [tokenizer(text)["input_ids"] for text in asked["texts"]]
  back = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
  np.savez(
    folder / "found.npz",
    logits=logits.numpy(),
    greedy=greedy[:, tokens.shape[1] :].numpy(),
    eos=tokenizer.eos_token_id,
    ids=np.array(json.dumps(ids)),
    back=np.array(json.dumps(back)),
  )


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
