"""PyTorch's side of benchmarks/gpu.py: a Llama of the same shape.

`torch.compile` in its default mode, `scaled_dot_product_attention` by a flash
kernel, bfloat16 under autocast with float32 parameters and a bfloat16 residual
stream, fused AdamW, clipping. Runs in any environment that has PyTorch and
numpy.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks import gpu_turn, train_step_torch


class Model(train_step_torch.Model):
  """The CPU benchmark's model, with an output matrix and a loss of its own."""

  def __init__(self, *, tied: bool, checkpointed: bool, **shape):
    super().__init__(**shape)
    self.checkpointed = checkpointed
    self.output = self.embedding
    if not tied:
      self.output = nn.Linear(shape["width"], shape["vocabulary"], bias=False)
      nn.init.normal_(self.output.weight, std=0.02)

  def forward(self, tokens):
    x = self.embedding(tokens).to(torch.bfloat16)
    for layer in self.layers:
      run = layer
      if self.checkpointed:
        run = functools.partial(checkpoint, layer, use_reentrant=False)
      x = run(x, self.cosine, self.sine)
    logits = F.linear(self.final_norm(x), self.output.weight)
    # The last position has no target; no copy of the logits to leave it out.
    targets = tokens.roll(-1, dims=1)
    targets[:, -1] = -100
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def work(
  *,
  device: str,
  shape: dict,
  tied: bool,
  rows: int,
  attention: str,
  checkpointed: bool,
  tokens: str,
  seconds: float,
) -> dict:
  """Times steps; the arguments are `gpu_settings.Theirs` and the shape.

  Args:
    device: "cuda" or "cpu".
    shape: of `train_step_torch.Model`.
    tied: whether the output matrix is the embedding's.
    rows: of the batch.
    attention: "cudnn" or "flash".
    checkpointed: whether layers are computed again.
    tokens: .npy file of int32 ids.
    seconds: of a block.
  """
  _use_kernel(attention)
  torch.manual_seed(0)
  with torch.device(device):
    model = Model(tied=tied, checkpointed=checkpointed, **shape)
  optimizer = _optimizer(model)
  ids = torch.from_numpy(np.load(tokens)[:rows].astype(np.int64)).to(device)
  loss_of = torch.compile(model)
  losses = []

  def step():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16):
      loss = loss_of(ids)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    losses.append(loss.detach())

  def wait():
    if device == "cuda":
      torch.cuda.synchronize()

  timed = gpu_turn.time_steps(step, wait, seconds=seconds)
  on_gpu = device == "cuda"
  return timed | {
    "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
    "parameters": sum(p.numel() for p in model.parameters()),
    "losses": [float(losses[0]), float(losses[-1])],
    "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
  }


def _use_kernel(attention: str) -> None:
  """Leaves one kernel on, so that nothing slower takes its place unseen."""
  torch.backends.cuda.enable_math_sdp(False)
  torch.backends.cuda.enable_mem_efficient_sdp(False)
  torch.backends.cuda.enable_flash_sdp(attention == "flash")
  torch.backends.cuda.enable_cudnn_sdp(attention == "cudnn")


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
  matrices = [p for p in model.parameters() if p.ndim > 1]
  scales = [p for p in model.parameters() if p.ndim == 1]
  groups = [
    {"params": matrices, "weight_decay": 0.1},
    {"params": scales, "weight_decay": 0.0},
  ]
  return torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)


if __name__ == "__main__":
  gpu_turn.answer(work)
