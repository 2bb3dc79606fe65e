"""Show the state of every run below a folder, or of every run of a sweep, in one line each.

    python scripts/status.py                                               # below runs/
    python scripts/status.py runs/imagenet
    python scripts/status.py sweep=table4 data.root=/path/to/imagenet      # the arguments of scripts/sweep.py

The columns are the state (finished, running, stopped by a signal, failed, damaged, missing), the completed epochs, the
validation metric of the last and of the best epoch, the time left (of a stopped run: the time it still needs), the host
or Slurm job that last wrote the run, and the age of its last checkpoint. The reasons of failed runs follow the list. No
checkpoint is read. The exit code is 2 if a run is damaged.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from engine import cli
from engine.errors import UserError
from engine.logging import aligned, print_line
from engine.runs import sweeps
from engine.runs.status import HEADER, RunStatus, find_runs, status


def chosen(arguments: Sequence[str]) -> list[Path]:
    """Return the run directories that the arguments name.

    Raises:
        UserError: if the arguments are neither one folder nor a sweep, or the folder does not exist.
    """
    if any(argument.startswith("sweep=") for argument in arguments):
        return [run.directory for run in sweeps.planned_runs(*sweeps.find(arguments))]
    if len(arguments) > 1 or any("=" in argument for argument in arguments):
        raise UserError(f"Give one folder of runs, or sweep=NAME; got {' '.join(arguments)}.")
    root = Path(arguments[0] if arguments else "runs")
    if not root.is_dir():
        raise UserError(f"There is no folder {root.absolute()}; give the folder of your runs.")
    return find_runs(root)


def table(found: Sequence[RunStatus]) -> str:
    rows = [HEADER, *((str(run.directory), run.state, *run.cells) for run in found)]
    counts = ", ".join(f"{count} {state}" for state, count in Counter(run.state for run in found).most_common())
    reasons = [f"{run.directory}: {run.reason}" for run in found if run.reason]
    return "\n".join([*aligned(rows), f"{counts or 'no runs'}", *reasons])


def main(arguments: Sequence[str]) -> None:
    if {"--help", "-h"} & set(arguments):
        print_line((__doc__ or "").strip())
        return
    cli.refuse_repeated_keys(arguments)
    found = [status(directory) for directory in chosen(arguments)]
    print_line(table(found))
    damaged = [run for run in found if run.problem]
    if damaged:
        raise UserError(f"{len(damaged)} of {len(found)} runs cannot be used. {damaged[0].problem}")


if __name__ == "__main__":
    with cli.one_line_errors(HydraException, OmegaConfBaseException):
        main([cli.expand_home(argument) for argument in sys.argv[1:]])
