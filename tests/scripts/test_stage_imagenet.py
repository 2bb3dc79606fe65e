"""scripts/stage_imagenet.sh: a complete copy, resumed after an interruption, or an error that names a difference."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")


def stage(*folders: Path) -> subprocess.CompletedProcess[str]:
    script = REPOSITORY / "scripts" / "stage_imagenet.sh"
    return subprocess.run(["bash", str(script), *map(str, folders)], capture_output=True, text=True)


def test_staging_copies_and_completes(folders: Path, tmp_path: Path) -> None:
    target = tmp_path / "local" / "imagenet"
    done = stage(folders, target)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{target} is a complete copy of {folders}: 69 files.\n"
    kept, gone, cut = (target / "train" / "class1" / f"{i}.JPEG" for i in range(3))
    inode = kept.stat().st_ino
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:100])
    (target / "val" / "class0" / "stray.JPEG").write_bytes(b"")
    assert stage(folders, target).returncode == 0
    assert kept.stat().st_ino == inode
    for source in folders.rglob("*.JPEG"):
        assert (target / source.relative_to(folders)).read_bytes() == source.read_bytes()
    assert not (target / "val" / "class0" / "stray.JPEG").exists()


def test_links_are_staged_as_the_files_that_they_point_to(folders: Path, tmp_path: Path) -> None:
    """As scripts/prepare_imagenet.py makes them of Kaggle's ImageNet."""
    for split in ("train", "val"):
        (tmp_path / "links" / split).mkdir(parents=True)
        for folder in (folders / split).iterdir():
            (tmp_path / "links" / split / folder.name).symlink_to(folder)
    done = stage(tmp_path / "links", tmp_path / "local")
    assert done.returncode == 0, done.stderr
    assert "is a complete copy" in done.stdout
    assert not any(path.is_symlink() for path in (tmp_path / "local").rglob("*"))
    assert len(list((tmp_path / "local").rglob("*.JPEG"))) == 69


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """Write a folder with a file that was not staged."""
    file = tmp_path / "precious" / "train" / "class0" / "mine.JPEG"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    (tmp_path / "precious" / "val").mkdir()
    return file


def test_a_foreign_target_is_left_alone(folders: Path, precious: Path) -> None:
    done = stage(folders, precious.parents[2])
    assert (done.returncode, done.stdout) == (2, "")
    assert "contains files that were not staged from" in done.stderr
    assert precious.read_bytes() == b"mine"


def test_swapped_arguments_delete_nothing(folders: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert stage(folders, copy).returncode == 0
    (copy / "val" / "class0" / "0.JPEG").unlink()
    done = stage(copy, folders)
    assert done.returncode == 2
    assert "is itself a staged copy" in done.stderr
    assert len(list(folders.rglob("*.JPEG"))) == 69


def test_a_copy_of_another_source_is_left_alone(folders: Path, tmp_path: Path) -> None:
    other, copy = tmp_path / "other", tmp_path / "copy"
    shutil.copytree(folders, other)
    assert stage(folders, copy).returncode == 0
    done = stage(other, copy)
    assert done.returncode == 2
    assert f"was staged from {folders}, not from {other}" in done.stderr


def test_a_source_without_images_is_refused(precious: Path, tmp_path: Path) -> None:
    done = stage(precious.parents[2], tmp_path / "copy")
    assert done.returncode == 2
    assert "val contains no images" in done.stderr
    assert not (tmp_path / "copy").exists()


def test_a_wrong_source_is_one_line(tmp_path: Path) -> None:
    done = stage(tmp_path, tmp_path / "copy")
    assert done.returncode == 2
    assert done.stderr == "error: Give the folder that contains train/ and val/, and the folder to copy it to; got " + (
        f"{tmp_path} {tmp_path}/copy.\n"
    )
