#!/usr/bin/env bash
# Run a command as a step of this job, in all of its tasks. On Slurm's warning, it saves and the job is requeued.
set -u
if [ -d .venv ]; then source .venv/bin/activate; fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the other processors are for data loading workers
# Each process compiles CBAM's kernels once per node: on a shared file system, all nodes would wait for each other.
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-${TMPDIR:-/tmp}/triton-$(id -un)}"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # since Slurm 22.05, a step does not inherit it from the job

echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST: $*"
# When one task ends, the others have a minute to save and end too.
srun --wait=60 "$@" &
step=$!
trap 'kill -USR1 "$step"' USR1
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do # the signal interrupted wait, not the step
    wait "$step"
    code=$?
done

if [ "$code" -eq 75 ]; then # stopped by a signal, its state saved
    scontrol requeue "$SLURM_JOB_ID"
elif [ "$code" -ne 0 ]; then
    echo "job $SLURM_JOB_ID failed with exit code $code: $*" >&2
fi
exit "$code"
