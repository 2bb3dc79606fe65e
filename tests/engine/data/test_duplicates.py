"""Images that training and validation share."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.data.datasets import open_dataset
from engine.data.duplicates import SharedImages, shared_images
from tests.engine.data.small import config


def split(root: Path, contents: dict[str, bytes]) -> tuple[np.ndarray, np.ndarray]:
    for name, content in contents.items():
        (root / name).write_bytes(content)
    return np.array([name.encode() for name in contents]), np.array([len(content) for content in contents.values()])


def test_files_of_equal_content_are_found(tmp_path: Path) -> None:
    long = b"x" * 5000
    train = split(tmp_path, {"a": b"one", "b": b"two", "c": long + b"1", "d": long + b"2", "e": b""})
    val = split(tmp_path, {"f": b"two", "g": b"tow", "h": long + b"2", "i": b"three", "j": b""})
    assert shared_images(tmp_path, train, val) == SharedImages([("f", "b"), ("h", "d")], compared=True)


def test_of_many_files_the_rarest_sizes_are_compared(tmp_path: Path) -> None:
    train = split(tmp_path, {f"t{i}": b"%03d" % i for i in range(10)} | {"rare": b"rare"})
    val = split(tmp_path, {f"v{i}": b"%03d" % i for i in range(10)} | {"copy": b"rare"})
    found = shared_images(tmp_path, train, val, most=5)
    assert found == SharedImages([("copy", "rare")], compared=False)
    assert str(found).startswith("Validation images that are training images too: at least 1 (first: copy is rare).")
    assert len(shared_images(tmp_path, train, val).pairs) == 11


def test_a_data_set_reports_them_once(folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "copy"
    shutil.copytree(folders, root)
    for image in (root / "val").rglob("*.JPEG"):  # otherwise the same as in train/
        image.write_bytes(image.read_bytes() + b"\0")
    shutil.copy(root / "train" / "class2" / "1.JPEG", root / "val" / "class0" / "copy.JPEG")
    open_dataset(config(root))
    lines = [record.getMessage() for record in caplog.records if "training images too" in record.getMessage()]
    assert len(lines) == 1
    assert "val/class0/copy.JPEG is train/class2/1.JPEG" in lines[0]
