"""Print the missing parts of a sweep as a shell script: the state and command of each run, then the table's command.

    python scripts/sweep.py sweep=table4 data.root=/path/to/imagenet              # list the commands
    python scripts/sweep.py sweep=table4 data.root=/path/to/imagenet | bash -e    # run them

Sweeps are in configs/sweep; use your own with sweep=FILE.yaml. Further KEY=VALUE arguments are added to every training
command; those of data and runtime, and run.root, are also added to the table's command. Finished runs are comments.
Unfinished runs resume.
"""

import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from engine import cli
from engine.config.presets import CONFIGS, compose, parse
from engine.config.schemas import TrainConfig
from engine.errors import UserError
from engine.logging import print_line
from engine.runs.directory import RunDirectory

SWEEPS = CONFIGS / "sweep"


@dataclass(frozen=True)
class Planned:
    """One run of a sweep.

    Attributes:
        directory: run directory.
        state: `done`, `under way` or `missing`.
        weights: start weights.
        command: training command.
    """

    directory: Path
    state: str
    weights: str | None
    command: str


def plan(file: Path, extra: list[str]) -> Iterator[str]:
    """Yield the lines of the script.

    Raises:
        UserError: if the sweep cannot be read, or two of its runs have the same directory.
    """
    sweep = read(file)
    runs = []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for line in sweep.runs:
            runs += [look_up(overrides) for overrides in expand([*sweep.train, *_words(line, file), *extra])]
    places = [run.directory.resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        same = [other.command for other, its_place in zip(runs, places, strict=True) if its_place == place]
        if len(same) > 1:
            raise UserError(
                f"Two runs of {file} write to {run.directory}: {same[0]} and {same[1]}. Set run.dir of one of them."
            )
    counts = [f"{[run.state for run in runs].count(state)} {state}" for state in ("done", "under way", "missing")]
    yield f"# {file.stem}: {len(runs)} runs; {', '.join(counts)}"
    for number, stage in enumerate(stages(runs), start=1):
        yield f"# stage {number}"
        for run in stage:
            yield f"# {run.state}: {run.directory}\n" + ("# " if run.state == "done" else "") + run.command
    shared = [argument for argument in extra if argument.lstrip("+").startswith(("data", "runtime", "run.root="))]
    yield "# the table\n" + shlex.join(["python", "evaluate.py", *sweep.evaluate, *shared])


def read(file: Path) -> DictConfig:
    """Return a sweep: the arguments of all runs (`train`), of single runs (`runs`) and of the table (`evaluate`)."""
    if not file.is_file():
        raise UserError(f"The sweep {file} cannot be read (there is no such file).")
    try:
        sweep = OmegaConf.load(file)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise UserError(f"The sweep {file} cannot be read ({' '.join(str(error).split())}).") from error
    lists = {"train", "runs", "evaluate"}
    if (
        not isinstance(sweep, DictConfig)
        or sweep.keys() != lists
        or not all(
            OmegaConf.is_list(value) and all(isinstance(item, str) for item in value) for value in sweep.values()
        )
    ):
        raise UserError(f"The sweep {file} needs three lists of arguments: train, runs and evaluate.")
    return sweep


def _words(line: str, file: Path) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UserError(f"The sweep {file} has a run that cannot be read ({error}): {line}") from error


def expand(overrides: list[str]) -> Iterator[list[str]]:
    """Yield every combination of comma-separated values, as Hydra's multirun does: a=1,2 -> a=1 and a=2."""
    choices = []
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([str(override.input_line)])
    return (list(combination) for combination in itertools.product(*choices))


def stages(runs: Sequence[Planned]) -> list[list[Planned]]:
    """Return the runs in stages: each run is in a later stage than the run whose weights it starts from."""
    staged: list[list[Planned]] = []
    waiting = list(runs)
    while waiting:
        directories = {run.directory.resolve() for run in waiting}
        ready = [
            run for run in waiting if run.weights is None or directories.isdisjoint(Path(run.weights).resolve().parents)
        ]
        if not ready:
            raise UserError(f"{waiting[0].directory} starts from weights that depend on it; change its model.weights.")
        staged.append(ready)
        waiting = [run for run in waiting if run not in ready]
    return staged


def look_up(overrides: list[str]) -> Planned:
    """Return the run of a training command, and its state.

    Raises:
        UserError: if its directory contains another run.
    """
    config: TrainConfig = parse(compose("train", cli.with_usual_presets(overrides)))
    run = RunDirectory(Path(config.run_directory))
    run.require_same_config(config)
    state = "done" if run.finished else "under way" if run.config_file.is_file() else "missing"
    return Planned(run.directory, state, config.model.weights, shlex.join(["python", "train.py", *overrides]))


def main(arguments: list[str]) -> None:
    if "--help" in arguments:
        print_line((__doc__ or "").strip())
        return
    sweeps = {file.stem: file for file in sorted(SWEEPS.glob("*.yaml"))}
    chosen = [argument.removeprefix("sweep=") for argument in arguments if argument.startswith("sweep=")]
    if len(chosen) != 1 or not (chosen[0] in sweeps or chosen[0].endswith(".yaml")):
        raise UserError(f"Give one sweep as sweep=NAME ({', '.join(sweeps)}) or your own as sweep=FILE.yaml.")
    extra = [argument for argument in arguments if not argument.startswith("sweep=")]
    print_line("\n".join(plan(sweeps.get(chosen[0], Path(chosen[0])), extra)))
    for override in OverridesParser.create().parse_overrides(extra):
        is_root = override.key_or_group == "data.root" and not override.is_sweep_override()
        if is_root and not Path(str(override.value())).exists():  # no error: the nodes of a cluster may have it
            sys.stderr.write(f"warning: {override.input_line} does not exist on this machine.\n")


if __name__ == "__main__":
    with cli.one_line_errors(HydraException, OmegaConfBaseException):
        main(sys.argv[1:])
