"""scripts/stage_imagenet.sh: a whole copy, resumed after an interruption, or an error that says what differs."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")


def stage(*folders: Path) -> subprocess.CompletedProcess[str]:
    script = REPOSITORY / "scripts" / "stage_imagenet.sh"
    return subprocess.run(["bash", str(script), *map(str, folders)], capture_output=True, text=True)


def test_a_copy_is_made_and_an_incomplete_one_completed(folders: Path, tmp_path: Path) -> None:
    target = tmp_path / "local" / "imagenet"
    done = stage(folders, target)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{target} is a whole copy of {folders}: 69 files.\n"
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


def test_a_wrong_source_is_one_line(tmp_path: Path) -> None:
    done = stage(tmp_path, tmp_path / "copy")
    assert done.returncode == 2
    assert done.stderr == "error: Give the folder that holds train/ and val/, and the folder to copy it to; got " + (
        f"{tmp_path} {tmp_path}/copy.\n"
    )
