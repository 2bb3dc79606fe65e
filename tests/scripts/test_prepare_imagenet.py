"""scripts/prepare_imagenet.py on small archives with the real structure."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from scipy.io import savemat

from engine.errors import UserError
from scripts.imagenet import parquet
from tests.conftest import script_module

prepare_imagenet = script_module("prepare_imagenet")
prepare, DEVKIT = prepare_imagenet.prepare, prepare_imagenet.DEVKIT
TRAIN, VAL = prepare_imagenet.TRAIN, prepare_imagenet.VAL
WNIDS = ["n01440764", "n01443537", "n01484850"]
ILSVRC_IDS, TRUTH = {3: "n01440764", 1: "n01443537", 2: "n01484850"}, [1, 3, 3, 2, 1, 2]  # unordered, as in the devkit


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
    assert not any(path.is_symlink() for path in target.rglob("*"))
    assert found["train/n01484850/n01484850_2.JPEG"] == b"n01484850 2" * 300
    for i, number in enumerate(TRUTH, start=1):
        assert found[f"val/{ILSVRC_IDS[number]}/ILSVRC2012_val_{i:08d}.JPEG"] == f"val {i}".encode()
    assert "is complete: 12 training and 6 validation images in 3 classes" in capsys.readouterr().out
    prepare("none", str(target))


def test_interrupted_anywhere_it_goes_on(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops before each rename in turn. Complete files are not written again."""
    prepare(str(archives), str(tmp_path / "straight"))
    target = tmp_path / "imagenet"
    for renaming in ("replace", "rename"):
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
    with pytest.raises(UserError, match=r"val contains 5 images in 3 classes, not 6 in 3.*Rerun with archives=FOLDER"):
        prepare("none", str(target))
    prepare(str(archives), str(target))  # which adds it
    assert len(files(target)) == 18


