"""PyTorch's side of train_step.py: the same model, batch, dtype and optimizer.

Runs in an environment of its own (see train_step.sh). Answers each line "N" on
standard input with the wall and CPU seconds of N steps.
"""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class Layer(nn.Module):
  def __init__(self, width, heads, size, hidden):
    super().__init__()
    self.heads, self.size = heads, size
    self.attention_norm = nn.RMSNorm(width, eps=1e-5)
    self.query = nn.Linear(width, heads * size, bias=False)
    self.key = nn.Linear(width, heads * size, bias=False)
    self.value = nn.Linear(width, heads * size, bias=False)
    self.attention_out = nn.Linear(heads * size, width, bias=False)
    self.feed_forward_norm = nn.RMSNorm(width, eps=1e-5)
    self.gate = nn.Linear(width, hidden, bias=False)
    self.up = nn.Linear(width, hidden, bias=False)
    self.down = nn.Linear(hidden, width, bias=False)

  def forward(self, x, cosine, sine):
    batch, length, _ = x.shape
    y = self.attention_norm(x)

    def heads(projection):
      flat = projection(y).view(batch, length, self.heads, self.size)
      return flat.transpose(1, 2)

    def rotate(z):
      first, second = z.chunk(2, dim=-1)
      c, s = cosine.to(z.dtype), sine.to(z.dtype)
      return torch.cat((first * c - second * s, second * c + first * s), dim=-1)

    mixed = F.scaled_dot_product_attention(
      rotate(heads(self.query)),
      rotate(heads(self.key)),
      heads(self.value),
      is_causal=True,
    )
    mixed = mixed.transpose(1, 2).reshape(batch, length, -1)
    x = x + self.attention_out(mixed)
    y = self.feed_forward_norm(x)
    return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
  def __init__(self, vocabulary, width, depth, heads, size, hidden, length):
    super().__init__()
    self.embedding = nn.Embedding(vocabulary, width)
    self.layers = nn.ModuleList(
      Layer(width, heads, size, hidden) for _ in range(depth)
    )
    self.final_norm = nn.RMSNorm(width, eps=1e-5)
    frequencies = 10_000.0 ** (-torch.arange(0, size, 2).float() / size)
    angles = torch.arange(length).float()[:, None] * frequencies
    self.register_buffer("cosine", angles.cos())
    self.register_buffer("sine", angles.sin())
    for p in self.parameters():
      if p.ndim > 1:
        nn.init.normal_(p, std=0.02)

  def forward(self, tokens):
    x = self.embedding(tokens)
    for layer in self.layers:
      x = layer(x, self.cosine, self.sine)
    logits = F.linear(self.final_norm(x), self.embedding.weight)
    return F.cross_entropy(
      logits[:, :-1].reshape(-1, logits.shape[-1]).float(),
      tokens[:, 1:].reshape(-1),
    )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--shape", required=True)
  parser.add_argument("--dtype", required=True)
  parser.add_argument("--compile", action="store_true")
  parser.add_argument("--threads", type=int, default=1)
  arguments = parser.parse_args()
  shape = json.loads(arguments.shape)
  torch.set_num_threads(arguments.threads)
  torch.manual_seed(0)
  batch, length = shape.pop("batch"), shape["length"]
  model = Model(**shape)
  matrices = [p for p in model.parameters() if p.ndim > 1]
  scales = [p for p in model.parameters() if p.ndim == 1]
  groups = [
    {"params": matrices, "weight_decay": 0.1},
    {"params": scales, "weight_decay": 0.0},
  ]
  optimizer = torch.optim.AdamW(groups, lr=4e-3, betas=(0.9, 0.95), fused=True)
  low = arguments.dtype == "bfloat16"

  def loss_of(tokens):
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
      return model(tokens)

  if arguments.compile:
    loss_of = torch.compile(loss_of)
  tokens = torch.randint(shape["vocabulary"], (batch, length))

  def step():
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(tokens)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()

  for _ in range(3):
    loss = step()
  count = sum(p.numel() for p in model.parameters())
  print(json.dumps({"parameters": count, "loss": loss}), flush=True)
  for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(int(line)):
      step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"wall": wall, "cpu": cpu}), flush=True)


if __name__ == "__main__":
  main()
