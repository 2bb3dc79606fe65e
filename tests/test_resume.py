"""A run that is killed at any moment, and started again by the same command, ends with the same bits."""

import functools
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.runs import checkpoint
from tests.commands import EVERYTHING, arguments, assert_one_line
from tests.networks import SMALL_CBAM
from tests.processes import Process, start_ranks

COMMON = [*SMALL_CBAM, "recipe.epochs=3", "run.checkpoint_every_steps=1"]


def start(
    folder: Path, root: Path, run: str, group: int = 1, prepare: Callable[[], None] | None = None
) -> list[Process]:
    """The processes of one run that takes seconds."""
    given = arguments(root, *COMMON, f"run.dir={run}")
    if group > 1:
        return start_ranks(group, "train.py", given, folder)
    return [Process("train.py", given, folder, {}, prepare)]


def finish(folder: Path, root: Path, run: str, group: int = 1) -> None:
    for process in start(folder, root, run, group):
        result = process.result()
        assert result.returncode == 0, result.stderr


def die_before_rename(number: int) -> None:
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


def outcome(run: Path) -> tuple[str, object, dict[str, list[tuple[int, float]]]]:
    """Digest of the final weights, metrics of every epoch, and every curve that does not tell of time."""
    record = json.loads((run / "record.json").read_text())
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    curves = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.startswith("speed/")
    }
    return record["weights_sha256"], record["history"], curves


Undisturbed = Callable[[int], tuple[object, float]]


