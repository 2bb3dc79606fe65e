#!/usr/bin/env bash
# Submit the missing runs of a sweep as job arrays, then its table. From the clone:
#   bash scripts/slurm/submit_table.sh sweep=table4 data.root=/path/to/imagenet
# At most AT_ONCE runs (default 8) run at a time. Set options of sbatch in its environment variables,
# such as SBATCH_ACCOUNT.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -d .venv ]; then source .venv/bin/activate; fi
plan=$(python scripts/sweep.py "$@")
folder=$(mktemp -d "$PWD/slurm-table-XXXXXX") # not in $TMPDIR, which other nodes do not see
head -n 1 <<<"$plan"

# The runs of a later stage start from weights of an earlier one.
after=()
ids=""
trap '[ -n "$ids" ] || rm -r "$folder"' EXIT # no task reads it
for stage in $(grep -oP '^# stage \K\d+' <<<"$plan"); do
    commands="$folder/stage$stage"
    awk -v stage="$stage" '/^# (stage|the table)/ { here = $0 == "# stage " stage } here && /^python /' <<<"$plan" >"$commands"
    count=$(wc -l <"$commands")
    if [ "$count" -eq 0 ]; then continue; fi
    id=$(sbatch --parsable --array="1-$count%${AT_ONCE:-8}" ${after[@]+"${after[@]}"} scripts/slurm/table.sbatch "$commands")
    echo "stage $stage: job $id, $count runs"
    after=("--dependency=afterany:$id")
    ids="$ids${ids:+,}$id"
done
id=$(sbatch --parsable ${after[@]+"${after[@]}"} scripts/slurm/evaluate.sbatch "$@")
echo "table: job $id, after the runs"
echo "Watch them: squeue --jobs=$ids${ids:+,}$id"
echo "Logs: slurm-cbam-*.log. The lines of $folder/stage* are the commands of the tasks."
