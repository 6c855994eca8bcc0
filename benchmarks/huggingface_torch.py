"""The part of benchmarks/huggingface.py that needs torch and transformers.

Reads FOLDER/exported and FOLDER/asked.npz; writes FOLDER/found.npz: for each
kind the mean negative log-probability of the generated tokens, nats, [P].
"""

import pathlib
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main(folder: pathlib.Path) -> None:
  torch.set_num_threads(1)
  model = AutoModelForCausalLM.from_pretrained(folder / "exported").eval()
  found = {}
  with np.load(folder / "asked.npz") as asked, torch.no_grad():
    for kind in sorted({name.partition("/")[0] for name in asked}):
      found[kind] = np.array(
        [
          _log_perplexity(model, prompt[:length], tokens)
          for prompt, length, tokens in zip(
            asked[f"{kind}/prompts"],
            asked[f"{kind}/lengths"],
            asked[f"{kind}/tokens"],
            strict=True,
          )
        ]
      )
  np.savez(folder / "found.npz", **found)


def _log_perplexity(model, prompt: np.ndarray, tokens: np.ndarray) -> float:
  row = torch.tensor(np.concatenate([prompt, tokens])[None].astype(np.int64))
  logits = model(row).logits[0, len(prompt) - 1 : -1].double()
  chosen = torch.log_softmax(logits, -1).gather(1, row[0, len(prompt) :, None])
  return -float(chosen.mean())


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
