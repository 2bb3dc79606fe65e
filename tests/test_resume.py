"""A run that is killed at any moment, and started again by the same command, ends with the same bits."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.test_commands import arguments

# A server that has imported everything forks one process per start: seconds of importing saved each time.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["train", "tests.test_resume"])

COMMON = ["model=mobilenet_v3_small_cbam", "model.weights=null", "recipe.epochs=3", "run.checkpoint_every_steps=1"]


def start(folder: Path, root: Path, run: str, kill_before_rename: int | None = None) -> multiprocessing.Process:
    """`python train.py ... run.dir=RUN` in a process of its own."""
    process: multiprocessing.Process = PROCESSES.Process(  # type: ignore[assignment]
        target=_command, args=(folder, arguments(root, *COMMON, f"run.dir={run}"), kill_before_rename)
    )
    process.start()
    return process


def _command(folder: Path, given: list[str], kill_before_rename: int | None) -> None:
    import torch

    import models
    from engine import cli
    from train import train

    os.chdir(folder)
    torch.set_num_threads(1)
    with (folder / "output.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if kill_before_rename is not None:
        _die_before_rename(kill_before_rename)
    sys.argv = ["train.py", *given]
    cli.run("train", train, models.ModelError)


def _die_before_rename(number: int) -> None:
    """Kill this process just before it renames a file for the so-manieth time: within a save."""
    rename: Callable[[Path, Path], Path] = Path.replace
    left = number

    def replace(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.replace = replace  # type: ignore[method-assign, assignment]


def finish(folder: Path, root: Path, run: str) -> None:
    process = start(folder, root, run)
    process.join(120)
    assert process.exitcode == 0, (folder / "output.txt").read_text()[-2000:]


def outcome(run: Path) -> tuple[str, object, dict[str, list[tuple[int, float]]]]:
    """Digest of the final weights, metrics of every epoch, and every curve that does not tell of time."""
    record = json.loads((run / "record.json").read_text())
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    curves = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.startswith("speed/")
    }
    return record["weights_sha256"], record["history"], curves


@pytest.fixture(scope="module")
def undisturbed(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, float]:
    """The outcome without any kill, and the seconds it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(folder, folders, "warm")  # the server imports now
    started = time.monotonic()
    finish(folder, folders, "run")
    seconds = time.monotonic() - started
    assert outcome(folder / "run") == outcome(folder / "warm")
    return outcome(folder / "run"), seconds


def kill_at_random(number: signal.Signals, kills: int, folder: Path, root: Path, seconds: float) -> list[Path]:
    """Start and kill until so many kills have hit a run under way; returns the runs, all finished."""
    moments = random.Random(51)
    runs, run, done, afresh = [], 0, 0, True
    while done < kills:
        process = start(folder, root, f"run{run}")
        # A start from nothing takes longer than a continuation: half of the kills come early.
        process.join(moments.uniform(0.1, 1.0 if afresh else 0.6) * seconds)
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, number)
            process.join(60)
            expected = {-number, 0, os.EX_TEMPFAIL, 2} if number != signal.SIGKILL else {-number, 0}
            assert process.exitcode in expected, (folder / "output.txt").read_text()[-2000:]
            done, afresh = done + 1, False
        if not process.is_alive() and process.exitcode == 0:
            runs.append(folder / f"run{run}")
            run, afresh = run + 1, True
    finish(folder, root, f"run{run}")
    return [*runs, folder / f"run{run}"]


@pytest.mark.parametrize(("number", "kills"), [(signal.SIGKILL, 20), (signal.SIGTERM, 6)])
def test_killed_at_random_moments(
    number: signal.Signals, kills: int, undisturbed: tuple[object, float], folders: Path, tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    runs = kill_at_random(number, kills, tmp_path, folders, seconds)
    assert [outcome(run) == expected for run in runs] == [True] * len(runs)


@pytest.mark.slow
def test_killed_two_hundred_times(undisturbed: tuple[object, float], folders: Path, tmp_path: Path) -> None:
    expected, seconds = undisturbed
    runs = kill_at_random(signal.SIGKILL, 200, tmp_path, folders, seconds)
    assert [outcome(run) == expected for run in runs] == [True] * len(runs)


def test_killed_within_every_kind_of_save(undisturbed: tuple[object, float], folders: Path, tmp_path: Path) -> None:
    """Just before a start's first, second, ... rename: config, record, checkpoints and the ones they replace, best."""
    kills = 0
    process = start(tmp_path, folders, "run", kill_before_rename=1)
    process.join(120)
    while process.exitcode == -signal.SIGKILL:
        kills += 1
        process = start(tmp_path, folders, "run", kill_before_rename=kills + 1)
        process.join(120)
    assert process.exitcode == 0, (tmp_path / "output.txt").read_text()[-2000:]
    assert kills >= 5
    assert outcome(tmp_path / "run") == undisturbed[0]
    assert not list((tmp_path / "run").rglob("*.draft"))


def test_a_signal_saves_and_exits_with_a_code_of_its_own(folders: Path, tmp_path: Path) -> None:
    process = start(tmp_path, folders, "run")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "checkpoint" / "previous.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGUSR1)
    process.join(60)
    assert process.exitcode == os.EX_TEMPFAIL
    assert "Stopped by SIGUSR1 after" in (tmp_path / "output.txt").read_text()