@pytest.fixture(scope="module")
def undisturbed(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The outcome without any kill, and the seconds it takes, by the number of ranks."""

    @functools.cache
    def measure(group: int) -> tuple[object, float]:
        folder = tmp_path_factory.mktemp("undisturbed")
        finish(folder, folders, "warm")  # the server imports now
        started = time.monotonic()
        finish(folder, folders, "run", group)
        seconds = time.monotonic() - started
        assert group > 1 or outcome(folder / "run") == outcome(folder / "warm")
        return outcome(folder / "run"), seconds

    return measure


def kill_at_random(number: signal.Signals, kills: int, folder: Path, root: Path, group: int, seconds: float) -> int:
    """Start and kill one process of a run, until so many kills have hit a run under way; returns how many runs ended.

    The other ranks have to end by themselves, once they have met.
    """
    moments = random.Random(51)
    run, done, afresh = 0, 0, True
    while done < kills:
        processes = start(folder, root, f"run{run}", group)
        victim = moments.choice(processes)
        # A start from nothing takes longer than a continuation: half of the kills come early.
        if victim.wait(moments.uniform(0.1, 1.0 if afresh else 0.6) * seconds) is None:
            os.kill(victim.pid, number)
            done, afresh = done + 1, False
            end_those_who_wait(processes, victim)
        results = [process.result() for process in processes]
        for process, result in zip(processes, results, strict=True):
            check_end(result, number, is_victim=process is victim)
        if all(result.returncode == 0 for result in results):
            run, afresh = run + 1, True
    finish(folder, root, f"run{run}", group)
    return run + 1


def end_those_who_wait(processes: list[Process], victim: Process) -> None:
    """Like a launcher: who is still at the start waits for the victim, for as long as a cluster may take."""
    for process in processes:
        if process is not victim and process.wait(5) is None:
            os.kill(process.pid, signal.SIGKILL)


def check_end(result: subprocess.CompletedProcess[str], number: signal.Signals, is_victim: bool) -> None:
    """A killed process ends at once or, asked to, at its next step; the others with it, saying why in one line."""
    expected = {0, -signal.SIGKILL if not is_victim else -number}
    if number != signal.SIGKILL:
        expected.add(os.EX_TEMPFAIL)
    if result.returncode not in expected:
        assert result.returncode == 2, result.stderr
        # torch may log before it that the connection broke.
        assert result.stderr.splitlines()[-1].startswith("error: "), result.stderr
        assert "Traceback" not in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("number", "kills", "group"),
    [(signal.SIGKILL, 8, 1), (signal.SIGTERM, 4, 1), (signal.SIGKILL, 4, 2), (signal.SIGTERM, 3, 2)],
)
def test_killed_at_random_moments(
    number: signal.Signals, kills: int, group: int, undisturbed: Undisturbed, folders: Path, tmp_path: Path
) -> None:
    expected, seconds = undisturbed(group)
    runs = kill_at_random(number, kills, tmp_path, folders, group, seconds)
    assert [outcome(tmp_path / f"run{run}") == expected for run in range(runs)] == [True] * runs


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 2])
def test_killed_two_hundred_times(group: int, undisturbed: Undisturbed, folders: Path, tmp_path: Path) -> None:
    expected, seconds = undisturbed(group)
    runs = kill_at_random(signal.SIGKILL, 200, tmp_path, folders, group, seconds)
    assert [outcome(tmp_path / f"run{run}") == expected for run in range(runs)] == [True] * runs


def test_killed_within_every_kind_of_save(undisturbed: Undisturbed, folders: Path, tmp_path: Path) -> None:
    """Just before a start's first, second, ... rename: config, record, checkpoints and the ones they replace, best."""
    kills = 0
    while True:
        (process,) = start(tmp_path, folders, "run", prepare=functools.partial(die_before_rename, kills + 1))
        result = process.result()
        if result.returncode != -signal.SIGKILL:
            break
        kills += 1
    assert result.returncode == 0, result.stderr
    assert kills >= 5
    assert outcome(tmp_path / "run") == undisturbed(1)[0]
    assert not list((tmp_path / "run").rglob("*.draft"))


def await_second_checkpoint(run: Path) -> None:
    deadline = time.monotonic() + 60
    while not (run / "checkpoint" / "previous.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("group", [1, 2])
def test_signal_to_one_rank_saves_and_ends_all(group: int, folders: Path, tmp_path: Path) -> None:
    processes = start(tmp_path, folders, "run", group)
    await_second_checkpoint(tmp_path / "run")
    os.kill(processes[-1].pid, signal.SIGUSR1)
    results = [process.result() for process in processes]
    assert [result.returncode for result in results] == [os.EX_TEMPFAIL] * group
    assert results[0].stderr.startswith("Stopped by SIGUSR1 after")
    assert not any(result.stderr for result in results[1:])


def test_four_ranks_continue_to_the_same_bits(undisturbed: Undisturbed, folders: Path, tmp_path: Path) -> None:
    """The sums of four gradients depend on their order, which has to survive a stop."""
    processes = start(tmp_path, folders, "run", 4)
    await_second_checkpoint(tmp_path / "run")
    os.kill(processes[2].pid, signal.SIGTERM)
    assert [process.result().returncode for process in processes] == [os.EX_TEMPFAIL] * 4
    finish(tmp_path, folders, "run", 4)
    assert outcome(tmp_path / "run") == undisturbed(4)[0]


def test_every_part_of_a_recipe_continues_to_the_same_bits(folders: Path, tmp_path: Path) -> None:
    """Moving average, AdamW, mixing and augmentation, killed after the second checkpoint."""

    def begin(run: str) -> Process:
        return Process("train.py", arguments(folders, *COMMON, *EVERYTHING, f"run.dir={run}"), tmp_path, {})

    straight = begin("straight")
    assert straight.result().returncode == 0
    killed = begin("killed")
    await_second_checkpoint(tmp_path / "killed")
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.result().returncode == -signal.SIGKILL
    assert begin("killed").result().returncode == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "straight")
    record = json.loads((tmp_path / "killed" / "record.json").read_text())
    assert record["weights"] == "moving average"
    assert "train_mixed_top1" in record["history"][-1]


def test_a_run_that_other_code_began_says_so(folders: Path, tmp_path: Path) -> None:
    (process,) = start(tmp_path, folders, "run")
    await_second_checkpoint(tmp_path / "run")
    os.kill(process.pid, signal.SIGTERM)
    assert process.result().returncode == os.EX_TEMPFAIL
    file = tmp_path / "run" / "record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"code_revision": "before", "threads": 7}))
    (process,) = start(tmp_path, folders, "run")
    assert "had other values of code_revision, threads; the record contains them too" in process.result().stdout
    record = json.loads(file.read_text())
    assert [(origin["code_revision"], origin["threads"]) for origin in record["earlier_origins"]] == [("before", 7)]
    assert record["code_revision"] != "before"


def test_a_checkpoint_that_does_not_fit_is_one_line(folders: Path, tmp_path: Path) -> None:
    (process,) = start(tmp_path, folders, "run")
    await_second_checkpoint(tmp_path / "run")
    os.kill(process.pid, signal.SIGTERM)
    assert process.result().returncode == os.EX_TEMPFAIL
    file = tmp_path / "run" / "checkpoint" / "last.pt"
    state = checkpoint.load(file)
    for part in ("model", "optimizer"):
        lacking = dict(list(state[part].items())[:-1])
        checkpoint.save({**state, part: lacking}, file)
        (process,) = start(tmp_path, folders, "run")
        assert_one_line(process.result(), "The checkpoint in run/checkpoint does not fit this network (")


def die_before_the_epoch_is_logged() -> None:
    from engine.training.trainer import Trainer

    Trainer.end_epoch = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign, assignment]


def test_an_epoch_that_was_trained_before_a_resume_has_no_speed(folders: Path, tmp_path: Path) -> None:
    (killed,) = start(tmp_path, folders, "run", prepare=die_before_the_epoch_is_logged)
    assert killed.result().returncode == -signal.SIGKILL
    (process,) = start(tmp_path, folders, "run")
    (line,) = [line for line in process.result().stdout.splitlines() if line.startswith("epoch 1/3")]
    assert "train loss" in line
    assert "images/s" not in line
