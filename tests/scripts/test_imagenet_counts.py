"""The remedy for incomplete folders of ImageNet: it is not the command that has just been run."""

from pathlib import Path

import pytest

from engine.errors import UserError
from tests.conftest import script_module

prepare_imagenet = script_module("prepare_imagenet")


def test_folders_can_be_completed_from_the_archives(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"contains 0 images in 0 classes, not 1,281,167.*Rerun with archives=FOLDER"):
        prepare_imagenet.prepare("none", str(tmp_path))


def test_archives_with_too_few_images_are_not_asked_for_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"All images in the archives of downloads are unpacked\. .*download") as error:
        prepare_imagenet.count(tmp_path, Path("downloads"))
    assert "Rerun" not in str(error.value)
