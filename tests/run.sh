#!/usr/bin/env bash
# The tests, from a fresh clone: makes .venv with the test tools, checks the
# style, runs every test, the slow ones too. Arguments go to pytest:
#
#   bash tests/run.sh -m 'not slow'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/environment.sh requirements.txt requirements-test.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest "$@"