def test_a_class_with_too_few_images_is_completed(
    archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an interrupted extraction by a shell leaves it."""
    target = tmp_path / "imagenet"
    prepare(str(archives), str(target))
    folder = target / "train" / "n01443537"
    (folder / "n01443537_1.JPEG").unlink()
    (folder / "n01443537_2.JPEG").write_bytes(b"cut")
    prepare(str(archives), str(target))
    assert "n01443537 lacked 2 images, which are unpacked now." in capsys.readouterr().out
    assert files(target)["train/n01443537/n01443537_2.JPEG"] == b"n01443537 2" * 300


def test_impossible_numbers_of_images_are_named(archives: Path, tmp_path: Path) -> None:
    target = tmp_path / "imagenet"
    prepare(str(archives), str(target))
    shutil.rmtree(target / "train" / "n01484850")
    with pytest.raises(UserError, match=r"train contains 8 images in 2 classes.*\(n01440764 has 4, n01443537"):
        prepare("none", str(target))


@pytest.mark.parametrize("extension", [".jpg", ".jpeg", ".JPEG"])
def test_images_of_every_extension_count(extension: str, archives: Path, tmp_path: Path) -> None:
    target = tmp_path / "imagenet"
    prepare(str(archives), str(target))
    for image in target.rglob("*.JPEG"):
        image.rename(image.with_suffix(extension))
    prepare("none", str(target))


def test_archives_packed_by_class_are_unpacked(archives: Path, tmp_path: Path) -> None:
    pack(archives / TRAIN, {f"train/{n}/{n}_{i}.JPEG": f"{n} {i}".encode() * 300 for n in WNIDS for i in range(4)})
    classes = {i: ILSVRC_IDS[number] for i, number in enumerate(TRUTH, start=1)}
    pack(archives / VAL, {f"val/{c}/ILSVRC2012_val_{i:08d}.JPEG": f"val {i}".encode() for i, c in classes.items()})
    prepare(str(archives), str(tmp_path / "imagenet"))
    found = files(tmp_path / "imagenet")
    assert len(found) == 18
    assert found["train/n01484850/n01484850_2.JPEG"] == b"n01484850 2" * 300
    assert found[f"val/{classes[2]}/ILSVRC2012_val_00000002.JPEG"] == b"val 2"


def test_hugging_faces_archives_need_no_devkit(archives: Path, tmp_path: Path) -> None:
    expected = tmp_path / "expected"
    prepare(str(archives), str(expected))
    for archive in (TRAIN, VAL, DEVKIT):
        (archives / archive).unlink()
    for k in range(2):
        names = {f"{n}_{i}_{n}.JPEG": f"{n} {i}".encode() * 300 for n in WNIDS for i in range(4) if i % 2 == k}
        pack(archives / f"train_images_{k}.tar.gz", names, "w:gz")
    classes = {i: ILSVRC_IDS[number] for i, number in enumerate(TRUTH, start=1)}
    names = {f"ILSVRC2012_val_{i:08d}_{c}.JPEG": f"val {i}".encode() for i, c in classes.items()}
    pack(archives / "val_images.tar.gz", names, "w:gz")
    prepare(str(archives), str(tmp_path / "imagenet"))
    assert files(tmp_path / "imagenet") == files(expected)

    whole = (archives / "train_images_1.tar.gz").read_bytes()
    shutil.rmtree(tmp_path / "imagenet")
    for position in (len(whole) // 2, len(whole) - 8):  # in the compressed data, and in their checksum
        (archives / "train_images_1.tar.gz").write_bytes(whole[:position] + b"\xff" * 4 + whole[position + 4 :])
        with pytest.raises(UserError, match=r"These archives are damaged: \S*train_images_1\.tar\.gz\. All others"):
            prepare(str(archives), str(tmp_path / "imagenet"))
        assert not list((tmp_path / "imagenet" / "train").glob("*/*_1.JPEG"))
    (archives / "train_images_1.tar.gz").write_bytes(whole)
    prepare(str(archives), str(tmp_path / "imagenet"))
    assert files(tmp_path / "imagenet") == files(expected)


def test_an_image_without_a_label_is_not_of_the_last_class() -> None:
    for labels in (parquet._Labels([], is_imagenet=True), parquet._Labels(["cat", "dog"], is_imagenet=False)):
        with pytest.raises(IndexError, match="label -1 is not that of a class"):
            labels.place(-1, None, "0.JPEG")


def test_kaggles_list_replaces_the_devkit(archives: Path, tmp_path: Path) -> None:
    prepare(str(archives), str(tmp_path / "expected"))
    (archives / DEVKIT).unlink()
    with pytest.raises(UserError, match=rf"class of ILSVRC2012_val_00000001\.JPEG .* is unknown; put {DEVKIT}"):
        prepare(str(archives), str(tmp_path / "imagenet"))
    write_solution(archives)
    prepare(str(archives), str(tmp_path / "imagenet"))
    assert files(tmp_path / "imagenet") == files(tmp_path / "expected")


def test_an_unknown_layout_is_not_damage(archives: Path, tmp_path: Path) -> None:
    pack(archives / TRAIN, {"images/1.JPEG": b"1"})
    with pytest.raises(UserError, match=r"has an unknown layout: images/1\.JPEG is neither CLASS\.tar, CLASS/IMAGE"):
        prepare(str(archives), str(tmp_path / "imagenet"))


def write_solution(folder: Path) -> None:
    lines = [
        f"ILSVRC2012_val_{i:08d},{ILSVRC_IDS[n]} 1 2 30 40 {ILSVRC_IDS[n]} 5 5 9 9 \n" for i, n in enumerate(TRUTH, 1)
    ]
    (folder / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(lines))


@pytest.fixture
def kaggle(archives: Path, tmp_path: Path) -> Path:
    """The same images as in the archives, as Kaggle distributes them."""
    prepare(str(archives), str(tmp_path / "expected"))
    root = tmp_path / "kaggle"
    images = root / "ILSVRC" / "Data" / "CLS-LOC"
    shutil.copytree(tmp_path / "expected" / "train", images / "train")
    for folder in ("val", "test"):
        (images / folder).mkdir()
    for image in (tmp_path / "expected" / "val").rglob("*.JPEG"):
        shutil.copy(image, images / "val")
    write_solution(root)
    return root


@pytest.mark.parametrize("given", ["", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_imagenet_becomes_folders_of_links(
    given: str, kaggle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "imagenet"
    for _ in range(2):  # the second time, all links exist
        prepare(str(kaggle / given), str(target))
    assert "has 12 training and 6 validation images in 3 classes" in capsys.readouterr().out
    linked = {str(path.relative_to(target)): path.read_bytes() for path in target.glob("*/*/*.JPEG")}
    assert linked == files(tmp_path / "expected")
    assert all(path.is_symlink() for path in (*target.glob("train/*"), *target.glob("val/*/*")))
    kaggle.rename(tmp_path / "moved")
    prepare(str(tmp_path / "moved" / given), str(target))
    assert all(path.exists() for path in target.glob("val/*/*"))


def test_kaggles_validation_images_need_the_list(kaggle: Path, tmp_path: Path) -> None:
    (kaggle / "LOC_val_solution.csv").unlink()
    with pytest.raises(UserError, match=r"classes of 6 images in .*val are unknown .*put Kaggle's LOC_val"):
        prepare(str(kaggle), str(tmp_path / "imagenet"))


JPEG = b"\xff\xd8 an image "


def write_shards(folder: Path, names: list[str] | None = None, paths: bool = True) -> None:
    """Hugging Face's shards: the first three classes of ImageNet, four training and two validation images each."""
    arrow = pytest.importorskip("pyarrow", reason="pyarrow, of the extra `prepare`, is not installed")
    table = pytest.importorskip("pyarrow.parquet")
    folder.mkdir()
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    info = {"info": {"features": {"label": {"names": names}}}}
    metadata = {b"huggingface": json.dumps(info if names else {}).encode()}
    schema = arrow.schema([("image", image), ("label", arrow.int64())], metadata=metadata)
    for split, count in (("train", 4), ("validation", 2)):
        for k in range(2):
            rows = [(label, i) for i in range(count) if i % 2 == k for label in range(3)]
            stem = {"train": "{w}_{i}_{w}.JPEG", "validation": "ILSVRC2012_val_{i:07d}{l}_{w}.JPEG"}[split]
            images = [
                {
                    "bytes": JPEG + f"{split} {label} {i}".encode(),
                    "path": stem.format(w=WNIDS[label], i=i, l=label) if paths else None,
                }
                for label, i in rows
            ]
            content = arrow.table({"image": images, "label": [label for label, _ in rows]}, schema=schema)
            table.write_table(content, folder / f"{split}-{k:05d}-of-00002.parquet")


@pytest.mark.parametrize("given", ["", "data"])
def test_parquet_shards_become_folders(given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "snapshot").mkdir()
    write_shards(tmp_path / "snapshot" / "data")
    target = tmp_path / "imagenet"
    prepare(str(tmp_path / "snapshot" / given), str(target))
    found = files(target)
    assert len(found) == 18
    assert found["train/n01443537/n01443537_3.JPEG"] == JPEG + b"train 1 3"
    assert found["val/n01484850/ILSVRC2012_val_00000012.JPEG"] == JPEG + b"validation 2 1"
    assert "has 12 training and 6 validation images in 3 classes" in capsys.readouterr().out
    kept = (target / "train" / "n01440764" / "n01440764_0.JPEG").stat().st_ino
    (target / "train" / "n01443537" / "n01443537_3.JPEG").unlink()
    prepare(str(tmp_path / "snapshot" / given), str(target))
    assert files(target) == found
    assert (target / "train" / "n01440764" / "n01440764_0.JPEG").stat().st_ino == kept


def test_labels_are_checked(tmp_path: Path) -> None:
    ids = prepare_imagenet.imagenet_classes()
    known = [f"{name}, of ImageNet" for name in torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]]
    write_shards(tmp_path / "named", known, paths=False)
    prepare(str(tmp_path / "named"), str(tmp_path / "one"))
    assert sorted(path.name for path in (tmp_path / "one" / "train").iterdir()) == list(ids[:3])
    write_shards(tmp_path / "reversed", known[::-1])
    with pytest.raises(UserError, match=r"label names of .* are not those of ImageNet in the order"):
        prepare(str(tmp_path / "reversed"), str(tmp_path / "two"))
    write_shards(tmp_path / "part", ["tench", "goldfish", "shark/ray"], paths=False)
    prepare(str(tmp_path / "part"), str(tmp_path / "three"))
    assert sorted(path.name for path in (tmp_path / "three" / "val").iterdir()) == ["goldfish", "shark or ray", "tench"]


def test_a_label_that_contradicts_the_name_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.WNIDS", WNIDS[::-1])
    write_shards(tmp_path / "shards")
    with pytest.raises(UserError, match=r"Label 0 of n01484850_0_n01484850\.JPEG is n01440764 in ImageNet's order"):
        prepare(str(tmp_path / "shards"), str(tmp_path / "imagenet"))


def test_missing_and_damaged_shards_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")
    shard = tmp_path / "shards" / "train-00001-of-00002.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"shard .*train-00001-of-00002\.parquet is damaged"):
        prepare(str(tmp_path / "shards"), str(tmp_path / "imagenet"))
    shard.unlink()
    with pytest.raises(UserError, match=r"1 of 2 shards are missing .*number 00001"):
        prepare(str(tmp_path / "shards"), str(tmp_path / "imagenet"))


def test_a_class_is_on_the_disk_before_it_has_its_name(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, named = tmp_path / "imagenet" / "train", []
    monkeypatch.setattr("os.sync", lambda: named.append(len([f for f in train.iterdir() if f.suffix != ".draft"])))
    prepare(str(archives), str(tmp_path / "imagenet"))
    assert named == [0, 1, 2]
