"""A validation split of a data set that has none: part of each class, chosen by a hash of the file names."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from engine.data.file_index import FileList
from engine.errors import UserError


def split(images: FileList, fraction: float, classes: Sequence[str]) -> list[FileList]:
    """Return the images for training and for validation.

    Of each class, the images whose names have the smallest sha256 are for validation: `fraction` of them, rounded, but
    at least one. The split depends on the names of the files only, not on their folder, their order or a seed.

    Args:
        images: images of all classes.
        classes: names of the classes.

    Raises:
        UserError: if a class has fewer than two images.
    """
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(images.labels):
        by_class.setdefault(label, []).append(index)
    held_out: set[int] = set()
    for label, indices in by_class.items():
        if len(indices) < 2:
            raise UserError(f"Class {classes[label]} has a single image; data.val_fraction needs at least 2 per class.")
        count = min(max(1, round(fraction * len(indices))), len(indices) - 1)
        held_out |= set(sorted(indices, key=lambda index: _key(images.files[index]))[:count])
    order = range(len(images.labels))
    train = replace(images, **_chosen(images, [index for index in order if index not in held_out]))
    return [train, FileList(**_chosen(images, [index for index in order if index in held_out]))]


def _key(file: bytes) -> tuple[bytes, bytes]:
    return hashlib.sha256(os.path.basename(file)).digest(), file  # noqa: PTH119 (bytes)


def _chosen(images: FileList, indices: Sequence[int]) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {"files": images.files, "sizes": images.sizes, "labels": images.labels}
    return {name: [values[index] for index in indices] for name, values in columns.items()}
