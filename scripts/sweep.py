"""Print the missing parts of a sweep as a shell script: the state and command of each run, then the table's command.

    python scripts/sweep.py sweep=table4 data.root=/path/to/imagenet              # list the commands
    python scripts/sweep.py sweep=table4 data.root=/path/to/imagenet | bash -e    # run them

Sweeps are in configs/sweep; use your own with sweep=FILE.yaml. Further KEY=VALUE arguments are added to every training
command; those of data and runtime, and run.root, are also added to the table's command. Finished and damaged
runs are comments. Unfinished runs resume. Before each run, the script prints its number and the sweep's time left.
`python scripts/status.py sweep=table4 ...` shows the state of each run.
"""

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from engine import cli
from engine.errors import UserError
from engine.logging import print_line
from engine.runs import sweeps
from engine.runs.sweeps import Planned

STATES = ("done", "under way", "missing", "damaged")


def script(file: Path, runs: Sequence[Planned], extra: list[str]) -> Iterator[str]:
    """Yield the lines of the shell script."""
    counts = [(sum(run.state == state for run in runs), state) for state in STATES]
    listed = ", ".join(f"{count} {state}" for count, state in counts if count or state != "damaged")
    yield f"# {file.stem}: {len(runs)} runs; {listed}"
    staged = sweeps.stages(runs)
    todo = [run for stage in staged for run in stage if run.state in ("under way", "missing")]
    for number, stage in enumerate(staged, start=1):
        yield f"# stage {number}"
        for run in stage:
            yield f"# {run.state}: {run.directory}"
            yield from announced(run, todo, len(runs)) if run in todo else [f"# {run.command}"]
    shared = [argument for argument in extra if argument.lstrip("+").startswith(("data", "runtime", "run.root="))]
    yield "# the table"
    yield shlex.join(["python", "evaluate.py", *sweeps.last_of_each_key([*sweeps.read(file).evaluate, *shared])])


def announced(run: Planned, todo: Sequence[Planned], runs: int) -> Iterator[str]:
    """Yield the command of a run after a command that prints its number and the time left of the sweep."""
    index = todo.index(run)
    done, left = (sum(other.epochs for other in part) for part in (todo[:index], todo[index:]))
    yield f"bash scripts/sweep_progress.sh {runs - len(todo) + index + 1} {runs} {done} {left} $SECONDS"
    yield run.command


def main(arguments: list[str]) -> None:
    if "--help" in arguments:
        print_line((__doc__ or "").strip())
        return
    cli.refuse_repeated_keys(arguments)
    file, extra = sweeps.find(arguments)
    runs = sweeps.planned_runs(file, extra)
    print_line("\n".join(script(file, runs, extra)))
    for override in OverridesParser.create().parse_overrides(extra):
        is_root = override.key_or_group == "data.root" and not override.is_sweep_override()
        if is_root and not Path(str(override.value())).exists():  # no error: the nodes of a cluster may have it
            sys.stderr.write(f"warning: {override.input_line} does not exist on this machine.\n")
    damaged = [run for run in runs if run.problem]
    if damaged:
        raise UserError(f"{len(damaged)} of {len(runs)} runs cannot be used. {damaged[0].problem}")


if __name__ == "__main__":
    with cli.one_line_errors(HydraException, OmegaConfBaseException):
        main([cli.expand_home(argument) for argument in sys.argv[1:]])
