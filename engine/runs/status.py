"""The state of a run, read from its small files: no checkpoint is opened, and nothing is changed."""

import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.logging import duration
from engine.runs.directory import RunDirectory

HEADER = ("run", "state", "epoch", "metric", "last", "best", "time left", "host or job", "checkpoint")
# On a file system without locks across machines, a run on another machine is running if it has reported since.
_REPORTS_WITHIN = 900.0  # seconds; a running job reports every 5 minutes, but not in a long validation


@dataclass(frozen=True)
class RunStatus:
    """The state of a run.

    Attributes:
        state: `finished`, `running`, `stopped` (by a signal), `failed`, `damaged` or `missing`.
        cells: texts for `HEADER`, without the first two.
        problem: description of the damage; empty if there is none.
        reason: why a failed run failed.
    """

    directory: Path
    state: str
    cells: Sequence[str] = ("-",) * (len(HEADER) - 2)
    problem: str = ""
    reason: str = ""


def find_runs(root: Path) -> list[Path]:
    """Return the run directories below a folder, in natural order: seed 9 is before seed 10."""
    found = set()
    for folder, subfolders, files in os.walk(root):
        if {"config.yaml", "record.json"} & set(files) and "checkpoint" in subfolders:
            found.add(Path(folder))
    return sorted(found, key=lambda path: [_natural(part) for part in path.parts])


def status(directory: Path) -> RunStatus:
    """Return the state of the run in a directory, which need not exist."""
    run = RunDirectory(directory)
    problem = run.problem or _lost_file(run)
    if problem:
        return RunStatus(directory, "damaged", problem=problem)
    if not run.config_file.is_file():
        return RunStatus(directory, "missing")
    progress = run.read_progress()
    if run.finished:
        record = run.record()
        metric = next(
            (key.removeprefix("best_") for key in record if key.startswith("best_") and key != "best_epoch"), ""
        )
        epochs = f"{record['epochs']}/{record['epochs']}"
        values = (metric or "-", _number(record.get(metric)), _number(record.get(f"best_{metric}")))
        return RunStatus(directory, "finished", (epochs, *values, "-", _place(run), _age(run)))
    is_running = run.is_locked or _reports_from_elsewhere(run, progress)
    values = (str(progress.get("metric", "-")), _number(progress.get("last")), _number(progress.get("best")))
    cells = (_position(progress), *values, _time_left(progress, is_running), _place(run), _age(run))
    state, reason = ("running", "") if is_running else _ended(run, progress)
    return RunStatus(directory, state, cells, reason=reason)


def _lost_file(run: RunDirectory) -> str:
    """Return the reason why a run with a checkpoint cannot be used before it is repaired; empty if there is none."""
    if not run.has_checkpoint:
        return ""
    for file, is_expected in ((run.record_file, True), (run.predictions, run.finished)):
        if is_expected and not file.is_file():
            return f"{file} is missing; python scripts/repair_run.py {run.directory} writes it again."
    return ""


def _ended(run: RunDirectory, progress: dict[str, Any]) -> tuple[str, str]:
    """Return whether a run that is not running was stopped or failed, and the reason of a failure if it is known."""
    end = progress.get("end", "stopped")  # runs of earlier versions do not say
    if end == "failed":
        return "failed", str(progress.get("reason", ""))
    is_here = run.holder[0].partition(" on ")[2] == socket.gethostname()  # elsewhere, it may only be silent
    if end is None and is_here:
        reason = "Its process ended without a message: it was killed, or out of memory"
        return "failed", f"{reason} ({run.log_file}). The same command resumes it."
    return "stopped", ""


def _reports_from_elsewhere(run: RunDirectory, progress: dict[str, Any]) -> bool:
    host = run.holder[0].partition(" on ")[2]
    return host not in ("", socket.gethostname()) and time.time() - progress.get("time", 0) < _REPORTS_WITHIN


def _position(progress: dict[str, Any]) -> str:
    if "steps_per_epoch" not in progress:  # it failed before the first report, or has none
        return "-"
    step = f" +{progress['step'] / progress['steps_per_epoch']:.0%}" if progress["step"] else ""
    return f"{progress['epoch']}/{progress['epochs']}{step}"


def _time_left(progress: dict[str, Any], is_running: bool) -> str:
    seconds = progress.get("seconds_left")
    if seconds is None:
        return "-"
    if is_running:
        seconds -= time.time() - progress["time"]
    return duration(max(0.0, seconds))


def _place(run: RunDirectory) -> str:
    process, job = run.holder
    host = process.partition(" on ")[2]
    return f"{job.partition(',')[0]} on {host}" if job else host or "-"


def _age(run: RunDirectory) -> str:
    for file in (run.last, run.previous):
        if file.is_file():
            return f"{duration(max(0.0, time.time() - file.stat().st_mtime))} ago"
    return "-"


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else "-"


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]
