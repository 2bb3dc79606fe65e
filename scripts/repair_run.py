"""Compute the damaged or missing files of a run again: its record, its predictions, its last checkpoint.

    python scripts/repair_run.py runs/imagenet/resnet50_cbam/seed51

A file that cannot be read is renamed to FILE.damaged. Then the run is trained with its stored configuration: it resumes
from the newest readable checkpoint, at the end of a finished run with its validation only. The images have to be where
they were (data.root in RUN/config.yaml). Repair a run of several processes with as many processes (torchrun).
"""

import argparse
import dataclasses
import os
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
from engine.processes.cluster import world_info_from_env
from engine.processes.distributed import init_distributed
from engine.runs.directory import RunDirectory
from engine.tasks.registry import TASKS


def damaged_files(run: RunDirectory) -> list[Path]:
    """Return the files of a run that cannot be used and can be computed again.

    Raises:
        UserError: if the configuration cannot be read, or there is no checkpoint to compute from.
    """
    config = run.config()
    if not run.has_checkpoint:
        raise UserError(f"{run.directory} has no checkpoint to compute its other files from; repeat the run.")
    if run.problem:
        return [run.record_file]
    if not (run.finished and run.predictions.is_file()):
        return []
    try:
        TASKS[config.data.task].predictions.load(run.predictions, run.record()["predictions_sha256"])
    except UserError:
        return [run.predictions]
    return []


def set_aside(file: Path) -> None:
    aside = file.with_name(f"{file.name}.damaged")
    file.replace(aside)
    print_line(f"{file} cannot be used; it is now {aside}.")


def repair(run: RunDirectory) -> None:
    with init_distributed(world_info_from_env(os.environ), "repair") as group, group.main_process_first():
        for file in damaged_files(run):  # on the other processes, none is left
            set_aside(file)
    config = run.config()
    train.main(dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(run.directory))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a run")
    repair(RunDirectory(parser.parse_args().run))


if __name__ == "__main__":
    with cli.one_line_errors(models.ModelError):
        main()
