"""Check a finished run against its own record, and optionally repeat it.

    python scripts/verify_run.py runs/imagenet/resnet50_cbam/seed51
    python scripts/verify_run.py runs/imagenet/resnet50_cbam/seed51 --rerun    # from the start, comparing bits

Repeat a run of several processes with as many processes: torchrun --nproc-per-node=4 scripts/verify_run.py RUN --rerun.
The repetition is a run in RUN/rerun. If interrupted, the same command resumes it; if it differs, it is kept.
The exit code is 0 if everything agrees, or 2 with one line that names the mismatch.
"""

import argparse
import dataclasses
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the slow imports

import models
import train
from engine import cli
from engine.errors import UserError
from engine.logging import print_line
from engine.processes import cluster
from engine.runs import file_schema
from engine.runs.directory import RunDirectory, repair_advice
from engine.tasks.registry import TASKS


def verify(run: RunDirectory) -> None:
    """Raise UserError for the first mismatch between the run and its record."""
    if not run.finished:
        raise UserError(f"There is no finished run in {run.directory}.")
    record = run.record()
    run.final_state()
    task = TASKS[run.config().data.task]
    recorded_schema = dict.fromkeys(task.metrics, file_schema.NUMBER)
    file_schema.require_types(record, recorded_schema, run.record_file, "Restore the file.")
    metrics = task.predictions.load(
        run.predictions, record["predictions_sha256"], repair_advice(run.directory)
    ).metrics()
    recorded = {name: record.get("val_loss" if name == "loss" else name) for name in metrics}
    if metrics != recorded:
        raise UserError(
            f"The predictions in {run.predictions} do not give the metrics in {run.record_file}; restore both."
        )
    print_line(f"{run.directory}: weights, configuration, predictions and metrics agree with the record.")


def repeat(run: RunDirectory) -> None:
    """Train with the same configuration again; raise UserError if the bits differ."""
    config, before = run.config(), run.record()
    place, processes = cluster.world_info_from_env(os.environ), before.get("processes", 1)
    if place.world_size != processes:
        raise UserError(
            f"{run.directory} was trained with another number of processes ({processes}, not {place.world_size}); "
            f"start the same number (torchrun --nproc-per-node={processes} scripts/verify_run.py ... on one machine)."
        )
    repeated = RunDirectory(run.directory / "rerun")
    train.main(dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(repeated.directory))))
    if place.rank > 0:
        return
    again = repeated.record()
    for key in ("start_weights_sha256", "data_fingerprint", "history", "weights_sha256"):
        if again[key] != before[key]:
            raise UserError(f"{repeated.directory} differs from the record of {run.directory}, first in {key}.")
    shutil.rmtree(repeated.directory)
    print_line(f"{run.directory}: repeated with the same bits.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument("--rerun", action="store_true", help="train it again and compare bits")
    arguments = parser.parse_args()
    run = RunDirectory(arguments.run)
    verify(run)
    if arguments.rerun:
        repeat(run)


if __name__ == "__main__":
    with cli.one_line_errors(models.ModelError):
        main()
