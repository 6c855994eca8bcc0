#!/usr/bin/env bash
# Exported runs under transformers, in an environment of its own beside ours:
#   bash benchmarks/huggingface.sh RUN [RUN ...] [flags of huggingface.py]
# The environment's folder: TRANSFORMERS, by default build/transformers.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=${TRANSFORMERS:-build/transformers}
if ! "$torch/bin/python" -c "import torch, transformers" 2>/dev/null; then
  python3 -m venv "$torch"
  "$torch/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 \
    safetensors==0.8.0 numpy==2.4.6
fi
python=.venv/bin/python
[[ -x "$python" ]] || python=python3
exec "$python" -m benchmarks.huggingface \
  --torch_python="$torch/bin/python" "$@"
