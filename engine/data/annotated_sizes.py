"""The sizes of annotated images: those that annotations lack, and those of the picture before its EXIF orientation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from engine.data.box_problems import Problem
from engine.errors import UserError

MOST_PIXELS = 100_000  # of a side; larger sizes in annotations are mistakes

_ORIENTATION = 0x0112  # EXIF tag
_TURNED = (5, 6, 7, 8)  # orientations by 90 degrees
_TOLERANCE = 1.0  # pixels by which annotation tools round beyond the border


def valid_size(width: object, height: object) -> tuple[int, int] | None:
    """Return an annotated size in pixels, given as numbers or as text; None if it is not a possible one."""
    try:
        sides = [float(side) for side in (width, height)]  # type: ignore[arg-type]  # other types raise a TypeError
    except (TypeError, ValueError):
        return None
    if not all(side.is_integer() and 0 < side <= MOST_PIXELS for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def complete_sizes(
    root: Path, files: Sequence[str], sizes: Sequence[tuple[int, int] | None]
) -> tuple[np.ndarray, list[Problem]]:
    """Replace absent sizes by those of the image files, as they are shown.

    Args:
        root: folder of the data set.
        files: [I] paths relative to the root.
        sizes: [I] width and height, or None.

    Returns:
        [I, 2] sizes in pixels, and the problem if any were absent.

    Raises:
        UserError: if such a file cannot be read.
    """
    absent = [index for index, size in enumerate(sizes) if size is None]
    known = [size or _shown_size(root / file) for file, size in zip(files, sizes, strict=True)]
    problems = []
    if absent:
        problems.append(Problem(len(absent), "Images without a valid size", files[absent[0]], "read from the files"))
    return np.array(known).reshape(-1, 2), problems


def require_shown_sizes(
    root: Path, files: Sequence[bytes] | np.ndarray, sizes: np.ndarray, image: np.ndarray, boxes: np.ndarray
) -> None:
    """Reject boxes in the upright picture of images whose annotated size is that before the EXIF orientation.

    Args:
        root: folder of the data set.
        files: [I] paths relative to the root.
        sizes: [I, 2] annotated width and height.
        image: [M] index of the image of each box.
        boxes: [M, 4] x1, y1, x2, y2.

    Raises:
        UserError: if there are such images, which are found by boxes that exceed the annotated size but not the other.
    """
    size = sizes[image]
    exceeds = (boxes[:, 2:] > size + _TOLERANCE).any(axis=1)
    fits_turned = (boxes[:, 2:] <= size[:, ::-1] + _TOLERANCE).all(axis=1) & (boxes[:, :2] >= -_TOLERANCE).all(axis=1)
    turned = []
    for index in np.unique(image[exceeds & fits_turned]):
        file = files[index].decode(errors="surrogateescape")
        try:
            stored, orientation = _header(root / file)
        except UserError:  # reported when the image is decoded
            continue
        if orientation in _TURNED and stored == tuple(sizes[index]):
            turned.append(file)
    if turned:
        raise UserError(
            f"{len(turned):,} images (first: {turned[0]}) have boxes in the upright picture, but the width and height "
            "of the picture before its EXIF orientation of 90 degrees. Exchange width and height in the annotations "
            "of all images with such an orientation."
        )


def _shown_size(path: Path) -> tuple[int, int]:
    (width, height), orientation = _header(path)
    return (height, width) if orientation in _TURNED else (width, height)


def _header(path: Path) -> tuple[tuple[int, int], int]:
    """Return the stored width and height of an image, and its EXIF orientation."""
    try:
        with Image.open(path) as image:
            return image.size, image.getexif().get(_ORIENTATION, 1)
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise UserError(f"The size of the image {path} cannot be read ({error}); replace the file.") from error
