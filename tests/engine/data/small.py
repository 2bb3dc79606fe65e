"""A small data set, and its training batches."""

from pathlib import Path

import torch

from engine.config.data import DataConfig
from engine.data.datasets import Dataset
from engine.data.loader import Batch, TrainLoader
from engine.processes.distributed import ProcessGroup
from engine.tasks.classification import TrainSamples

CPU = torch.device("cpu")


def config(root: Path, total_classes: int = 3, layout: str = "folders", classes: int | None = None) -> DataConfig:
    return DataConfig("test", layout, str(root), total_classes, classes, image_size=32, resize=32)


def loader(data: Dataset, workers: int, seed: int = 51, batch_size: int = 8) -> TrainLoader:
    return TrainLoader(TrainSamples(data.train, seed, 32, 0.25), batch_size, seed, workers, CPU, ProcessGroup())


def equal(one: Batch, other: Batch) -> bool:
    pairs = zip((*one.views, *one.targets, one.indices), (*other.views, *other.targets, other.indices), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
