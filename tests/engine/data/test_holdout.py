"""A validation split of a bare folder of class folders."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from engine.data.datasets import Split, open_dataset
from engine.errors import UserError
from tests.commands import assert_one_line
from tests.conftest import Command, write_image
from tests.engine.data.small import config


def names(split: Split) -> list[str]:
    return sorted(Path(split.path(i)).relative_to(split.root).as_posix() for i in range(len(split)))


@pytest.fixture
def bare(folders: Path, tmp_path: Path) -> Path:
    shutil.copytree(folders / "train", tmp_path / "bare")
    return tmp_path / "bare"


def test_each_class_is_split_by_the_names_of_its_files(bare: Path, tmp_path: Path) -> None:
    data = open_dataset(replace(config(bare), val_fraction=0.25))
    assert data.classes == ["class0", "class1", "class2"]
    assert (len(data.train), len(data.val)) == (36, 12)
    assert [data.val.labels.tolist().count(label) for label in range(3)] == [4, 4, 4]
    assert not set(names(data.train)) & set(names(data.val))
    moved = tmp_path / "moved"
    shutil.copytree(bare, moved)
    again = open_dataset(replace(config(moved), val_fraction=0.25))
    assert (names(again.val), again.fingerprint) == (names(data.val), data.fingerprint)
    other = open_dataset(replace(config(bare), val_fraction=0.5))
    assert set(names(data.val)) < set(names(other.val))  # more of the same order
    assert other.fingerprint != data.fingerprint


def test_every_class_has_an_image_on_either_side(bare: Path) -> None:
    data = open_dataset(replace(config(bare), val_fraction=0.01))
    assert data.val.labels.tolist() == [0, 1, 2]
    shutil.rmtree(bare / "class1")
    write_image(bare / "class1" / "only.jpg", 90, seed=0)
    with pytest.raises(UserError, match=r"Class class1 has a single image; data.val_fraction needs at least 2"):
        open_dataset(replace(config(bare), val_fraction=0.2))


def test_a_folder_that_is_split_already_is_refused(folders: Path) -> None:
    with pytest.raises(UserError, match=r"contains train/ and val/, which are not classes; leave out"):
        open_dataset(replace(config(folders), val_fraction=0.2))


def test_a_bare_folder_is_told_of_the_key_and_the_key_of_its_range(command: Command, bare: Path) -> None:
    given = ["model=resnet18", "recipe=scratch", f"data.root={bare}", "data.total_classes=3"]
    assert_one_line(command("train.py", *given), "or the class folders with data.val_fraction=0.2")
    assert_one_line(command("train.py", *given, "data.val_fraction=1.5"), "must be between 0.0 and 0.9")


def test_a_bare_folder_of_own_classes_needs_its_name_and_place_only(command: Command, bare: Path) -> None:
    given = ["model=mobilenet_v3_small", "recipe=scratch", "data=folders", "data.name=own", f"data.root={bare}"]
    given += ["data.val_fraction=0.25", "data.image_size=32", "data.resize=32", "recipe.class_weights=balanced"]
    done = command("train.py", *given, "recipe.epochs=1", "recipe.batch_size=8", "runtime.workers=0", "run.pictures=0")
    assert done.returncode == 0, done.stderr
    assert "own: 36 training and 12 validation images, 3 classes, 32 px; 25% of each class held out" in done.stdout
    assert "top-5" not in done.stdout
    assert "warning: the network predicts 'class0' for all 12 validation images;" in done.stdout  # after four steps
    assert_one_line(command("train.py", *given, "data.classes=4"), "data.classes=4 exceeds the 3 class folders")
    assert_one_line(
        command("train.py", *given, "data.num_classes=3"), "There is no key data.num_classes. data.classes=N"
    )
    table = command("evaluate.py", *given[2:6], *given[6:8], "runtime.device=cpu", "table.dir=table")
    assert table.returncode == 0, table.stderr
    assert "warning: 1 network predicts the same class for every validation image" in table.stdout
