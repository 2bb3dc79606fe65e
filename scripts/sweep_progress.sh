#!/usr/bin/env bash
# Print the position in a sweep and its time left, estimated from the epochs done. scripts/sweep.py writes the calls.
# Usage: bash scripts/sweep_progress.sh NUMBER RUNS EPOCHS_DONE EPOCHS_LEFT SECONDS
set -euo pipefail
number=$1 runs=$2 epochs_done=$3 epochs_left=$4 seconds=$5
left=""
if [ "$epochs_done" -gt 0 ]; then
    minutes=$(((seconds * epochs_left / epochs_done + 59) / 60))
    if [ "$minutes" -ge 60 ]; then
        left=", $((minutes / 60)) h $((minutes % 60)) min left"
    else
        left=", $minutes min left"
    fi
fi
echo "run $number of $runs$left"
