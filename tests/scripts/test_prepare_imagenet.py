"""scripts/prepare_imagenet.py on small archives with the real structure."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from engine.errors import UserError
from tests.conftest import script_module

prepare_imagenet = script_module("prepare_imagenet")
DEVKIT, TRAIN, VAL = prepare_imagenet.DEVKIT, prepare_imagenet.TRAIN, prepare_imagenet.VAL
prepare = prepare_imagenet.prepare

WNIDS = ["n01440764", "n01443537", "n01484850"]
ILSVRC_IDS = {3: "n01440764", 1: "n01443537", 2: "n01484850"}  # unordered, as in the devkit
TRUTH = [1, 3, 3, 2, 1, 2]


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a tar of tars with four images per class, six validation images, and a devkit with one synset too many."""
    monkeypatch.setattr(prepare_imagenet, "CLASSES", 3)
    monkeypatch.setattr(prepare_imagenet, "TRAIN_IMAGES", 12)
    monkeypatch.setattr(prepare_imagenet, "VAL_IMAGES", 6)
    folder = tmp_path / "archives"
    folder.mkdir()
    pack(folder / TRAIN, {f"{name}.tar": inner(name) for name in WNIDS})
    pack(folder / VAL, {f"ILSVRC2012_val_{i:08d}.JPEG": f"val {i}".encode() for i in range(1, 7)})
    synsets = np.array(
        [(number, name) for number, name in [*ILSVRC_IDS.items(), (1001, "n00000000")]],
        dtype=[("ILSVRC2012_ID", object), ("WNID", object)],
    )
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    root = "ILSVRC2012_devkit_t12/data"
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    files = {f"{root}/meta.mat": meta.getvalue(), f"{root}/ILSVRC2012_validation_ground_truth.txt": truth}
    pack(folder / DEVKIT, files, mode="w:gz")
    return folder


def inner(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for i in range(4):
            add(tar, f"{name}_{i}.JPEG", f"{name} {i}".encode() * 300)
    return buffer.getvalue()


def pack(path: Path, contents: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in contents.items():
            add(tar, name, data)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def files(target: Path) -> dict[str, bytes]:
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def test_complete_archives_become_folders(archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "imagenet"
    prepare(str(archives), str(target))
    found = files(target)
    assert len(found) == 18
    assert found["train/n01484850/n01484850_2.JPEG"] == b"n01484850 2" * 300
    for i, number in enumerate(TRUTH, start=1):
        assert found[f"val/{ILSVRC_IDS[number]}/ILSVRC2012_val_{i:08d}.JPEG"] == f"val {i}".encode()
    assert "is complete: 12 training and 6 validation images in 3 classes" in capsys.readouterr().out
    prepare("none", str(target))


def test_interrupted_anywhere_it_goes_on(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops before each rename in turn. Complete files are not written again."""
    prepare(str(archives), str(tmp_path / "straight"))
    target = tmp_path / "imagenet"
    for renaming in ("rename", "replace"):
        rename = getattr(Path, renaming)
        calls = 0

        def stop_at_second(self: Path, to: Path, rename: object = rename) -> Path:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt
            return rename(self, to)

        monkeypatch.setattr(Path, renaming, stop_at_second)
        with pytest.raises(KeyboardInterrupt):
            prepare(str(archives), str(target))
        monkeypatch.undo()
        monkeypatch.setattr(prepare_imagenet, "CLASSES", 3)
        monkeypatch.setattr(prepare_imagenet, "TRAIN_IMAGES", 12)
        monkeypatch.setattr(prepare_imagenet, "VAL_IMAGES", 6)
    kept = (target / "train" / "n01440764").stat().st_ino
    prepare(str(archives), str(target))
    assert files(target) == files(tmp_path / "straight")
    assert (target / "train" / "n01440764").stat().st_ino == kept


def test_a_damaged_class_is_named_and_the_others_stay(archives: Path, tmp_path: Path) -> None:
    damaged = {f"{name}.tar": inner(name) for name in WNIDS}
    damaged["n01443537.tar"] = damaged["n01443537.tar"][:2500]
    pack(archives / TRAIN, damaged)
    target = tmp_path / "imagenet"
    with pytest.raises(UserError, match=rf"damaged: n01443537\.tar in .*{TRAIN}\. All others are unpacked; replace"):
        prepare(str(archives), str(target))
    assert sorted(path.name for path in (target / "train").iterdir()) == ["n01440764", "n01484850"]
    assert len(files(target / "val")) == 6
    pack(archives / TRAIN, {f"{name}.tar": inner(name) for name in WNIDS})
    prepare(str(archives), str(target))
    assert len(files(target)) == 18


@pytest.mark.parametrize(
    "odd",
    [
        {"name": "a.JPEG", "type": tarfile.SYMTYPE, "linkname": "../../elsewhere"},
        {"name": "a.JPEG", "type": tarfile.LNKTYPE, "linkname": "absent"},
        {"name": "folder/n01443537_1.JPEG"},
        {"name": ".."},
    ],
    ids=["symlink", "hard link", "a name twice", "above"],
)
def test_a_class_with_other_than_plain_files_is_named(odd: dict[str, Any], archives: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO(inner("n01443537"))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        member = tarfile.TarInfo()
        for key, value in odd.items():
            setattr(member, key, value)
        tar.addfile(member)
    pack(archives / TRAIN, {f"{name}.tar": inner(name) for name in WNIDS} | {"n01443537.tar": buffer.getvalue()})
    with pytest.raises(UserError, match=r"damaged: n01443537\.tar in "):
        prepare(str(archives), str(tmp_path / "imagenet"))
    assert len(files(tmp_path / "imagenet")) == 14


def test_a_damaged_devkit_is_found_before_the_work(archives: Path, tmp_path: Path) -> None:
    (archives / DEVKIT).write_bytes((archives / DEVKIT).read_bytes()[:100])
    with pytest.raises(UserError, match=rf"The archive .*{DEVKIT} is damaged"):
        prepare(str(archives), str(tmp_path / "imagenet"))
    assert not (tmp_path / "imagenet").exists()


@pytest.mark.parametrize("name", [TRAIN, VAL])
def test_a_truncated_archive_is_named(name: str, archives: Path, tmp_path: Path) -> None:
    content = (archives / name).read_bytes()
    (archives / name).write_bytes(content[: len(content) // 3])
    with pytest.raises(UserError, match=rf"damaged: .*{name}\."):
        prepare(str(archives), str(tmp_path / "imagenet"))


def test_an_absent_archive_says_where_to_get_it(archives: Path, tmp_path: Path) -> None:
    (archives / VAL).unlink()
    with pytest.raises(UserError, match=rf"There is no .*{VAL}; download it"):
        prepare(str(archives), str(tmp_path / "imagenet"))


def test_what_is_missing_is_counted(archives: Path, tmp_path: Path) -> None:
    target = tmp_path / "imagenet"
    prepare(str(archives), str(target))
    next((target / "val").rglob("*.JPEG")).unlink()
    with pytest.raises(UserError, match=r"val contains 5 images in 3 classes, not 6 in 3"):
        prepare("none", str(target))


def test_a_class_is_on_the_disk_before_it_has_its_name(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, named = tmp_path / "imagenet" / "train", []
    monkeypatch.setattr("os.sync", lambda: named.append(len([f for f in train.iterdir() if f.suffix != ".draft"])))
    prepare(str(archives), str(tmp_path / "imagenet"))
    assert named == [0, 1, 2]
