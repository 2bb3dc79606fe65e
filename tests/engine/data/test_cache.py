"""The cache of decoded images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.data import transforms
from engine.data.datasets import Split, open_dataset
from tests.conftest import write_image
from tests.engine.data.small import config, equal, loader

CPU = torch.device("cpu")


@pytest.mark.parametrize("workers", [0, 2])
def test_cache_changes_no_batch(workers: int, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_oversized_image_is_not_cached_but_right(tmp_path: Path) -> None:
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
