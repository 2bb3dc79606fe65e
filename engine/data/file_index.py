"""Index of a data set's images, built by reading every folder. A large set's index is stored until a folder changes."""

import hashlib
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.data.duplicates import shared_images
from engine.data.other_files import (
    EXTENSIONS,
    LEFT_OUT,
    is_other_image,
    is_program_folder,
    other_images_line,
    program_files_line,
)
from engine.errors import UserError
from engine.runs.atomic_io import atomic_write

# Minimum number of images for which an index is stored. Smaller ones are rebuilt in seconds, which also detects files
# changed in place.
KEEP_FROM = 100_000

_AT_ONCE = 16  # folders read concurrently: a network file system takes milliseconds per request


@dataclass
class FileList:
    """Images below a root, in a fixed order.

    Attributes:
        files: paths relative to the root.
        sizes: file sizes in bytes.
        labels: class of each image.
        folders: modification time in ns of each folder that was read, and of file lists.
        empty: class folders without images.
        others: paths of images with other extensions.
        skipped: paths of files and folders of other programs.
    """

    files: list[bytes] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    folders: dict[str, int] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


class _Folder(NamedTuple):
    """The content of a class folder at any depth; `images` are paths and sizes, the rest is as in `FileList`."""

    images: list[tuple[str, int]]
    folders: dict[str, int]
    others: list[str]
    skipped: list[str]


@dataclass(frozen=True)
class FileIndex:
    """The images of a data set.

    Attributes:
        files: for each split, [N] paths relative to the root, bytes.
        labels: for each split, [N] int64.
        fingerprint: sha256 over every file's path, size in bytes and label.
        warnings: lines on what was left out, and on images in two splits.
    """

    files: Sequence[np.ndarray]
    labels: Sequence[np.ndarray]
    fingerprint: str
    warnings: Sequence[str] = ()


def class_folders(root: Path, split: str, classes: Sequence[str]) -> FileList:
    """List the images at any depth below each class folder, sorted by path (Tiny ImageNet has a level `images/`).

    Raises:
        UserError: if a folder or file cannot be read.
    """
    file_list = FileList()
    below = len(str(root / "_")) - 1
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        folders = [root / split / name for name in classes]
        for label, (folder, found) in enumerate(zip(folders, threads.map(_read, folders), strict=True)):
            file_list.files += [os.fsencode(path[below:]) for path, _ in found.images]
            file_list.sizes += [size for _, size in found.images]
            file_list.labels += [label] * len(found.images)
            file_list.folders |= found.folders
            file_list.others += found.others
            file_list.skipped += found.skipped
            if not found.images:
                file_list.empty.append(str(folder))
    return file_list


def named(root: Path, files: Iterable[tuple[Path, int]], sources: Iterable[Path]) -> FileList:
    """List explicitly named images with their labels.

    Args:
        root: folder of the data set.
        files: paths and labels of the images.
        sources: the folders and files that determine the list.

    Raises:
        UserError: if a file cannot be read.
    """
    file_list = FileList(folders={str(source): source.stat().st_mtime_ns for source in sources})
    for path, label in files:
        file_list.files.append(os.fsencode(path.relative_to(root)))
        file_list.sizes.append(_size(path))
        file_list.labels.append(label)
    return file_list


def build_file_index(
    root: Path, key: str, read: Callable[[], list[FileList]], skip_other_formats: bool = False
) -> FileIndex:
    """Return the splits of a data set. The index of a large one is stored and reused until a folder changes.

    Args:
        root: folder of the data set.
        key: everything besides the root that determines the images.
        read: function that lists the splits.
        skip_other_formats: whether images with other extensions are left out; otherwise they are an error.

    Raises:
        UserError: if there are images with other extensions, or class folders without images.
    """
    stored = _path(root, f"{key} {skip_other_formats}")
    index = None if stored is None else _load(stored)
    if index is not None:
        return index
    file_lists = read()
    warnings = _left_out(file_lists, skip_other_formats)
    files = [np.array(file_list.files) for file_list in file_lists]
    labels = [np.array(file_list.labels, dtype=np.int64) for file_list in file_lists]
    if len(file_lists) == 2:
        in_train, in_val = ((of, np.array(each.sizes)) for of, each in zip(files, file_lists, strict=True))
        shared = shared_images(root, in_train, in_val)
        warnings += [str(shared)] if shared.pairs else []
    index = FileIndex(files, labels, _fingerprint(file_lists), warnings)
    if stored is not None and sum(map(len, files)) >= KEEP_FROM:
        _store(index, {name: time for each in file_lists for name, time in each.folders.items()}, stored)
    return index


