"""The metric of the Pascal VOC devkit: AP at IoU 0.5, over 11 recall levels (VOC 2007) or all (VOC 2010 and later).

The matching rule differs from COCO's. A detection is compared only with the object that it overlaps most. It is a false
positive if a detection of higher score has matched that object (COCO would try the next one). A detection of a
`difficult` object is ignored.

The devkit's boxes are pixel indices with both ends included, so their sides are x2 - x1 + 1. Boxes from
`engine.data.voc` are half-open: (x1 - 1, y1 - 1, x2, y2) in the devkit's numbers, with the same sides and overlaps.
"""

import numpy as np

from engine.data.box_geometry import overlap
from engine.tasks.average_precision import (
    FALSE_POSITIVE,
    IGNORED,
    TRUE_POSITIVE,
    Detections,
    GroundTruth,
    Matches,
    interpolated_precision,
    mean_over_classes,
)
from engine.tasks.coco_matching import candidates

IOU = 0.5
VOC2007_RECALLS = np.arange(11) / 10  # not arange(0, 1.1, 0.1), whose fourth value exceeds 3 / 10


def match(truth: GroundTruth, detections: Detections) -> Matches:
    """Match the detections of a detector. `truth.ignored` are the objects marked `difficult`."""
    detection, candidate = candidates(truth, detections)
    iou = overlap(detections.boxes[detection], truth.boxes[candidate])
    # Each detection's last entry is its best object; among equal ones, the first in the annotation.
    order = np.lexsort((-candidate, iou, detection))
    best = order[np.diff(detection[order], append=-1) != 0]
    best = best[iou[best] >= IOU]
    best = best[np.argsort(-detections.scores[detection[best]], kind="stable")]
    _, first = np.unique(candidate[best], return_index=True)
    outcome = np.full(len(detections.scores), FALSE_POSITIVE, dtype=np.int8)
    outcome[detection[best[first]]] = TRUE_POSITIVE
    outcome[detection[best[truth.ignored[candidate[best]]]]] = IGNORED
    return Matches.build(truth, detections, outcome[None, None], ~truth.ignored[None])


def average_precision(matches: Matches, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return the mean AP over classes by both rules: `ap_11_points` and `ap_area`.

    Args:
        matches: result of `match`.
        weights: [I, R], as in `average_precision.interpolated_precision`.

    Returns:
        For each metric, [R] in [0, 1]; NaN if no object counts.
    """
    rules = {"ap_11_points": VOC2007_RECALLS, "ap_area": None}
    return {
        name: mean_over_classes(interpolated_precision(matches, recalls, weights)) for name, recalls in rules.items()
    }
