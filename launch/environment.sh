#!/usr/bin/env bash
# Makes or updates .venv from the requirement files given as arguments.
# Does nothing where they are installed already. PYTHON=... picks another
# interpreter than the first fitting one on the PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fits() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
    >/dev/null 2>&1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.12 python3.13 python3.11 python3 python}; do
    if fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11, 3.12 or 3.13 found" \
    "(tried: ${PYTHON:-python3.12 python3.13 python3.11 python3 python});" \
    "install one, or name it with PYTHON=/path/to/python3.12" >&2
  exit 2
}

if [ ! -x .venv/bin/python ] || ! fits .venv/bin/python; then
  python=$(find_python)
  echo "Making .venv with $("$python" --version)"
  if ! "$python" -m venv --clear .venv; then
    echo "error: $python can't make a virtual environment;" \
      "on Debian and Ubuntu, install python3-venv" >&2
    exit 2
  fi
fi

# One line a file that is installed: its checksum, size and name.
missing=()
for file in "$@"; do
  grep -qxF "$(cksum "$file")" .venv/installed 2>/dev/null || missing+=("$file")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "Installing ${missing[*]} (about 3 GB on disk in all, one to five minutes)"
  options=()
  for file in "$@"; do options+=(-r "$file"); done
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    "${options[@]}"
  for file in "$@"; do cksum "$file"; done >.venv/installed
fi
