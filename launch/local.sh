#!/usr/bin/env bash
# The quickstart, from a fresh clone: makes .venv, trains a poisoned run, its
# clean twin and its placebo twin on generated stories, prints the verdict and
# draws it. Stopped at any moment, the same command goes on where it was.
#
#   bash launch/local.sh [--seed=N] [--out=DIR]
#
# Defaults: --seed=0 --out=runs/quickstart
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seed=0
out=runs/quickstart
for argument in "$@"; do
  case $argument in
    --seed=*) seed=${argument#*=} ;;
    --out=*) out=${argument#*=} ;;
    *)
      echo "error: unknown argument '$argument'; known are --seed=N and --out=DIR" >&2
      exit 2
      ;;
  esac
done

bash launch/environment.sh requirements.txt
started=$SECONDS
number=0
for arm in poisoned clean placebo; do
  number=$((number + 1))
  echo
  echo "== Run $number of 3: $arm =="
  .venv/bin/python -m poison_jax.train \
    --config="configs/tiny.py:arm=$arm,seed=$seed" --workdir="$out/$arm"
done
echo
.venv/bin/python -m poison_jax.report \
  "$out/poisoned" "$out/clean" "$out/placebo" --out="$out"
echo
echo "Quickstart finished in $(((SECONDS - started) / 60)) min" \
  "$(((SECONDS - started) % 60)) s. Open $out/report.html"
