"""Images that two splits share: files of equal size and content."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LARGE = 100_000  # images, from which only MOST_READ files are compared
MOST_READ = 10_000  # a tenth of a second from the page cache

_HEAD = 4096  # bytes that are compared before the whole files
_AT_ONCE = 16  # files read concurrently


@dataclass(frozen=True)
class SharedImages:
    """Validation images that are also training images.

    Attributes:
        pairs: the paths of each such validation image and of one equal training image, relative to the root.
        compared: whether every file was compared whose size occurs in both splits.
    """

    pairs: list[tuple[str, str]]
    compared: bool

    def __str__(self) -> str:
        count = f"{len(self.pairs):,}" if self.compared else f"at least {len(self.pairs):,}"
        first, twin = self.pairs[0]
        is_same = f"{first}" if first == twin else f"{first} is {twin}"
        return (
            f"Validation images that are training images too: {count} (first: {is_same}). Remove them from one of the "
            "two: the validation measures what the network has memorized."
        )


def shared_images(
    root: Path,
    train: Sequence[np.ndarray],
    val: Sequence[np.ndarray],
    most: int | None = None,
) -> SharedImages:
    """Find validation images that are also training images.

    Only files whose size occurs in both splits are read, the rarest sizes first.

    Args:
        root: folder of the data set.
        train, val: [N] paths relative to the root, bytes, and [N] sizes in bytes, of each split.
        most: maximum number of files to read; None for MOST_READ of a large data set, and all of a smaller one.
    """
    (train_files, train_sizes), (val_files, val_sizes) = train, val
    total = len(train_files) + len(val_files)
    most = most or (total if total < LARGE else MOST_READ)
    sizes, counts = np.unique(np.concatenate([train_sizes, val_sizes]), return_counts=True)
    common = np.isin(sizes, train_sizes) & np.isin(sizes, val_sizes) & (sizes > 0)
    order = np.argsort(counts[common], kind="stable")
    is_read = np.cumsum(counts[common][order]) <= most
    chosen = sizes[common][order][is_read]
    read = [files[np.isin(of, chosen)] for files, of in ((train_files, train_sizes), (val_files, val_sizes))]
    heads = [_digests(root, files, _HEAD) for files in read]
    equal = set(heads[0]) & set(heads[1])
    rest = [
        files[np.array([digest in equal for digest in digests], dtype=bool)]
        for files, digests in zip(read, heads, strict=True)
    ]
    known = dict(zip(_digests(root, rest[0]), rest[0], strict=True))
    pairs = [
        (os.fsdecode(file), os.fsdecode(known[digest]))
        for file, digest in zip(rest[1], _digests(root, rest[1]), strict=True)
        if digest in known
    ]
    return SharedImages(pairs, bool(is_read.all()))


def _digests(root: Path, files: np.ndarray, length: int = -1) -> list[bytes]:
    """Return a digest of each file's size and first bytes; random ones for files that cannot be read."""

    def part(names: np.ndarray) -> list[bytes]:
        return [_digest(os.path.join(root, os.fsdecode(name)), length) for name in names]  # noqa: PTH118 (speed)

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return [digest for found in threads.map(part, np.array_split(files, _AT_ONCE)) for digest in found]


def _digest(path: str, length: int) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (speed)
            size = os.fstat(file.fileno()).st_size
            content = file.read(length) if length >= 0 else file.readall()
    except OSError:  # reported when it is decoded
        return os.urandom(32)
    return hashlib.blake2b(content, digest_size=32, salt=size.to_bytes(16, "big")).digest()
