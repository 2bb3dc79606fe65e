"""COCO's rule for matching detections with objects, for all images at once.

Detections of one image and class are matched in the order of their scores. Each is matched with the unmatched object of
greatest overlap that reaches the threshold, and with an ignored object only if there is no other. A crowd can match
repeatedly. Detections without an object are ignored outside the area range, and are false positives otherwise.

Images and classes are independent, so the rule is applied to the best detection of every image and class in one step,
then to the second best, and so on, in at most `MAX_DETECTIONS` steps of array operations.
"""

from itertools import pairwise

import numpy as np

from engine.data.box_geometry import area, overlap, pairs_within_groups
from engine.tasks.average_precision import (
    COCO_AREAS,
    COCO_IOUS,
    FALSE_POSITIVE,
    IGNORED,
    TRUE_POSITIVE,
    Detections,
    GroundTruth,
    Matches,
)

MAX_DETECTIONS = 100  # per image and class


def match(truth: GroundTruth, detections: Detections) -> Matches:
    """Match the detections of a detector for every area range and IoU threshold."""
    detections, rank = _strongest(detections, truth.classes)
    pairs = _Pairs(truth, detections, rank)
    size = area(detections.boxes)
    outcome = np.empty((len(COCO_AREAS), len(COCO_IOUS), len(size)), dtype=np.int8)
    counted = np.empty((len(COCO_AREAS), len(truth.areas)), dtype=bool)
    for a, (low, high) in enumerate(COCO_AREAS.values()):
        counted[a] = ~truth.ignored & (truth.areas >= low) & (truth.areas <= high)
        outside = (size < low) | (size > high)
        unmatched = np.where(outside, IGNORED, FALSE_POSITIVE).astype(np.int8)
        outcome[a] = pairs.assign(counted[a], truth.ignored, unmatched).T
    return Matches.build(truth, detections, outcome, counted)


def _strongest(detections: Detections, classes: int) -> tuple[Detections, np.ndarray]:
    """Return the detections that count, and their ranks by score within their image and class.

    They are sorted by image, class and descending score.
    """
    group = detections.image.astype(np.int64) * classes + detections.labels
    order = np.lexsort((-detections.scores, group))
    group = group[order]
    rank = np.arange(len(group)) - np.searchsorted(group, group)
    kept = order[rank < MAX_DETECTIONS]
    strongest = Detections(
        detections.image[kept], detections.labels[kept], detections.scores[kept], detections.boxes[kept]
    )
    return strongest, rank[rank < MAX_DETECTIONS]


class _Pairs:
    """Pairs of a detection and an object of the same image and class that overlap by at least the lowest threshold.

    Attributes:
        detection, object: [P] indices, sorted by rank of the detection, detection, object.
        iou: [P] overlap.
        steps: start and end of the pairs of each rank.
        objects: number of objects.
    """

    def __init__(self, truth: GroundTruth, detections: Detections, rank: np.ndarray) -> None:
        detection, candidate = candidates(truth, detections)
        iou = overlap(detections.boxes[detection], truth.boxes[candidate], truth.ignored[candidate])
        near = np.flatnonzero(iou >= COCO_IOUS[0])
        near = near[np.argsort(rank[detection[near]], kind="stable")]
        self.detection, self.object, self.iou = detection[near], candidate[near], iou[near]
        ranks = rank[self.detection]
        bounds = np.searchsorted(ranks, np.arange(ranks.max(initial=-1) + 2))
        self.steps = list(pairwise(bounds))
        self.objects = len(truth.labels)

    def assign(self, counted: np.ndarray, crowd: np.ndarray, unmatched: np.ndarray) -> np.ndarray:
        """Assign objects to the detections in one area range.

        Args:
            counted: [M] bool, objects that are not ignored.
            crowd: [M] bool, objects that can match any number of detections.
            unmatched: [N] int8, outcome of a detection without an object.

        Returns:
            [N, T] int8, outcome of each detection.
        """
        outcome = np.repeat(unmatched[:, None], len(COCO_IOUS), axis=1)
        free = np.ones((self.objects, len(COCO_IOUS)), dtype=bool)
        # A detection's preference: counted objects first, then greater overlap, then the last of equal ones.
        order = np.lexsort((np.arange(len(self.iou)), self.iou, counted[self.object]))
        preference = np.empty(len(order), dtype=np.int64)
        preference[order] = np.arange(len(order))
        reaches = self.iou[:, None] >= COCO_IOUS
        for begin, end in self.steps:
            if begin == end:
                continue
            step = slice(begin, end)
            possible = free[self.object[step]] & reaches[step]
            detection, starts = np.unique(self.detection[step], return_index=True)
            best = np.maximum.reduceat(np.where(possible, preference[step, None], -1), starts, axis=0)
            which, threshold = np.nonzero(best >= 0)
            found = self.object[order[best[which, threshold]]]
            outcome[detection[which], threshold] = np.where(counted[found], TRUE_POSITIVE, IGNORED)
            free[found, threshold] = crowd[found]
        return outcome


def candidates(truth: GroundTruth, detections: Detections) -> tuple[np.ndarray, np.ndarray]:
    """Return every pair of a detection and an object of the same image and class, sorted by detection, object.

    Returns:
        [P] indices of the detections and [P] of the objects.

    Raises:
        ValueError: if a detection's image or class is not in `truth`.
    """
    for name, values, limit in (("image", detections.image, truth.images), ("class", detections.labels, truth.classes)):
        if values.min(initial=0) < 0 or values.max(initial=0) >= limit:
            raise ValueError(f"a detection's {name} is not in [0, {limit})")
    groups = (one.image.astype(np.int64) * truth.classes + one.labels for one in (detections, truth))
    return pairs_within_groups(*groups)
