"""Signals to a whole process group, as schedulers, torchrun and terminals send them, at any moment of a run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import arguments
from tests.networks import SMALL_CBAM
from tests.processes import REPOSITORY, free_port

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def start(folders: Path, run: Path, workers: int, ranks: int = 1) -> list[subprocess.Popen[str]]:
    """Start a run, its processes in one group of their own; it writes a checkpoint after every other step."""
    given = arguments(
        folders,
        *(*SMALL_CBAM, "model.weights=null", f"run.dir={run}", f"runtime.workers={workers}"),
        *("run.checkpoint_every_steps=2", "recipe.epochs=3", "recipe.batch_size=8"),
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if ranks > 1:
        environment |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes: list[subprocess.Popen[str]] = []
    for rank in range(ranks):
        processes.append(
            subprocess.Popen(
                [sys.executable, str(REPOSITORY / "train.py"), *given],
                env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                process_group=processes[0].pid if processes else 0,
            )
        )
    return processes


def finish(folders: Path, run: Path, workers: int, ranks: int) -> str:
    """Run to the end; return the digest of the weights."""
    for process in start(folders, run, workers, ranks):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    digest: str = json.loads((run / "record.json").read_text())["weights_sha256"]
    return digest


def stop(folders: Path, run: Path, workers: int, ranks: int, number: signal.Signals, after: float) -> bool:
    """Signal the group after so many seconds; return whether that was before the run ended."""
    processes = start(folders, run, workers, ranks)
    time.sleep(after)
    if all(process.poll() is None for process in processes):
        os.killpg(processes[0].pid, number)
    codes, texts = [], []
    for process in processes:
        _, errors = process.communicate(timeout=120)
        codes.append(process.returncode)
        texts.append(errors)
    assert set(codes) in ({os.EX_TEMPFAIL}, {0}), (codes, texts, after)
    if codes[0] == 0:
        return False
    assert texts[0].count("\n") == 1, texts
    assert texts[0].startswith(f"Stopped by {number.name}"), texts
    assert not any(texts[1:]), texts
    return True


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "ranks"), [(0, 1), (2, 1), (4, 1), (1, 2)])
def test_stopped_at_ten_random_moments(workers: int, ranks: int, folders: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    expected = finish(folders, tmp_path / "straight", workers, ranks)
    seconds = time.monotonic() - started
    moments = random.Random(f"{workers} {ranks}")
    run, stopped, trials = tmp_path / "stopped", 0, 0
    while stopped < 10:
        number, after = SIGNALS[trials % 3], moments.uniform(0.25, seconds)
        stopped += stop(folders, run / str(trials), workers, ranks, number, after)
        assert finish(folders, run / str(trials), workers, ranks) == expected, (number, after)
        trials += 1
    print(f"{workers} workers, {ranks} processes: {stopped} of {trials} stopped, all to the same bits")


def test_a_group_is_stopped_while_it_trains(folders: Path, tmp_path: Path) -> None:
    """SIGTERM reaches the workers, too; none of them ends before the state is saved."""
    processes = start(folders, tmp_path / "run", workers=2)
    last = tmp_path / "run" / "checkpoint" / "last.pt"
    while not last.is_file():
        assert processes[0].poll() is None
        time.sleep(0.02)
    os.killpg(processes[0].pid, signal.SIGTERM)
    _, errors = processes[0].communicate(timeout=60)
    assert processes[0].returncode == os.EX_TEMPFAIL, errors
    assert errors.startswith("Stopped by SIGTERM ")
    assert errors.count("\n") == 1, errors
