"""scripts/check_data.py: all problems of a data set in one run."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from engine.config.data import DataConfig
from engine.config.schemas import CheckDataConfig
from engine.data import transforms
from engine.errors import UserError
from tests.commands import assert_one_line
from tests.conftest import Command, script_module, write_image
from tests.engine.data.test_coco import write as write_coco
from tests.engine.data.test_image_checks import one_wrong_byte, picture, png

check_data = script_module("check_data")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, seed in (("train", 0), ("val", 100)):
        for label in range(2):
            for i in range(5):
                write_image(tmp_path / "data" / split / f"c{label}" / f"{i}.JPEG", 100, seed=seed + 10 * label + i)
    return tmp_path / "data"


def config(root: Path, classes: int = 2) -> CheckDataConfig:
    return CheckDataConfig(DataConfig("set", "folders", str(root), classes, image_size=32), workers=2)


def test_an_intact_data_set_has_no_problems(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_data.check(config(root))
    assert "20 images: no problems." in capsys.readouterr().out


def test_all_planted_faults_are_listed(root: Path, command: Command) -> None:
    (root / "train" / "c0" / "broken.png").write_bytes(one_wrong_byte(png(picture())))
    short = root / "train" / "c1" / "2.JPEG"
    short.write_bytes(short.read_bytes()[:300])
    (root / "val" / "c1" / "text.jpg").write_text("not found")
    shutil.copy(root / "train" / "c0" / "0.JPEG", root / "val" / "c0" / "copy.JPEG")
    (root / "val" / "c0" / "4.JPEG").rename(root / "val" / "c0" / "4.jfif")
    done = command("scripts/check_data.py", "data=imagenet", f"data.root={root}", "data.total_classes=2", "workers=2")
    assert done.returncode == 2
    assert done.stderr == "error: 5 problems in 22 images; they are listed above.\n"
    for part in (
        "c0/broken.png cannot be decoded (the checksum of its IDAT chunk is wrong)",
        "c1/2.JPEG cannot be decoded",
        "c1/text.jpg cannot be decoded",
        "val/c0/copy.JPEG is train/c0/0.JPEG",
        "not read: 1 .jfif",
    ):
        assert part in done.stdout


def test_a_file_that_ends_the_process_does_not_end_the_check(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect = transforms.inspect

    def crash(path: str, *rest: object) -> object:
        if path.endswith(("c0/1.JPEG", "c1/4.JPEG")):
            os.kill(os.getpid(), signal.SIGSEGV)
        return inspect(path, *rest)

    monkeypatch.setattr(transforms, "inspect", crash)
    with pytest.raises(UserError, match="4 problems in 20 images"):
        check_data.check(config(root))
    output = capsys.readouterr().out
    assert output.count("The decoder crashes (SIGSEGV) on the image") == 4


def test_a_data_set_that_cannot_be_opened_is_read_all_the_same(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "val" / "c1" / "0.JPEG").write_bytes(b"")
    (root / "val" / "c1" / "1.JPEG").rename(root / "val" / "c1" / "1.bmp")
    shutil.copy(root / "train" / "c0" / "0.JPEG", root / "val" / "c1" / "copy.JPEG")
    with pytest.raises(UserError, match="4 problems in 20 images"):
        check_data.check(config(root, classes=7))
    output = capsys.readouterr().out
    assert "contains 2 class folders, not 7" in output
    assert "val/c1/0.JPEG cannot be decoded (it is empty)" in output
    assert "not read: 1 .bmp" in output
    assert "val/c1/copy.JPEG is train/c0/0.JPEG" in output


def test_a_bare_folder_of_class_folders_needs_its_place_only(root: Path, command: Command) -> None:
    given = f"data.root={root / 'train'}"
    done = command("scripts/check_data.py", given)
    assert (done.returncode, done.stderr) == (0, "")
    note, last = done.stdout.splitlines()
    assert note.endswith("has no train/ and val/. To train on it, hold out images with data.val_fraction=0.2.")
    assert last == "10 images: no problems."
    (root / "train" / "c1" / "0.JPEG").rename(root / "train" / "c1" / "0.webp")
    assert_one_line(command("scripts/check_data.py", given), "1 problem in 9 images; it is listed above.")
    skipped = command("scripts/check_data.py", given, "data.skip_other_formats=true")
    assert (skipped.returncode, skipped.stderr) == (0, "")
    assert "not read: 1 .webp" in skipped.stdout
    imagenet = command("scripts/check_data.py", "data=imagenet", given)
    assert imagenet.returncode == 2
    assert "not 1000; set data.root to the whole data set, or use data=folders data.name=NAME for" in imagenet.stdout


def test_annotated_images_are_compared_with_their_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_coco(tmp_path / "coco")
    write_image(root / "val2017" / "5.jpg", 100, seed=1, height=41)
    data = DataConfig("coco", "coco", str(root), task="detection")
    with pytest.raises(UserError, match="1 problem in 4 images"):
        check_data.check(CheckDataConfig(data, workers=1))
    assert "val2017/5.jpg is 48x41 pixels, but its annotation says 48x40" in capsys.readouterr().out
