"""Problems of annotations: counts for the log and the record, and units that no reader can use."""

from dataclasses import dataclass

import numpy as np

from engine.errors import UserError

_WITHIN = 100  # percentages
_MANY = 50  # boxes, from which their distribution is meaningful


@dataclass(frozen=True)
class Problem:
    """A kind of bad annotation in a split, and its handling.

    Attributes:
        count: number of occurrences.
        what: description, e.g. "Boxes without area".
        first: file, or image id, of the first occurrence.
        handling: e.g. "removed".
    """

    count: int
    what: str
    first: str
    handling: str

    @property
    def is_usual(self) -> bool:
        """True for what published data sets have on purpose."""
        return self.what in ("Crowds", "Images without boxes")

    def __str__(self) -> str:
        return f"{self.what}: {self.count} (first in {self.first}), {self.handling}."


def require_pixels(corners: np.ndarray, source: object) -> None:
    """Reject boxes whose coordinates are fractions of the image.

    Args:
        corners: [M, 4] x1, y1, x2, y2 as annotated.
        source: file or folder of the annotations, for the message.

    Raises:
        UserError: if at least half of the boxes with area are within the first pixel.
    """
    has_area = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    within = has_area & (corners >= 0).all(axis=1) & (corners <= 1).all(axis=1) & (corners % 1 != 0).any(axis=1)
    if within.any() and 2 * within.sum() >= has_area.sum():
        x1, y1, x2, y2 = (float(value) for value in corners[within.argmax()])
        raise UserError(
            f"The boxes of {source} are fractions of the image, not pixels (first: {x1:.3g}, {y1:.3g} to {x2:.3g}, "
            f"{y2:.3g}). Multiply x by the width and y by the height of the image."
        )


def require_sides(boxes: np.ndarray, sizes: np.ndarray, source: object) -> None:
    """Reject COCO boxes that are two corners instead of a corner, width and height.

    Args:
        boxes: [M, 4] as annotated.
        sizes: [M, 2] width and height of the image of each box.
        source: file of the annotations, for the message.

    Raises:
        UserError: if at least half of the boxes exceed their image as sides, and all fit it as corners.
    """
    exceeds = (boxes[:, :2] + boxes[:, 2:] > sizes + 1).any(axis=1)
    fits = ((boxes[:, 2:] <= sizes + 1) & (boxes[:, 2:] > boxes[:, :2])).all(axis=1)
    if len(boxes) and 2 * exceeds.sum() >= len(boxes) and fits.all():
        raise UserError(
            f"The boxes of {source} are [x1, y1, x2, y2]: as COCO's [x, y, width, height], {int(exceeds.sum()):,} of "
            f"{len(boxes):,} exceed their image. Replace x2 by x2 - x1 and y2 by y2 - y1."
        )


def percentages(corners: np.ndarray, sizes: np.ndarray, first: str) -> list[Problem]:
    """Return the problem of boxes that are probably percentages: many, all within 100 pixels of large images."""
    large = len(corners) >= _MANY and (sizes >= 3 * _WITHIN).all()
    if not large or not (corners[:, 2:] <= _WITHIN).all() or (corners[:, 2:].max() < _WITHIN / 2):
        return []
    handling = "read as pixels; if they are percentages, multiply them by width / 100 and height / 100"
    return [Problem(len(corners), "Boxes within the first 100 pixels", first, handling)]
