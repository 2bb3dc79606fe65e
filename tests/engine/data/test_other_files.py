"""Files and folders that programs leave beside the images, and images of other formats."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.data.datasets import open_dataset
from engine.errors import UserError
from tests.engine.data.small import config


@pytest.fixture
def root(folders: Path, tmp_path: Path) -> Path:
    shutil.copytree(folders, tmp_path / "copy")
    return tmp_path / "copy"


def copy_image(root: Path, to: str) -> Path:
    (root / to).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / "train" / "class0" / "0.JPEG", root / to)
    return root / to


@pytest.mark.parametrize(
    "extra",
    [
        "train/class1/.ipynb_checkpoints/0-checkpoint.JPEG",
        "val/class1/.ipynb_checkpoints/0-checkpoint.JPEG",
        "train/class1/@eaDir/0.JPEG/SYNOPHOTO_THUMB_M.jpg",
        "train/class1/.thumbnails/0.jpg",
        "train/class1/.AppleDouble/0.JPEG",
        "train/class1/.Trash-1000/files/0.JPEG",
        "train/class1/__MACOSX/0.JPEG",
        "train/class1/._0.JPEG",
        "train/@eaDir/class1/0.JPEG",
        "train/__MACOSX/class1/0.JPEG",
        "val/lost+found/0.JPEG",
        "train/.ipynb_checkpoints/0.JPEG",
    ],
)
def test_what_programs_leave_is_skipped_with_a_line(
    extra: str, root: Path, folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy_image(root, extra)
    data = open_dataset(config(root))
    assert data.fingerprint == open_dataset(config(folders)).fingerprint
    assert "1 file or folder of other programs skipped (first: " in caplog.text


def test_files_that_are_no_images_are_skipped_silently(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "labels.txt", "0.xml", "checksums"):
        (root / "train" / "class0" / name).write_bytes(b"not an image")
    assert len(open_dataset(config(root)).train) == 48
    assert "skipped" not in caplog.text


@pytest.mark.parametrize("extension", [".jfif", ".jpe", ".webp", ".ppm", ".tga", ".heif", ".jxl", ".JP2", ".pic", ""])
def test_images_of_other_formats_stop_unless_left_out(
    extension: str, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(5):
        image = root / "train" / "class1" / f"{i}.JPEG"
        image.rename(image.with_suffix(extension))
    kind = extension.lower() or "without extension"
    line = rf"5 images have extensions that are not read: 5 {kind} \(first: .*class1/0{extension}\)"
    with pytest.raises(UserError, match=rf"{line}\. Rename JPEG files .*data\.skip_other_formats=true"):
        open_dataset(config(root))
    assert len(open_dataset(replace(config(root), skip_other_formats=True)).train) == 43
    assert "They are left out." in caplog.text


def test_every_image_of_a_class_in_another_format_is_named_as_such(root: Path) -> None:
    for image in (root / "val" / "class1").iterdir():
        image.rename(image.with_suffix(".ppm"))
    with pytest.raises(UserError, match=r"7 images have extensions that are not read: 7 \.ppm"):
        open_dataset(config(root))


def test_a_folder_that_is_no_class_is_named(root: Path) -> None:
    copy_image(root, "train/backup/0.JPEG")
    with pytest.raises(UserError, match=r"contains 4 class folders, not 3; backup is not in .*val; move what is not a"):
        open_dataset(config(root))


def test_images_beside_the_class_folders_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train/one.JPEG", "train/two.png", "train/._one.JPEG", "val/list.txt"):
        copy_image(root, name)
    assert len(open_dataset(config(root)).train) == 48
    assert f"2 images are in no class folder and left out (first: {root}/train/one.JPEG)." in caplog.text


def test_names_in_two_unicode_forms_are_told_apart(root: Path) -> None:
    (root / "train" / "class0").rename(root / "train" / "caf\u00e9")
    (root / "val" / "class0").rename(root / "val" / "cafe\u0301")
    with pytest.raises(UserError, match=r"look the same: 'cafe\\u0301', 'caf\\xe9'\. Rename the folders"):
        open_dataset(config(root))


def test_folders_in_capitals_get_advice(root: Path) -> None:
    (root / "train").rename(root / "Train")
    with pytest.raises(UserError, match=r"; rename .*/Train to train\."):
        open_dataset(config(root))


def test_numbered_folders_are_in_numerical_order(root: Path) -> None:
    for split in ("train", "val"):
        for label, name in enumerate(("2", "10", "9")):
            (root / split / f"class{label}").rename(root / split / name)
    data = open_dataset(config(root))
    assert data.classes == ["2", "9", "10"]
    assert Path(data.val.path(20)).parent.name == "10"


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda root: (root / "ILSVRC").mkdir(), "as Kaggle distributes it: python scripts/prepare_imagenet.py"),
        (
            lambda root: ((root / "data").mkdir(), (root / "data/train-00000-of-00294.parquet").touch()),
            "parquet shards",
        ),
        (lambda root: (root / "ILSVRC2012_img_train.tar").touch(), "These are ImageNet's archives"),
        (lambda root: (root / "train.X1").mkdir(), r"The training images are in train\.X1: collect links"),
        (lambda root: (root / "imagenet1k-train-0000.tar").touch(), "unpack the archives into class folders"),
    ],
)
def test_other_layouts_get_advice(make: Callable[[Path], None], hint: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=hint):
        open_dataset(config(tmp_path))


def test_a_folder_named_validation_gets_advice(root: Path) -> None:
    (root / "val").rename(root / "validation")
    with pytest.raises(UserError, match=r"run ln -s validation .*/val"):
        open_dataset(config(root))
