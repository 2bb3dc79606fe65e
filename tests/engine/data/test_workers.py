"""Worker processes that are signaled, die or fail."""

import multiprocessing
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import cli
from engine.config.data import DataConfig
from engine.data import transforms
from engine.data.datasets import open_dataset
from engine.data.loader import TrainLoader
from engine.errors import UserError
from engine.processes.distributed import ProcessGroup
from engine.processes.signals import SIGNALS
from engine.tasks.classification import TrainSamples
from tests.engine.data.small import config, loader


def test_a_killed_worker_is_named(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transforms, "inspect", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    data = open_dataset(DataConfig("test", "folders", str(folders), 3, None, image_size=32, resize=32))
    loader = TrainLoader(TrainSamples(data.train, 51, 32, 0.5), 8, 51, 1, torch.device("cpu"), ProcessGroup())
    with pytest.raises(SystemExit) as ended, cli.one_line_errors():
        list(loader.epoch(0))
    assert ended.value.code == 2
    assert re.fullmatch(
        r"error: A data loading worker died \(.*\).*; lower runtime\.workers.*\n", capsys.readouterr().err
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_the_file_on_which_a_worker_crashes_is_named(
    workers: int, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a damaged PNG, before the decoder was kept from it."""
    inspect = transforms.inspect

    def crash(path: str, *rest: Any) -> object:
        if path.endswith("class1/3.JPEG"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return inspect(path, *rest)

    monkeypatch.setattr(transforms, "inspect", crash)
    batches = loader(open_dataset(config(folders)), workers).epoch(0)
    with pytest.raises(UserError, match=r"ended by SIGSEGV while it read .*class1/3\.JPEG\. Convert the file"):
        list(batches)


def test_worker_error_is_not_a_dead_worker(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(transforms, "inspect", fail)
    data = open_dataset(DataConfig("test", "folders", str(folders), 3, None, image_size=32, resize=32))
    loader = TrainLoader(TrainSamples(data.train, 51, 32, 0.5), 8, 51, 1, torch.device("cpu"), ProcessGroup())
    with pytest.raises(RuntimeError, match="a fault"), cli.one_line_errors():
        list(loader.epoch(0))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_the_group_ends_no_worker(number: signal.Signals, folders: Path) -> None:
    batches = loader(open_dataset(config(folders)), workers=2, batch_size=2).epoch(0)
    next(batches)
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, number)
    assert len(list(batches)) == 23


def test_dead_worker_is_reported_by_the_loader(folders: Path) -> None:
    batches = loader(open_dataset(config(folders)), workers=1, batch_size=2).epoch(0)
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    worker.kill()
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # where torch would raise
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(batches)
