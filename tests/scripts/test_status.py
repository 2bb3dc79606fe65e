"""scripts/status.py: every run in one line."""

import json
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import UserError
from engine.processes.signals import Interrupted
from engine.runs.directory import RunDirectory
from engine.runs.status import HEADER, RunStatus, find_runs, status
from tests.commands import RECORD, arguments, assert_one_line
from tests.conftest import Command
from tests.engine.runs.test_directory import CONFIG
from tests.networks import SMALL
from tests.processes import Process

PROGRESS = {"epoch": 3, "step": 25, "epochs": 10, "steps_per_epoch": 50, "seconds_left": 6020.0, "metric": "top1"}


def cell(found: RunStatus, name: str) -> str:
    return found.cells[HEADER.index(name) - 2]


def started(folder: Path) -> RunDirectory:
    run = RunDirectory(folder)
    run.start(CONFIG)
    run.last.write_bytes(b"")
    run.write_record({**RECORD, "status": "running"})
    run.write_progress({**PROGRESS, "time": time.time() - 600, "last": 55.5, "best": 60.125})
    return run


def test_a_stopped_run_tells_what_it_still_needs(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    run.lock_file.write_text("process 7 on node3\njob 42, start 1\n")
    run.write_progress({**PROGRESS, "time": time.time() - 7200, "last": 55.5, "best": 60.125})
    os.utime(run.last, (0, time.time() - 7200))
    found = status(run.directory)
    assert found.state == "stopped"  # a lock does not count for the process that holds it
    assert [cell(found, name) for name in HEADER[2:]] == [
        *("3/10 +50%", "top1", "55.50", "60.12", "1 h 40 min", "job 42 on node3", "2 h 0 min ago"),
    ]


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    """As does one whose process is gone without a word; a later start forgets the earlier end."""
    run = started(tmp_path / "run")
    with pytest.raises(ValueError, match="of range"), run.noting_its_end():
        raise ValueError("index 7 is out\nof range")
    run.lock_file.write_text(f"process 7 on {socket.gethostname()}\n\n")
    os.utime(run.last, (0, time.time() - 7200))
    found = status(run.directory)
    assert (found.state, found.reason) == ("failed", "index 7 is out of range")
    assert cell(found, "epoch") == "3/10 +50%"
    with pytest.raises(Interrupted), run.noting_its_end():
        raise Interrupted("Stopped by SIGTERM.")
    assert (status(run.directory).state, status(run.directory).reason) == ("stopped", "")
    run.write_progress({**PROGRESS, "time": time.time(), "end": None})
    assert status(run.directory).state == "failed"
    assert "killed, or out of memory" in status(run.directory).reason
    unstarted = RunDirectory(run.directory)
    with pytest.raises(UserError), unstarted.noting_its_end():
        raise UserError("is being written by process 7")
    assert "killed" in status(run.directory).reason  # another process's end is not noted
    run.progress_file.write_text('{"end": "failed", "reason": "no memory"}')  # before the first report
    assert status(run.directory).reason == "no memory"


def test_a_run_goes_on_if_its_progress_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = started(tmp_path / "run")
    run.progress_file.unlink()
    run.progress_file.mkdir()  # as a full disk, it cannot be replaced
    run.write_progress(PROGRESS)
    assert "progress.json cannot be written" in caplog.text


def test_a_run_on_another_machine_runs_while_it_reports(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    run.lock_file.write_text("process 7 on node3\n\n")
    assert (status(run.directory).state, cell(status(run.directory), "time left")) == ("running", "1 h 30 min")
    run.write_progress({**PROGRESS, "time": time.time() - 3600})
    assert status(run.directory).state == "stopped"


def test_finished_missing_and_damaged_runs(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    run.write_record({**RECORD, "epochs": 10, "top1": 71.0, "best_top1": 72.5, "best_epoch": 8})
    run.predictions.touch()
    found = status(run.directory)
    assert (found.state, [cell(found, name) for name in ("epoch", "last", "best", "time left")]) == (
        "finished",
        ["10/10", "71.00", "72.50", "-"],
    )
    assert status(tmp_path / "nowhere").state == "missing"
    for file in (run.predictions, run.record_file):
        content = file.read_bytes()
        file.unlink()
        lost = status(run.directory)
        assert (lost.state, lost.problem) == (
            "damaged",
            f"{file} is missing; python scripts/repair_run.py {run.directory} writes it again.",
        )
        file.write_bytes(content)
    run.record_file.write_text("{")
    damaged = status(run.directory)
    assert damaged.state == "damaged"
    assert "record.json is not a record" in damaged.problem


def test_runs_are_found_in_natural_order(tmp_path: Path) -> None:
    for name in ("resnet101/seed51", "resnet18/seed10", "resnet18/seed9"):
        RunDirectory(tmp_path / name).start(replace(CONFIG))
    (tmp_path / "multirun").mkdir()
    (tmp_path / "multirun" / "config.yaml").touch()  # no run
    names = [str(run.relative_to(tmp_path)) for run in find_runs(tmp_path)]
    assert names == ["resnet18/seed9", "resnet18/seed10", "resnet101/seed51"]


def test_a_run_is_seen_while_it_runs_and_after_its_stop(command: Command, folders: Path, tmp_path: Path) -> None:
    given = arguments(folders, *SMALL, "model.weights=null", "recipe.epochs=200", "run.root=runs")
    process = Process("train.py", given, tmp_path, {})
    while process.wait(0.02) is None and "epoch 1/200; " not in process.output.read_text():
        pass
    running = command("scripts/status.py")
    os.kill(process.pid, signal.SIGTERM)
    process.result()
    stopped = command("scripts/status.py", "runs/small")
    for done, state in ((running, "running"), (stopped, "stopped")):
        assert done.returncode == 0, done.stderr
        header, line, total = done.stdout.splitlines()
        assert header.split()[:3] == ["run", "state", "epoch"]
        assert line.startswith(f"runs/small/tests.networks.small/seed51  {state}  ")
        assert "/200" in line
        assert total == f"1 {state}"


def test_a_sweep_names_what_is_missing_and_a_damaged_run_does_not_hide_the_others(
    command: Command, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "pretrained" / "shapes" / "resnet18"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / "record.json").write_text(json.dumps({**RECORD, "classes": 4}))
    done = command("scripts/status.py", "sweep=demo")
    assert_one_line(done, "1 of 3 runs cannot be used. runs/pretrained/shapes/resnet18/config.yaml")
    assert done.stdout.splitlines()[-1] == "2 missing, 1 damaged"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [([], "There is no folder"), (["a", "b"], "Give one folder of runs"), (["sweep=nothing"], "Give one sweep")],
)
def test_arguments_that_name_nothing(given: list[str], complaint: str, command: Command) -> None:
    assert_one_line(command("scripts/status.py", *given), complaint)
