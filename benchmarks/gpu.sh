#!/usr/bin/env bash
# The training step on one H200 or H100, beside a PyTorch step of its shape:
#   bash benchmarks/gpu.sh [150m 300m 600m 2b] [flags of benchmarks/gpu.py]
# Needs no network, no TensorFlow and no seqio. PYTHON=... names the Python that
# has JAX with CUDA (else .venv's, else python3), TORCH_PYTHON=... the one that
# has PyTorch (else build/torch's, else the same one; without any, PyTorch's
# column says so). --device=cpu tries the script itself, at 1m, and measures
# nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-}
if [[ -z "$python" ]]; then
  python=.venv/bin/python
  [[ -x "$python" ]] || python=python3
fi
if ! command -v "$python" >/dev/null; then
  echo "error: there is no Python $python; name one with PYTHON=..." >&2
  exit 2
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: $python is older than Python 3.11; name one with PYTHON=..." >&2
  exit 2
fi
"$python" benchmarks/gpu_needs.py
torch=
for candidate in "${TORCH_PYTHON:-}" build/torch/bin/python "$python"; do
  if [[ -n "$candidate" ]] && "$candidate" -c "import torch" 2>/dev/null; then
    torch=$candidate
    break
  fi
done
exec "$python" -m benchmarks.gpu --torch_python="$torch" "$@"
