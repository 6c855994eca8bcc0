"""Writes huggingface/: small random models of transformers, and what they say.

The oracle of tests/test_weights.py: for each case a model's own folder
(config.json, safetensors, float32) and oracle.npz with tokens, logits and
greedy continuations. Needs PyTorch, which the project's environment doesn't
have; made with Python 3.11, torch 2.13.0, transformers 5.23.0, safetensors
0.8.0 and numpy 2.4.6, in an environment of its own:

  python3.11 -m venv build/transformers
  build/transformers/bin/pip install torch==2.13.0 transformers==5.23.0 \\
    safetensors==0.8.0 numpy==2.4.6 tokenizers sentencepiece
  build/transformers/bin/python tests/oracles/huggingface.py
"""

import pathlib

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

_HERE = pathlib.Path(__file__).parent / "huggingface"
_GENERATED = 12

# Odd on purpose: vocabularies that nothing divides, heads times their size
# that are not the width (where an architecture allows it), shared heads.
_SHARED = {
  "vocab_size": 37,
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 28,
  "max_position_embeddings": 64,
  "bos_token_id": 0,
  "eos_token_id": 0,
}
_NEOX = {
  **_SHARED,
  "model_type": "gpt_neox",
  "hidden_size": 48,
  "num_attention_heads": 3,
  "rotary_emb_base": 1000,
}
_LLAMA3 = {
  "rope_type": "llama3",
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
}
CASES = {
  "neox_parallel": {**_NEOX, "rotary_pct": 0.25},
  "neox_serial": {
    **_NEOX,
    "rotary_pct": 1.0,
    "use_parallel_residual": False,
    "tie_word_embeddings": True,
  },
  "llama3": {
    **_SHARED,
    "model_type": "llama",
    "num_key_value_heads": 2,
    "head_dim": 10,
    "rope_theta": 500.0,
    "rope_scaling": _LLAMA3,
  },
  "llama_tied": {
    **_SHARED,
    "model_type": "llama",
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
  },
  "llama_biases": {
    **_SHARED,
    "model_type": "llama",
    "attention_bias": True,
    "mlp_bias": True,
  },
  "qwen3": {
    **_SHARED,
    "model_type": "qwen3",
    "num_key_value_heads": 2,
    "head_dim": 6,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-6,
  },
}
# In several files, with an index.
_SHARDED = {"llama3"}


def main():
  for seed, (name, options) in enumerate(CASES.items()):
    torch.manual_seed(seed + 4)
    options = dict(options)
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
      # Far from zero, so that every part shows in the logits.
      for path, p in model.named_parameters():
        is_scale = p.ndim == 1 and not path.endswith("bias")
        p.copy_(torch.randn_like(p) * 0.3 + (1.0 if is_scale else 0.0))
      # Longer than the rows that llama3's waves are stretched from.
      tokens = torch.randint(0, config.vocab_size, (2, 41))
      logits = model(tokens).logits
      # Without a cache and by hand: no rule of `generate` can step in.
      continued = tokens[:, :9]
      for _ in range(_GENERATED):
        last = model(continued).logits[:, -1]
        continued = torch.cat([continued, last.argmax(-1)[:, None]], dim=1)
    folder = _HERE / name
    size = "20KB" if name in _SHARDED else "5GB"
    model.save_pretrained(folder, max_shard_size=size)
    np.savez_compressed(
      folder / "oracle.npz",
      tokens=tokens.numpy().astype(np.int32),
      logits=logits.numpy(),
      greedy=continued[:, 9:].numpy().astype(np.int32),
    )
    print(name, config.architectures, continued[:, 9:].tolist())


if __name__ == "__main__":
  main()
