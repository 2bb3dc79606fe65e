#!/usr/bin/env bash
# The main job in small, on generated images: pretrain a network, fine-tune it with and without CBAM, compare.
# Usage: bash scripts/demo.sh [python]     About three minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}
pretrained=runs/pretrained/shapes/resnet18

run() {
    echo "+ $*"
    "$@"
}

run "$python" train.py model=resnet18 data=shapes model.weights=null recipe=scratch \
    recipe.epochs=4 recipe.batch_size=32 recipe.lr=0.03 run.dir="$pretrained"
for model in resnet18 resnet18_cbam; do
    run "$python" train.py model=$model data=shapes model.weights="$pretrained/checkpoint/last.pt" \
        recipe.epochs=2 recipe.batch_size=32
done
run "$python" evaluate.py data=shapes table.dir=runs/shapes/table
