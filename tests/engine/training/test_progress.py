"""The time left of a run, from a clock that the tests turn."""

import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.config.data import DataConfig
from engine.logging import duration
from engine.tasks.classification import Classification
from engine.training import progress
from engine.training.progress import ProgressReporter, RunClock
from engine.training.trainer import StepTimer, TrainState
from tests.commands import arguments
from tests.processes import Process


class Clock:
    """A clock in seconds that only moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def estimates(epochs: int, steps: int, step: float, end: float, first_step: float) -> list[tuple[float, float]]:
    """Return the fraction done, and the estimated divided by the true time left, after each step of a run."""
    now = Clock()
    clock = RunClock(epochs, steps, val_batches=5, now=now)
    now.seconds += 2 * end  # workers start, caches are empty
    clock.first_validation_ended()
    found = []
    for epoch in range(epochs):
        for number in range(1, steps + 1):
            now.seconds += first_step if (epoch, number) == (0, 1) else step * (1.2 if number % 2 else 0.8)
            clock.step_ended()
            found.append((now.seconds, clock.seconds_left(epoch, number)))
        now.seconds += end
        clock.epoch_ended()
    return [(at / now.seconds, left / (now.seconds - at)) for at, left in found if left is not None]


@pytest.mark.parametrize(
    ("epochs", "steps", "step", "end", "first_step"),
    [
        (10, 50, 1.0, 5.0, 1.0),
        (10, 50, 1.0, 5.0, 60.0),  # torch.compile in the first step
        (90, 20, 0.1, 0.5, 3.0),
        (2, 500, 1.0, 60.0, 20.0),
    ],
)
def test_time_left_is_within_a_quarter_from_the_first_tenth_on(
    epochs: int, steps: int, step: float, end: float, first_step: float
) -> None:
    found = [ratio for done, ratio in estimates(epochs, steps, step, end, first_step) if done >= 0.1]
    assert len(found) > epochs * steps * 0.8
    assert 0.75 < min(found) <= max(found) < 1.25


@pytest.mark.parametrize("steps", [10, 100])
def test_time_left_follows_a_machine_that_becomes_slower(steps: int) -> None:
    now = Clock()
    clock = RunClock(epochs=10, steps_per_epoch=steps, val_batches=0, now=now)
    for step in (1.0, 3.0):
        for _ in range(5 * steps):
            now.seconds += step
            clock.step_ended()
        assert clock.seconds_left(9, 0) == pytest.approx(steps * step)


def test_a_resumed_run_estimates_its_validation_until_it_has_had_one() -> None:
    now = Clock()
    clock = RunClock(epochs=2, steps_per_epoch=10, val_batches=6, now=now)
    assert clock.seconds_left(0, 5) is None
    for _ in range(3):
        now.seconds += 1
        clock.step_ended()
    assert clock.seconds_left(1, 8) == pytest.approx(2 + 6 / 3)
    now.seconds += 7
    clock.epoch_ended()
    assert clock.seconds_left(1, 8) == pytest.approx(2 + 7)


def test_a_duration_has_its_two_largest_units() -> None:
    seconds = (0.2, 45, 59.7, 200, 3599, 6000, 86400, 183600)
    assert [duration(value) for value in seconds] == [
        *("0 s", "45 s", "1 min 0 s", "3 min 20 s", "59 min 59 s", "1 h 40 min", "1 d 0 h", "2 d 3 h"),
    ]


def seconds_of_lines(steps: int, step_seconds: float, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, bool]]:
    """Return when a run of one epoch logs its lines of progress, and whether they have the time left."""
    now, state = Clock(), TrainState(torch.zeros(3))
    task = Classification(DataConfig(total_classes=3))
    trainer: Any = SimpleNamespace(
        task=task, state=state, timer=StepTimer(), learning_rate=0.1, device=torch.device("cpu"), steps_done=0
    )
    trainer.mean_metrics = lambda: {"loss": 1.0, "top1": 50.0, "top5": 100.0}
    run: Any = SimpleNamespace(writes=True, write_progress=lambda _: None)
    reporter = ProgressReporter(trainer, run, RunClock(1, steps, val_batches=0, now=now))
    lines: list[tuple[float, bool]] = []
    monkeypatch.setattr(progress, "log_progress", lambda text: lines.append((now.seconds, "left" in text)))
    for _ in range(steps):
        now.seconds += step_seconds
        state.step = trainer.steps_done = trainer.steps_done + 1
        reporter.step_ended()
    return lines


def test_the_first_line_comes_after_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = seconds_of_lines(10_000, 1.0, monkeypatch)
    assert lines[:3] == [(30, True), (330, True), (630, True)]
    assert seconds_of_lines(10_000, 40.0, monkeypatch)[:3] == [(40, False), (80, True), (400, True)]
    assert seconds_of_lines(100, 1.0, monkeypatch)[:3] == [(5, True), (10, True), (15, True)]


LINE = re.compile(
    r"^\d\d:\d\d:\d\d epoch 1/3, step 2/3: loss \d\.\d+, top-1 \d+\.\d+%, .*lr [\d.e-]+; \d+ images/s, "
    r"waiting for data \d+%, memory \d+\.\d GiB; epoch takes \d+ s, run \d+ s left$",
    re.MULTILINE,
)


def test_a_job_log_tells_speed_and_time_left_and_why_the_run_stopped(folders: Path, tmp_path: Path) -> None:
    given = arguments(folders, "model=mobilenet_v3_small_cbam", "model.weights=null", "recipe.epochs=3", "run.dir=run")
    process = Process("train.py", [*given, "recipe.attention_lr_factor=4"], tmp_path, {})
    while process.wait(0.02) is None and "epoch 2/3, step 1/3" not in process.output.read_text():
        pass
    os.kill(process.pid, signal.SIGTERM)
    result = process.result()
    assert result.returncode == os.EX_TEMPFAIL
    assert LINE.search(result.stdout), result.stdout
    assert re.search(r"^epoch 1/3; train loss .*; run \d+ s left$", result.stdout, re.MULTILINE)
    assert "recipe finetune: epochs 3, batch 16, peak lr 0.01 (4 times that for attention), seed 51" in result.stdout
    assert "warning: 48 training images and recipe.batch_size=16 are 3 steps per epoch, 9 in all." in result.stdout
    assert "set recipe.batch_size=4 and scale recipe.lr with it, or raise recipe.epochs." in result.stdout
    assert "warning: recipe=finetune is for pretrained networks, but this one has random weights." in result.stdout
    last = (tmp_path / "run" / "log.txt").read_text().splitlines()[-1]
    assert last.split(" ", 2)[2].startswith("Stopped by SIGTERM ")
    assert result.stderr == f"{last.split(' ', 2)[2]} Run the same command again to resume.\n"
