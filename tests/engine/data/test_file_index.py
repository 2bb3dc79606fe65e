"""The stored file list of a large data set."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.config import DataConfig
from engine.data import file_index
from engine.data.datasets import open_dataset


def config(root: Path, total_classes: int = 3, layout: str = "folders", classes: int | None = None) -> DataConfig:
    return DataConfig("test", layout, str(root), total_classes, classes, image_size=32, resize=32)


def test_the_list_of_a_large_data_set_is_kept_until_a_folder_changes(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_index, "KEEP_FROM", 60)
    root = tmp_path / "copy"
    shutil.copytree(folders, root)
    first = open_dataset(config(root))
    monkeypatch.setattr(file_index, "_read", None)  # nothing is read again
    again = open_dataset(config(root))
    assert again.fingerprint == first.fingerprint
    assert isinstance(again.train.files, np.memmap)
    for one, other in ((first.train, again.train), (first.val, again.val)):
        assert np.array_equal(one.files, other.files)
        assert np.array_equal(one.labels, other.labels)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (root / "train" / "class1" / "3.JPEG").unlink()
    assert len(open_dataset(config(root)).train) == 47
    for file in (tmp_path / "cache").rglob("*.npy"):
        file.write_bytes(b"damaged")
    assert len(open_dataset(config(root)).train) == 47


def test_of_a_small_data_set_files_that_changed_in_place_are_seen(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_dataset(config(folders))
    assert not (tmp_path / "cache").exists()
