"""ImageNet's archives: the official ones, the same packed again by class, and those of Hugging Face."""

import gzip
import io
import os
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from tqdm import tqdm

from engine.errors import UserError
from engine.logging import print_line
from engine.runs.atomic_io import DRAFT, atomic_write
from scripts.imagenet.names import DEVKIT, SOLUTION, image_name, val_classes

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"

_CLASSES, _VAL_IMAGES = 1000, 50_000  # for the progress bar


def unpack(source: Path, target: Path) -> None:
    """Unpack the images that are missing below `target`.

    Raises:
        UserError: naming the archives that are absent, damaged or of an unknown layout.
    """
    classes = val_classes(source)  # first: the archives take hours
    found = [("val", _archives(source, VAL, "val_images*.tar.gz"))]
    found += [("train", _archives(source, TRAIN, "train_images_*.tar.gz"))]
    damaged = [
        name for split, archives in found for archive in archives for name in _unpack(archive, target / split, classes)
    ]
    if damaged:
        raise UserError(
            f"These archives are damaged: {', '.join(damaged)}. All others are unpacked; replace the damaged ones and "
            "run the same command again."
        )


def _archives(source: Path, official: str, pattern: str) -> list[Path]:
    """Return the official archive of a split, or Hugging Face's, whose names match a pattern."""
    found = [source / official] if (source / official).is_file() else sorted(source.glob(pattern))
    if not found:
        raise UserError(f"There is no {source / official}; download it from https://image-net.org.")
    return found


def _unpack(archive: Path, folder: Path, classes: Mapping[str, str]) -> list[str]:
    """Unpack an archive into class folders, and return the names of what is damaged in it."""
    damaged = []
    unpacked: list[Path] = []
    try:
        with _open(archive) as members:
            total = _CLASSES if folder.name == "train" else _VAL_IMAGES
            for member in tqdm(members, total=total, unit="file", disable=None, desc=folder.name):
                content = members.extractfile(member) if member.isfile() else None
                if content is None:
                    continue
                if member.name.endswith(".tar"):
                    damaged += _unpack_class(archive, member.name, content, folder)
                    continue
                named = image_name(member.name, classes)
                if named is None:
                    raise UserError(_unknown(archive, member.name))
                unpacked.append(folder / named[0] / named[1])
                if not unpacked[-1].exists():
                    _write(unpacked[-1], content.read())
            _require_checksum(members)
    except (tarfile.TarError, EOFError):
        damaged.append(str(archive))
    except (zlib.error, gzip.BadGzipFile):
        for image in unpacked:  # any of them may be damaged, and would not be written again
            image.unlink(missing_ok=True)
        damaged.append(str(archive))
    return damaged


def _unknown(archive: Path, member: str) -> str:
    if Path(member).name.startswith("ILSVRC2012_val_"):
        return (
            f"The class of {member} in {archive} is unknown; put {DEVKIT} from https://image-net.org, or Kaggle's "
            f"{SOLUTION}, into {archive.parent}."
        )
    return (
        f"{archive} has an unknown layout: {member} is neither CLASS.tar, CLASS/IMAGE.JPEG nor IMAGE_CLASS.JPEG. "
        "Unpack it into train/CLASS and val/CLASS yourself, then count the images with archives=none."
    )


def _unpack_class(archive: Path, name: str, content: IO[bytes], folder: Path) -> list[str]:
    """Unpack the archive of one class, or what is missing in its folder; return its name if it is damaged."""
    into = folder / Path(name).stem
    draft = into.with_name(into.name + DRAFT)
    shutil.rmtree(draft, ignore_errors=True)
    try:
        _require_end(content)
        with tarfile.open(fileobj=content) as images:
            if into.exists():
                missing = _unpack_flat(images, into)
                if missing:
                    print_line(f"{into} lacked {missing} images, which are unpacked now.")
                return []
            draft.mkdir(parents=True)
            _unpack_flat(images, draft)
    except (tarfile.TarError, EOFError):
        shutil.rmtree(draft, ignore_errors=True)
        return [f"{name} in {archive}"]
    os.sync()  # otherwise a crash could leave a class of empty files
    draft.rename(into)
    return []


def _unpack_flat(images: tarfile.TarFile, folder: Path) -> int:
    """Unpack the files of an archive that are missing in a folder, without subfolders; return their number.

    Raises:
        tarfile.TarError: if a member is neither a file nor a folder, or has the name of another one.
    """
    names: set[str] = set()
    written = 0
    for member in images:
        if member.isdir():
            continue
        name = Path(member.name).name
        content = images.extractfile(member) if member.isfile() else None
        if content is None or name in names or name in ("", ".."):
            raise tarfile.TarError(member.name)
        names.add(name)
        file = folder / name
        if not file.is_file() or file.stat().st_size != member.size:
            if folder.name.endswith(DRAFT):
                file.write_bytes(content.read())
            else:
                _write(file, content.read())
            written += 1
    return written


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, lambda draft: draft.write(data))


def _open(archive: Path) -> tarfile.TarFile:
    if archive.suffix == ".tar":
        with archive.open("rb") as file:
            _require_end(file)
    return tarfile.open(archive)


def _require_checksum(members: tarfile.TarFile) -> None:
    """Read a compressed archive to its end, where its checksum is compared: tarfile does not.

    Raises:
        gzip.BadGzipFile: if it differs.
    """
    while members.fileobj is not None and members.fileobj.read(1 << 20):
        pass


def _require_end(archive: IO[bytes]) -> None:
    """Raise EOFError if an archive lacks its closing zeros: one cut off between two files would seem complete."""
    size = archive.seek(0, io.SEEK_END)
    archive.seek(max(0, size - 1024))
    if any(archive.read()):
        raise EOFError
    archive.seek(0)