def _left_out(file_lists: Sequence[FileList], skip_other_formats: bool) -> list[str]:
    """Return lines on what is left out of the data set; errors as in `build_file_index`."""
    others, empty, skipped = (
        [path for each in file_lists for path in getattr(each, name)] for name in ("others", "empty", "skipped")
    )
    if others and not skip_other_formats:
        raise UserError(
            f"{other_images_line(others)} Rename JPEG files (.jfif, .jpe or without extension) to .jpg, convert other "
            "formats to JPEG or PNG, or leave these images out with data.skip_other_formats=true."
        )
    if empty:
        folders = f"The class folder {empty[0]} contains" if len(empty) == 1 else f"{len(empty)} class folders contain"
        first = "" if len(empty) == 1 else f" (first: {empty[0]})"
        raise UserError(
            f"{folders} no images{first}; add JPEG or PNG images, or remove the class from all splits and lower "
            "data.total_classes."
        )
    lines = [program_files_line(skipped)] if skipped else []
    return [*lines, f"{other_images_line(others)} {LEFT_OUT}"] if others else lines


def _read(folder: Path) -> _Folder:
    """Return the content of a folder at any depth."""
    found, todo = _Folder([], {}, [], []), [str(folder)]
    try:
        while todo:
            here = todo.pop()
            found.folders[here] = os.stat(here).st_mtime_ns  # noqa: PTH116 (a million paths)
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.is_dir():
                        (found.skipped if is_program_folder(entry.name) else todo).append(entry.path)
                    elif not entry.name.lower().endswith(EXTENSIONS):
                        if not entry.name.startswith(".") and entry.is_file() and is_other_image(entry.path):
                            found.others.append(entry.path)
                    elif entry.name.startswith("."):
                        found.skipped.append(entry.path)
                    else:
                        status = entry.stat()
                        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block forever
                            raise UserError(f"{entry.path} is named like an image but is not a file; remove it.")
                        found.images.append((entry.path, status.st_size))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}).") from error
    for paths in (found.images, found.others, found.skipped):
        paths.sort()
    return found


def _size(path: Path) -> int:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"The image {path} cannot be read ({error.strerror}).") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is named like an image but is not a file; remove it.")
    return status.st_size


def _fingerprint(file_lists: Sequence[FileList]) -> str:
    digest = hashlib.sha256()
    for file_list in file_lists:
        for file, size, label in zip(file_list.files, file_list.sizes, file_list.labels, strict=True):
            digest.update(b"%s\0%d\0%d\n" % (file, size, label))
    return digest.hexdigest()


def _path(root: Path, key: str) -> Path | None:
    """Return the path of a data set's stored index; None if the user has no cache folder."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no HOME and no passwd entry
        return None
    name = hashlib.sha256(os.fsencode(f"{root.resolve()}\n{key}")).hexdigest()[:16]
    return cache / "cbam" / f"{name}.npz"


def _store(index: FileIndex, folders: dict[str, int], path: Path) -> None:
    """Write the index. If that fails, the index is rebuilt next time."""
    facts = {
        "splits": len(index.files),
        "fingerprint": index.fingerprint,
        "warnings": index.warnings,
        "folders": folders,
    }
    arrays: dict[str, Any] = {"facts": np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)}
    for number, (files, labels) in enumerate(zip(index.files, index.labels, strict=True)):
        arrays |= {f"files{number}": files, f"labels{number}": labels}
    digest = np.frombuffer(_digest(arrays), dtype=np.uint8)
    with suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda file: np.savez(file, digest=digest, **arrays))


def _load(path: Path) -> FileIndex | None:
    """Return the stored index; None if there is no intact one or a folder has changed since."""
    try:
        with np.load(path) as content:  # not mapped: another process may replace the file
            arrays = dict(content)
        if arrays.pop("digest").tobytes() != _digest(arrays):
            return None
        facts = json.loads(arrays["facts"].tobytes())
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            times = threads.map(lambda folder: os.stat(folder).st_mtime_ns, facts["folders"])  # noqa: PTH116
            if list(times) != list(facts["folders"].values()):
                return None
        files, labels = ([arrays[f"{name}{n}"] for n in range(facts["splits"])] for name in ("files", "labels"))
        return FileIndex(files, labels, facts["fingerprint"], facts["warnings"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        return None


def _digest(arrays: Mapping[str, np.ndarray]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return digest.digest()
