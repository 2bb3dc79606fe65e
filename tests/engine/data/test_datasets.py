"""The layouts of a data set on the disk."""

import os
import shutil
from pathlib import Path

import pytest

from engine.data.datasets import open_dataset
from engine.errors import UserError
from tests.engine.data.small import config


def test_class_folders_are_indexed_by_sorted_name(folders: Path) -> None:
    data = open_dataset(config(folders))
    assert data.classes == ["class0", "class1", "class2"]
    assert (len(data.train), len(data.val)) == (48, 21)
    for i in (0, 20, 47):
        assert Path(data.train.path(i)).parent.name == f"class{data.train.labels[i]}"


def test_tiny_imagenet_is_read_in_its_native_layout(tiny_imagenet: Path) -> None:
    data = open_dataset(config(tiny_imagenet, total_classes=4, layout="tiny_imagenet"))
    assert (len(data.train), len(data.val)) == (12, 8)
    assert [Path(data.val.path(i)).name for i in range(2)] == ["val_0.JPEG", "val_1.JPEG"]
    assert data.val.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_part_of_tiny_imagenet_is_opened_as_the_message_says(tiny_imagenet: Path) -> None:
    with pytest.raises(
        UserError, match=r"contains 4 class folders, not 200; .* or data.total_classes=4 to use this part"
    ):
        open_dataset(config(tiny_imagenet, total_classes=200, layout="tiny_imagenet"))
    assert len(open_dataset(config(tiny_imagenet, total_classes=4, layout="tiny_imagenet")).classes) == 4


def test_the_first_classes_by_id_can_be_taken(tiny_imagenet: Path) -> None:
    data = open_dataset(config(tiny_imagenet, total_classes=4, layout="tiny_imagenet", classes=2))
    assert (data.name, data.classes) == ("test_2", ["n00000000", "n00000001"])
    assert (len(data.train), len(data.val)) == (6, 4)
    assert set(data.val.labels) == {0, 1}


def test_fingerprint_covers_names_sizes_and_labels(folders: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders, copy)
    fingerprint = open_dataset(config(folders)).fingerprint
    assert open_dataset(config(copy)).fingerprint == fingerprint
    image = copy / "train" / "class1" / "3.JPEG"
    image.write_bytes(image.read_bytes() + b"\0")
    assert open_dataset(config(copy)).fingerprint != fingerprint


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda root: shutil.rmtree(root), "There is no data set 'test' at .*set data.root.*data=shapes"),
        (lambda root: shutil.rmtree(root / "train"), "There is no folder .*train; data.root must contain"),
        (lambda root: shutil.rmtree(root / "train" / "class2"), "train contains 2 class folders, not 3"),
        (
            lambda root: (root / "val" / "class2").rename(root / "val" / "other"),
            "differ in these classes: class2, other",
        ),
        (lambda root: (shutil.rmtree(root / "val"), (root / "val").mkdir()), "val contains no class folders"),
        (lambda root: [f.unlink() for f in (root / "val" / "class1").iterdir()], "class1 contains no images"),
        (lambda root: os.mkfifo(root / "train" / "class1" / "pipe.JPEG"), "pipe.JPEG is named like an image but"),
        (lambda root: os.mkdir(bytes(root / "train") + b"/caf\xe9"), r"class folder b'caf\\xe9' .* is not text"),  # noqa: PTH102
    ],
)
def test_damaged_data_set_says_where(damage: object, complaint: str, folders: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(folders, root)
    damage(root)
    with pytest.raises(UserError, match=complaint):
        open_dataset(config(root))


def test_wrong_annotation_is_named_by_its_line(tiny_imagenet: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(tiny_imagenet, root)
    file = root / "val" / "val_annotations.txt"
    file.write_text(file.read_text().replace("val_2.JPEG\tn00000002", "val_2.JPEG\tnothing"))
    with pytest.raises(
        UserError, match=r"Line 3 of .*val_annotations.txt names class 'nothing', which train/ does not"
    ):
        open_dataset(config(root, total_classes=4, layout="tiny_imagenet"))
    file.unlink()
    with pytest.raises(UserError, match=r"There is no .*val_annotations.txt; data.root must contain Tiny ImageNet"):
        open_dataset(config(root, total_classes=4, layout="tiny_imagenet"))


def test_a_pipe_among_the_annotated_images_is_named(tiny_imagenet: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(tiny_imagenet, root)
    (root / "val" / "images" / "val_3.JPEG").unlink()
    os.mkfifo(root / "val" / "images" / "val_3.JPEG")
    with pytest.raises(UserError, match=r"val_3\.JPEG is named like an image but is not a file; remove it"):
        open_dataset(config(root, total_classes=4, layout="tiny_imagenet"))


def test_validation_images_alone_can_be_evaluated(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "val", tmp_path / "val")
    data = open_dataset(config(tmp_path), needs_training_images=False)
    whole = open_dataset(config(folders), needs_training_images=False)
    assert data.classes == whole.classes
    assert (len(data.train), len(data.val), len(whole.train)) == (0, 21, 48)
    assert data.val.files.tolist() == whole.val.files.tolist()
    assert whole.fingerprint == open_dataset(config(folders)).fingerprint
    with pytest.raises(UserError, match=r"There is no folder .*train"):
        open_dataset(config(tmp_path))
