"""The generated data set."""

from pathlib import Path

import pytest

from engine.data import synthetic
from engine.data.datasets import open_dataset
from tests.engine.data.small import config


def test_shapes_are_generated_once_and_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "TRAIN_PER_CLASS", 2)
    monkeypatch.setattr(synthetic, "VAL_PER_CLASS", 1)
    first = open_dataset(config(tmp_path / "a", total_classes=10, layout="shapes"))
    again = open_dataset(config(tmp_path / "b", total_classes=10, layout="shapes"))
    assert (len(first.train), len(first.val)) == (20, 10)
    assert first.classes[:2] == ["cross_checked", "cross_striped"]
    assert first.fingerprint == again.fingerprint
    assert Path(first.train.path(0)).read_bytes() == Path(again.train.path(0)).read_bytes()
    train, val = (Path(split.path(0)).read_bytes() for split in (first.train, first.val))
    assert train != val
