#!/usr/bin/env bash
# Submit what a sweep still needs: its runs as job arrays, and its table after them. From the clone:
#   bash scripts/slurm/submit_table.sh sweep=table4 data.root=/path/to/imagenet
# At most AT_ONCE runs (8) have GPUs at a time. Options of sbatch can be given as its variables, SBATCH_ACCOUNT=...
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -d .venv ]; then source .venv/bin/activate; fi
plan=$(python scripts/sweep.py "$@")
folder=$(mktemp -d "$PWD/slurm-table-XXXXXX") # here, and not in $TMPDIR, which other nodes do not see
head -n 1 <<<"$plan"

# The runs of a later stage start from weights of an earlier one.
after=()
ids=""
for stage in $(grep -oP '^# stage \K\d+' <<<"$plan"); do
    commands="$folder/stage$stage"
    awk -v stage="$stage" '/^# (stage|the table)/ { here = $0 == "# stage " stage } here && !/^#/' <<<"$plan" >"$commands"
    count=$(wc -l <"$commands")
    if [ "$count" -eq 0 ]; then continue; fi
    id=$(sbatch --parsable --array="1-$count%${AT_ONCE:-8}" ${after[@]+"${after[@]}"} scripts/slurm/table.sbatch "$commands")
    echo "stage $stage: job $id, $count runs"
    after=("--dependency=afterany:$id")
    ids="$ids${ids:+,}$id"
done
id=$(sbatch --parsable ${after[@]+"${after[@]}"} scripts/slurm/evaluate.sbatch "$@")
echo "table: job $id, after them"
echo "Watch them: squeue --jobs=$ids${ids:+,}$id"
echo "Logs: slurm-cbam-*.log here; which task is which run: line by line in $folder"
