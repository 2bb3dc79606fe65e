"""Findings of the images that were read, by any process, in one line each."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest

from engine.data.datasets import open_dataset
from tests.engine.data.small import config, loader


@pytest.fixture
def rotated(folders: Path, tmp_path: Path) -> Path:
    """Two of the training images have an EXIF orientation."""
    root = tmp_path / "copy"
    shutil.copytree(folders, root)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    for name in ("class0/3.JPEG", "class2/5.JPEG"):
        PIL.Image.open(root / "train" / name).save(root / "train" / name, exif=exif)
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_orientations_are_counted_once(workers: int, rotated: Path, caplog: pytest.LogCaptureFixture) -> None:
    batches = loader(open_dataset(config(rotated)), workers)
    caplog.clear()
    for epoch in range(3):
        list(batches.epoch(epoch))
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith(
        f"2 of 48 images read (first: {rotated}/train/class0/3.JPEG) have an EXIF orientation, which"
    )
    assert "is ignored, as for torchvision's published accuracies; data.exif_orientation=true" in line


def test_a_key_turns_images_upright(rotated: Path) -> None:
    as_stored = open_dataset(config(rotated)).train
    upright = open_dataset(replace(config(rotated), exif_orientation=True)).train
    number = as_stored.files.tolist().index(b"train/class0/3.JPEG")
    assert [tuple(split.image(number).shape) for split in (as_stored, upright)] == [(3, 40, 48), (3, 48, 40)]
    (line,) = upright.new_findings()
    assert line.endswith("have an EXIF orientation and are turned upright.")
    assert upright.new_findings() == []


def test_images_without_findings_have_no_lines(folders: Path) -> None:
    train = open_dataset(config(folders)).train
    train.image(0)
    assert train.new_findings() == []
