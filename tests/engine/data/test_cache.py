"""The cache of decoded images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.config import DataConfig
from engine.data import transforms
from engine.data.datasets import Dataset, Split, open_dataset
from engine.data.loader import Batch, TrainLoader
from engine.distributed import ProcessGroup
from engine.tasks.classification import TrainSamples
from tests.conftest import write_image

CPU = torch.device("cpu")


def config(root: Path, total_classes: int = 3, layout: str = "folders", classes: int | None = None) -> DataConfig:
    return DataConfig("test", layout, str(root), total_classes, classes, image_size=32, resize=32)


def loader(data: Dataset, workers: int, seed: int = 51, batch_size: int = 8) -> TrainLoader:
    return TrainLoader(TrainSamples(data.train, seed, 32, 0.25), batch_size, seed, workers, CPU, ProcessGroup())


def equal(one: Batch, other: Batch) -> bool:
    pairs = zip((*one.views, *one.targets, one.indices), (*other.views, *other.targets, other.indices), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_changes_no_batch_and_reads_each_image_once(
    workers: int, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_dataset(config(folders))
    plain = loader(data, workers=0)
    expected = [list(plain.epoch(epoch)) for epoch in range(2)]
    split = data.train.cached()
    cached = loader(replace(data, train=split), workers)
    for epoch in range(2):
        for batch, correct in zip(cached.epoch(epoch), expected[epoch], strict=True):
            assert equal(batch, correct)
    images = [data.train.image(i) for i in range(len(split))]
    monkeypatch.setattr(transforms, "decode", None)
    for i in range(len(split)):
        assert torch.equal(split.image(i), images[i])


def test_an_image_larger_than_those_looked_at_is_not_kept_but_right(tmp_path: Path) -> None:
    sizes = 200 * [(8, 8)]
    sizes[:3] = [(30, 20), (31, 20), (20, 30)]  # of 200 the first, the last and others between are looked at
    for number, (height, width) in enumerate(sizes):
        write_image(tmp_path / f"{number}.jpeg", 90, seed=number, height=height, width=width)
    files = np.array([f"{number}.jpeg".encode() for number in range(200)])
    split = Split(tmp_path, files, np.zeros(200, np.int64))
    cached = split.cached()
    for _ in range(2):
        for i in range(200):
            assert torch.equal(cached.image(i), split.image(i))
    assert cached.cache is not None
    assert [i for i in range(200) if cached.cache.get(i) is None] == [1]
