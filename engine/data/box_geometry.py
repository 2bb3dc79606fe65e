"""Box areas and overlaps. Boxes are x1, y1, x2, y2 in pixels and half-open: a box of one pixel has sides of 1."""

import numpy as np


def pairs_within_groups(groups: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every pair of elements of two collections that have the same group.

    Args:
        groups: [N] int, group of each element of the first collection.
        others: [M] int, group of each element of the second.

    Returns:
        [P] indices into the first and [P] into the second collection, sorted by the first, then the second.
    """
    order = np.argsort(others, kind="stable")
    first, last = (np.searchsorted(others[order], groups, side=side) for side in ("left", "right"))
    count = last - first
    one = np.repeat(np.arange(len(groups)), count)
    within = np.arange(len(one)) - np.repeat(np.cumsum(count) - count, count)
    return one, order[first[one] + within]


def area(boxes: np.ndarray) -> np.ndarray:
    """Return the areas of [N, 4] boxes as float64."""
    boxes = boxes.astype(np.float64)
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def overlap(boxes: np.ndarray, objects: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Return each box's intersection with its object, over their union, or over the box's area for a crowd.

    Args:
        boxes, objects: [P, 4].
        crowd: [P] bool; by default all False.
    """
    boxes, objects = boxes.astype(np.float64), objects.astype(np.float64)
    sides = np.minimum(boxes[:, 2:], objects[:, 2:]) - np.maximum(boxes[:, :2], objects[:, :2])
    intersection = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0.0)
    union = area(boxes) + area(objects) - intersection
    if crowd is not None:
        union = np.where(crowd, area(boxes), union)
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
