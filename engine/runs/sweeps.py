"""Sweeps: the runs that a file in configs/sweep lists, and the state of each."""

import copy
import functools
import itertools
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from engine.config.presets import CONFIGS, compose, parse, with_usual_presets
from engine.config.schemas import TrainConfig
from engine.errors import UserError
from engine.runs.directory import RunDirectory

SWEEPS = CONFIGS / "sweep"


@dataclass(frozen=True)
class Planned:
    """One run of a sweep.

    Attributes:
        directory: run directory.
        state: `done`, `under way`, `missing` or `damaged`.
        weights: start weights.
        command: training command.
        epochs: its length.
        problem: description of the damage; empty if there is none.
    """

    directory: Path
    state: str
    weights: str | None
    command: str
    epochs: int = 1
    problem: str = ""


def find(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the sweep's file that one of the arguments names as `sweep=NAME` or `sweep=FILE.yaml`, and the others.

    Raises:
        UserError: if there is not exactly one such argument, or it names no sweep.
    """
    known = {file.stem: file for file in sorted(SWEEPS.glob("*.yaml"))}
    chosen = [argument.removeprefix("sweep=") for argument in arguments if argument.startswith("sweep=")]
    if len(chosen) != 1 or not (chosen[0] in known or chosen[0].endswith(".yaml")):
        raise UserError(f"Give one sweep as sweep=NAME ({', '.join(known)}) or your own as sweep=FILE.yaml.")
    extra = [argument for argument in arguments if not argument.startswith("sweep=")]
    return known.get(chosen[0], Path(chosen[0])), extra


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


def planned_runs(file: Path, extra: Sequence[str]) -> list[Planned]:
    """Return the runs of a sweep in the order of its file.

    Args:
        extra: arguments added to every training command.

    Raises:
        UserError: if the sweep cannot be read, or two of its runs have the same directory.
    """
    sweep = read(file)
    runs = []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for line in sweep.runs:
            own = _words(line, file)
            with _naming(own):
                combinations = list(expand(last_of_each_key([*sweep.train, *own, *extra])))
            for overrides in combinations:
                with _naming([override for override in overrides if _key(override) in map(_key, own)]):
                    runs.append(look_up(overrides))
    places = [run.directory.resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        same = [other.command for other, its_place in zip(runs, places, strict=True) if its_place == place]
        if len(same) > 1:
            raise UserError(
                f"Two runs of {file} write to {run.directory}: {same[0]} and {same[1]}. Set run.dir of one of them."
            )
    return runs


def last_of_each_key(overrides: Sequence[str]) -> list[str]:
    """Return one override per key, the last: an added argument may set a key that the sweep sets."""
    return list({_key(override): override for override in overrides}.values())


def _key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def expand(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yield every combination of comma-separated values, as Hydra's multirun does: a=1,2 -> a=1 and a=2."""
    choices = []
    for override in OverridesParser.create().parse_overrides([*overrides]):
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
    config = _config(overrides)
    run = RunDirectory(Path(config.run_directory))
    problem = run.problem
    if problem:
        state = "damaged"
    else:
        run.require_same_config(config)
        state = "done" if run.finished else "under way" if run.config_file.is_file() else "missing"
    command = shlex.join(["python", "train.py", *overrides])
    return Planned(run.directory, state, config.model.weights, command, config.recipe.epochs, problem)


def _config(overrides: Sequence[str]) -> TrainConfig:
    """Return the configuration of a training command; those that select the same presets are composed once."""
    parsed = OverridesParser.create().parse_overrides([*overrides])
    values = [override for override in parsed if _is_value(override)]
    presets = tuple(str(override.input_line) for override in parsed if override not in values)
    composed = copy.deepcopy(_composed(presets))
    try:
        for override in values:
            OmegaConf.update(composed, override.key_or_group, override.value())
    except OmegaConfBaseException:  # Hydra's message names the argument
        composed = compose("train", with_usual_presets(overrides))
    config: TrainConfig = parse(composed)
    return config


def _is_value(override: Override) -> bool:
    """Return whether an override sets the value of a key that every configuration has, such as recipe.lr."""
    return (override.key_or_group == "seed" or "." in override.key_or_group) and override.type == OverrideType.CHANGE


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    return compose("train", with_usual_presets(overrides))


@contextmanager
def _naming(run: Sequence[str]) -> Iterator[None]:
    """Add a note with the run's own arguments to an error, which `cli.one_line_errors` prints before the message."""
    try:
        yield
    except Exception as error:
        error.add_note(f"In the run `{' '.join(run)}`")
        raise


def _words(line: str, file: Path) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UserError(f"The sweep {file} has a run that cannot be read ({error}): {line}") from error
