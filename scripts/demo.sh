#!/usr/bin/env bash
# A small version of the experiment on generated images: the sweep configs/sweep/demo.yaml.
# Usage: bash scripts/demo.sh [python]     About three minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${1:-python}")
PATH="$(cd "$(dirname "$python")" && pwd):$PATH"
plan=$(python scripts/sweep.py sweep=demo)
bash -exc "$plan"
python scripts/conclude.py table=runs/demo/table runs=runs/demo
