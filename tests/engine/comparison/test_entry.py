"""The networks of a comparison."""

import pytest

import models
from engine.comparison.entry import TableEntry
from engine.config.data import DataConfig
from engine.tasks.classification import Classification


@pytest.mark.parametrize(("size", "expected"), [(224, 30.242), (160, None)])
def test_published_errors_need_the_published_size(size: int, expected: float | None) -> None:
    data = DataConfig("imagenet", "folders", "nowhere", 1000, image_size=size)
    entry = models.published_entry("resnet18", "IMAGENET1K_V1")
    task, net = Classification(data), models.build("resnet18")
    preprocessing = task.preprocessing(entry.transforms(), unmodified=True)
    published = TableEntry.of_published("resnet18", net, data, preprocessing, "torchvision IMAGENET1K_V1", entry)
    assert published.row["published"] == (None if expected is None else pytest.approx(expected))
