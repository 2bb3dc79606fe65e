"""Unpack ImageNet's official archives into the folders that `data=imagenet` reads, or check existing folders.

    python scripts/prepare_imagenet.py archives=/path/to/archives target=/path/to/imagenet
    python scripts/prepare_imagenet.py archives=none target=/path/to/imagenet              # only count the images

The archives, from https://image-net.org: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
ILSVRC2012_devkit_t12.tar.gz. If interrupted, run the same command again: existing files are not unpacked again.
Reading the devkit needs scipy (pip install scipy; the extra `prepare` of pyproject.toml).
"""

import io
import os
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

from tqdm import tqdm

from engine import cli
from engine.errors import UserError
from engine.logging import print_line
from engine.runs.atomic_io import DRAFT, atomic_write

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
CLASSES, TRAIN_IMAGES, VAL_IMAGES = 1000, 1_281_167, 50_000


def prepare(archives: str, target: str) -> None:
    """Unpack the missing images below `target`, then count all images.

    Raises:
        UserError: naming the archives that are damaged or absent, or the folders that are incomplete.
    """
    damaged: list[str] = []
    if archives != "none":
        source = Path(archives)
        names = val_classes(source / DEVKIT)  # first: the archives take hours
        damaged += unpack_train(source / TRAIN, Path(target) / "train")
        damaged += unpack_val(source / VAL, names, Path(target) / "val")
    if damaged:
        raise UserError(
            f"These archives are damaged: {', '.join(damaged)}. All others are unpacked; replace the damaged ones and "
            "run the same command again."
        )
    count(Path(target))


def unpack_train(archive: Path, folder: Path) -> list[str]:
    """Unpack the archive of archives into complete class folders, and return the damaged archives."""
    damaged = []
    try:
        with _open(archive) as classes:
            for member in tqdm(classes, total=CLASSES, unit="class", disable=None, desc="train"):
                into = folder / Path(member.name).stem
                if into.exists():
                    continue
                inner = classes.extractfile(member) if member.isfile() else None
                if inner is None:
                    continue
                draft = into.with_name(into.name + DRAFT)
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True)
                try:
                    _require_end(inner)
                    with tarfile.open(fileobj=inner) as images:
                        _unpack_flat(images, draft)
                except (tarfile.TarError, EOFError):
                    shutil.rmtree(draft)
                    damaged.append(f"{member.name} in {archive}")
                    continue
                os.sync()  # otherwise a crash could leave a class of empty files
                draft.rename(into)
    except (tarfile.TarError, EOFError):
        damaged.append(str(archive))
    return damaged


def _unpack_flat(images: tarfile.TarFile, folder: Path) -> None:
    """Unpack the files of an archive into one folder, without subfolders.

    Raises:
        tarfile.TarError: if a member is neither a file nor a folder, or would replace another file.
    """
    for member in images:
        if member.isdir():
            continue
        content = images.extractfile(member) if member.isfile() else None
        file = folder / Path(member.name).name
        if content is None or file.exists():
            raise tarfile.TarError(member.name)
        file.write_bytes(content.read())


def unpack_val(archive: Path, names: list[str], folder: Path) -> list[str]:
    """Sort the validation images into folders per class; return the archive if it is damaged.

    Args:
        names: class of each image.
    """
    try:
        with _open(archive) as images:
            for member in tqdm(images, total=VAL_IMAGES, unit="image", disable=None, desc="val"):
                content = images.extractfile(member) if member.isfile() else None
                if content is None:
                    continue
                number = int(Path(member.name).stem.rpartition("_")[2])  # ILSVRC2012_val_00000001.JPEG
                file = folder / names[number - 1] / Path(member.name).name
                if not file.exists():
                    _write(file, content.read())
    except (tarfile.TarError, EOFError, IndexError, ValueError):
        return [str(archive)]
    return []


def val_classes(devkit: Path) -> list[str]:
    """Return the class folder (WordNet id) of each validation image, from the devkit.

    Raises:
        UserError: if the devkit is absent or damaged, or scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError("Reading the devkit needs scipy; pip install scipy.") from error
    try:
        return _val_classes(devkit, loadmat)
    except (tarfile.TarError, zlib.error, EOFError, KeyError, ValueError) as error:
        raise UserError(f"The archive {devkit} is damaged; replace it and run the same command again.") from error


def _val_classes(devkit: Path, loadmat: Callable[..., Any]) -> list[str]:
    with _open(devkit) as files:
        contents = {Path(member.name).name: member for member in files if member.isfile()}
        meta, truth = (
            files.extractfile(contents[name]) for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
        )
        assert meta is not None
        assert truth is not None
        synsets = loadmat(io.BytesIO(meta.read()), squeeze_me=True)["synsets"]
        names = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
        return [names[int(line)] for line in truth.read().decode().split()]


def count(target: Path) -> None:
    """Raise UserError unless the folders contain all of ImageNet."""
    found = {split: _images(target / split) for split in ("train", "val")}
    expected = {"train": TRAIN_IMAGES, "val": VAL_IMAGES}
    wrong = [
        f"{target / split} contains {sum(classes.values()):,} images in {len(classes):,} classes, not "
        f"{expected[split]:,} in {CLASSES:,}"
        for split, classes in found.items()
        if (sum(classes.values()), len(classes)) != (expected[split], CLASSES)
    ]
    if not wrong and found["train"].keys() != found["val"].keys():
        wrong = [f"{target / 'train'} and {target / 'val'} contain different classes"]
    if wrong:
        raise UserError(f"{'; '.join(wrong)}. Unpack what is missing with archives=FOLDER.")
    print_line(
        f"{target} is complete: {TRAIN_IMAGES:,} training and {VAL_IMAGES:,} validation images in {CLASSES:,} classes."
    )


def _images(folder: Path) -> dict[str, int]:
    """Return the number of images in each class folder."""
    if not folder.is_dir():
        return {}
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.endswith(DRAFT))
    return {
        name: sum(file.name.endswith(".JPEG") for file in os.scandir(folder / name))
        for name in tqdm(names, unit="class", disable=None, desc=f"counting {folder.name}")
    }


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, lambda draft: draft.write(data))


def _open(archive: Path) -> tarfile.TarFile:
    try:
        if archive.suffix == ".tar":
            with archive.open("rb") as file:
                _require_end(file)
        return tarfile.open(archive)
    except FileNotFoundError as error:
        raise UserError(f"There is no {archive}; download it from https://image-net.org.") from error


def _require_end(archive: IO[bytes]) -> None:
    """Raise EOFError if an archive lacks its closing zeros: one cut off between two files would seem complete."""
    size = archive.seek(0, io.SEEK_END)
    archive.seek(max(0, size - 1024))
    if any(archive.read()):
        raise EOFError
    archive.seek(0)


if __name__ == "__main__":
    cli.run_script(prepare)
