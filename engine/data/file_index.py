"""The list of a data set's images: made by reading every folder; of a large set it is kept until a folder changes."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine.errors import UserError

EXTENSIONS = (".jpeg", ".jpg", ".png")

# From how many images on it is kept: below, reading it anew takes seconds and also sees files that changed in place.
KEEP_FROM = 100_000

_AT_ONCE = 16  # folders read at a time: a network file system takes milliseconds for each answer


@dataclass
class FileList:
    """Images below a root, in a fixed order.

    Attributes:
        files: paths relative to the root.
        sizes: in bytes.
        labels: class of each.
        folders: time of the last change, in ns, of each folder that was read, and of lists of files.
    """

    files: list[bytes] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    folders: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FileIndex:
    """Arrays, so that processes share them without copies; those of a kept index are mapped from its files.

    Attributes:
        files: for each split [N] paths relative to the root, bytes.
        labels: for each split [N] int64.
        fingerprint: sha256 over every file's path, size in bytes and label.
    """

    files: Sequence[np.ndarray]
    labels: Sequence[np.ndarray]
    fingerprint: str


def class_folders(root: Path, split: str, classes: Sequence[str]) -> FileList:
    """Images anywhere below each class folder (Tiny ImageNet has an `images/` between), sorted by path.

    Raises:
        UserError: if a folder holds none, or a file cannot be looked at.
    """
    files_found = FileList()
    below = len(str(root / "_")) - 1
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        folders = [root / split / name for name in classes]
        for label, (folder, found) in enumerate(zip(folders, threads.map(_read, folders), strict=True)):
            images, times = found
            if not images:
                raise UserError(f"The class folder {folder} holds no images; restore it.")
            files_found.files += [os.fsencode(path[below:]) for path, _ in images]
            files_found.sizes += [size for _, size in images]
            files_found.labels += [label] * len(images)
            files_found.folders |= times
    return files_found


def named(root: Path, files: Iterable[tuple[Path, int]], sources: Iterable[Path]) -> FileList:
    """Images that are named one by one, each with its label.

    Args:
        root: of the data set.
        files: their paths and labels.
        sources: the folders and files that decide which they are.

    Raises:
        UserError: if one cannot be looked at.
    """
    files_found = FileList(folders={str(source): source.stat().st_mtime_ns for source in sources})
    for path, label in files:
        files_found.files.append(os.fsencode(path.relative_to(root)))
        files_found.sizes.append(_size(path))
        files_found.labels.append(label)
    return files_found


def build_file_index(root: Path, key: str, read: Callable[[], list[FileList]]) -> FileIndex:
    """The splits of a data set.

    Args:
        root: its folder.
        key: what besides the root decides which images they hold.
        read: lists the splits.
    """
    kept = _folder(root, key)
    found = _load(kept)
    if found is not None:
        return found
    file_lists = read()
    files = [np.array(files_found.files) for files_found in file_lists]
    labels = [np.array(files_found.labels, dtype=np.int64) for files_found in file_lists]
    made = FileIndex(files, labels, _fingerprint(file_lists))
    if sum(map(len, files)) >= KEEP_FROM:
        _keep(made, file_lists, kept)
    return made


def _read(folder: Path) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """Paths and sizes of the images anywhere below a folder, and the times of its folders."""
    images, times, todo = [], {}, [str(folder)]
    try:
        while todo:
            here = todo.pop()
            times[here] = os.stat(here).st_mtime_ns  # noqa: PTH116 (a million paths)
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.is_dir():
                        todo.append(entry.path)
                    elif entry.name.lower().endswith(EXTENSIONS):
                        images.append((entry.path, entry.stat().st_size))
    except OSError as error:
        raise UserError(f"The image {error.filename} cannot be read ({error.strerror}).") from error
    return sorted(images), times


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"The image {path} cannot be read ({error.strerror}).") from error


def _fingerprint(file_lists: Sequence[FileList]) -> str:
    digest = hashlib.sha256()
    for files_found in file_lists:
        for file, size, label in zip(files_found.files, files_found.sizes, files_found.labels, strict=True):
            digest.update(b"%s\0%d\0%d\n" % (file, size, label))
    return digest.hexdigest()


def _folder(root: Path, key: str) -> Path:
    """Where the index of a data set is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "cbam" / hashlib.sha256(f"{root.resolve()}\n{key}".encode()).hexdigest()[:16]


def _keep(made: FileIndex, file_lists: Sequence[FileList], kept: Path) -> None:
    """Write the index; where that is not possible, it is made again next time."""
    draft = kept.with_name(f"{kept.name}.{os.getpid()}")
    folders = {folder: time for files_found in file_lists for folder, time in files_found.folders.items()}
    try:
        draft.mkdir(parents=True)
        for number, (files, labels) in enumerate(zip(made.files, made.labels, strict=True)):
            np.save(draft / f"files{number}.npy", files)
            np.save(draft / f"labels{number}.npy", labels)
        splits = len(made.files)
        text = json.dumps({"splits": splits, "fingerprint": made.fingerprint, "folders": folders})
        (draft / "index.json").write_text(text)
        shutil.rmtree(kept, ignore_errors=True)
        draft.rename(kept)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)


def _load(kept: Path) -> FileIndex | None:
    """A kept index, None where there is none or a folder has changed since."""
    try:
        facts = json.loads((kept / "index.json").read_text())
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            times = threads.map(lambda folder: os.stat(folder).st_mtime_ns, facts["folders"])  # noqa: PTH116
            if list(times) != list(facts["folders"].values()):
                return None
        files, labels = (
            [np.load(kept / f"{name}{number}.npy", mmap_mode="r") for number in range(facts["splits"])]
            for name in ("files", "labels")
        )
        return FileIndex(files, labels, facts["fingerprint"])
    except (OSError, ValueError, KeyError):
        return None
