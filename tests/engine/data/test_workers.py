"""Worker processes that die or fail."""

import os
import re
import signal
from pathlib import Path

import pytest
import torch

from engine import cli
from engine.config import DataConfig
from engine.data import transforms
from engine.data.datasets import open_dataset
from engine.data.loader import TrainLoader
from engine.distributed import ProcessGroup
from engine.tasks.classification import TrainSamples


def test_a_killed_worker_is_named(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transforms, "decode", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    data = open_dataset(DataConfig("test", "folders", str(folders), 3, None, image_size=32, resize=32))
    loader = TrainLoader(TrainSamples(data.train, 51, 32, 0.5), 8, 51, 1, torch.device("cpu"), ProcessGroup())
    with pytest.raises(SystemExit) as ended, cli.one_line_errors():
        list(loader.epoch(0))
    assert ended.value.code == 2
    assert re.fullmatch(
        r"error: A data loading worker died \(.*\).*; lower runtime\.workers.*\n", capsys.readouterr().err
    )


def test_worker_error_is_not_a_dead_worker(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(transforms, "decode", fail)
    data = open_dataset(DataConfig("test", "folders", str(folders), 3, None, image_size=32, resize=32))
    loader = TrainLoader(TrainSamples(data.train, 51, 32, 0.5), 8, 51, 1, torch.device("cpu"), ProcessGroup())
    with pytest.raises(RuntimeError, match="a fault"), cli.one_line_errors():
        list(loader.epoch(0))
