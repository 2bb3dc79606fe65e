"""The stored file list of a large data set."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.data import file_index
from engine.data.datasets import open_dataset
from tests.engine.data.small import config


@pytest.fixture
def root(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a data set that counts as large, its list stored."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_index, "KEEP_FROM", 40)
    shutil.copytree(folders, tmp_path / "copy")
    open_dataset(config(tmp_path / "copy"))
    return tmp_path / "copy"


def stored(root: Path) -> Path:
    (file,) = (root.parent / "cache" / "cbam").iterdir()
    return file


def test_a_stored_list_is_used(root: Path, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_dataset(config(folders))
    monkeypatch.setattr(file_index, "_read", None)  # nothing is read again
    again = open_dataset(config(root))
    assert again.fingerprint == first.fingerprint
    for one, other in ((first.train, again.train), (first.val, again.val)):
        assert np.array_equal(one.files, other.files)
        assert np.array_equal(one.labels, other.labels)


def test_a_changed_folder_is_read_again(root: Path) -> None:
    (root / "train" / "class1" / "3.JPEG").unlink()
    assert len(open_dataset(config(root)).train) == 47


@pytest.mark.parametrize("damage", ["zeroed tail", "empty", "list", "labels"])
def test_a_damaged_list_is_built_again(damage: str, root: Path) -> None:
    file = stored(root)
    content = file.read_bytes()
    if damage == "zeroed tail":
        file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "list":
        np.savez(file, facts=np.frombuffer(b"[]", dtype=np.uint8))
    else:
        with np.load(file) as arrays:
            np.savez(file, **{**arrays, "labels0": np.zeros(48, np.int64)})
    data = open_dataset(config(root))
    assert np.bincount(data.train.labels).tolist() == [16, 16, 16]
    assert stored(root).read_bytes()[:2] == b"PK"


def test_without_a_home_nothing_is_stored(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert len(open_dataset(config(root)).train) == 48


def test_changed_files_of_a_small_data_set_are_seen(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_dataset(config(folders))
    assert not (tmp_path / "cache").exists()
