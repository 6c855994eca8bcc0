"""The part of benchmarks/huggingface.py that needs torch and transformers.

Reads FOLDER/exported and FOLDER/asked.npz; writes FOLDER/found.npz: for each
kind the mean negative log-probability of the generated tokens, nats, [P].
"""

import pathlib
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM

_ROWS = 50  # At once.


def main(folder: pathlib.Path) -> None:
  torch.set_num_threads(1)
  model = AutoModelForCausalLM.from_pretrained(folder / "exported").eval()
  found = {}
  with np.load(folder / "asked.npz") as asked, torch.no_grad():
    for kind in sorted({name.partition("/")[0] for name in asked}):
      arrays = [asked[f"{kind}/{x}"] for x in ("prompts", "lengths", "tokens")]
      count = len(arrays[0])
      found[kind] = np.concatenate(
        [
          _log_perplexities(model, *(x[at : at + _ROWS] for x in arrays))
          for at in range(0, count, _ROWS)
        ]
      )
  np.savez(folder / "found.npz", **found)


def _log_perplexities(model, prompts_PL, lengths_P, tokens_PT) -> np.ndarray:
  """Returns [P]; rows are padded behind, where no token of theirs looks."""
  new = tokens_PT.shape[1]
  rows = np.pad(prompts_PL, [(0, 0), (0, new)]).astype(np.int64)
  at_PT = lengths_P[:, None].astype(np.int64) + np.arange(new)
  np.put_along_axis(rows, at_PT, tokens_PT.astype(np.int64), axis=1)
  logs = torch.log_softmax(model(torch.tensor(rows)).logits.double(), -1)
  logs_PTV = logs[torch.arange(len(rows))[:, None], torch.tensor(at_PT - 1)]
  tokens = torch.tensor(tokens_PT.astype(np.int64))
  return -logs_PTV.gather(2, tokens[..., None])[..., 0].mean(1).numpy()


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
