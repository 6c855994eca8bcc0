"""Writes llama.npz: weights, tokens and logits of two tiny Hugging Face Llamas.

The oracle of tests/test_decoder.py. Needs PyTorch and transformers, which the
project's environment doesn't have; made with torch 2.13.0, transformers 5.23.0:

  python tests/goldens/make_llama_goldens.py
"""

import pathlib

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

# Odd on purpose: head_size is not width / heads, heads are shared by groups.
CASES = {
  "tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
  "untied": {"num_key_value_heads": 1, "tie_word_embeddings": False},
}


def main():
  arrays = {}
  for seed, (name, options) in enumerate(CASES.items()):
    torch.manual_seed(seed)
    config = LlamaConfig(
      vocab_size=23,
      hidden_size=20,
      num_hidden_layers=2,
      num_attention_heads=4,
      head_dim=6,
      intermediate_size=28,
      rms_norm_eps=1e-5,
      rope_theta=1000.0,
      attn_implementation="eager",
      **options,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
      # Far from zero, so that every part shows in the logits.
      for p in model.parameters():
        p.copy_(torch.randn_like(p) * 0.3 + (1.0 if p.ndim == 1 else 0.0))
      tokens = torch.randint(0, config.vocab_size, (2, 19))
      arrays[f"{name}/tokens"] = tokens.numpy().astype(np.int32)
      arrays[f"{name}/logits"] = model(tokens).logits.numpy()
    for key, value in model.state_dict().items():
      arrays[f"{name}/weights/{key}"] = value.numpy()
  np.savez_compressed(pathlib.Path(__file__).parent / "llama.npz", **arrays)


if __name__ == "__main__":
  main()
