#!/usr/bin/env bash
# The training step against PyTorch, in an environment of its own beside ours:
#   bash benchmarks/train_step.sh [flags of benchmarks/train_step.py]
# On Linux `pip install torch` may bring a CUDA build; the CPU is measured.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=build/torch
if [[ ! -x "$torch/bin/python" ]] ||
  ! "$torch/bin/python" -c "import torch" 2>/dev/null; then
  python3 -m venv "$torch"
  "$torch/bin/pip" install --quiet torch==2.13.0 numpy
fi
python=.venv/bin/python
[[ -x "$python" ]] || python=python3
exec "$python" -m benchmarks.train_step --torch_python="$torch/bin/python" "$@"
