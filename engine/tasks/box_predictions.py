"""A model's detections for every image of a split, and their average precision."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from engine.data.box_samples import PADDING, EvalTargets
from engine.processes.determinism import RngPurpose, rng
from engine.tasks import average_precision, coco_matching, voc_metric
from engine.tasks.average_precision import (
    COCO_RECALLS,
    Detections,
    GroundTruth,
    Matches,
    bootstrap,
    interpolated_precision,
    mean_over_classes,
)
from engine.tasks.base import Predictions
from engine.tasks.crossed_model import Outcome

MOST = 300  # maximum number of detections kept per image
REPLICATES = 1000
_SEED = 51  # of the resampling, the same for every table


@dataclass(frozen=True)
class BoxPredictions(Predictions):
    """Detections and annotated objects of every image, in dataset order.

    Detections are padded to `MOST` per image, objects to the largest number per image.

    The metrics are COCO's.

    Attributes:
        recalls: recall levels of the primary AP.
        true_boxes: [N, M, 4] float32, x1, y1, x2, y2 in pixels.
        true_labels: [N, M] int64, classes; PADDING after the last object.
        true_areas: [N, M] float64, areas of the objects in pixels.
        true_ignored: [N, M] bool, crowds and difficult objects.
        boxes: [N, D, 4] float32.
        labels: [N, D] int64; PADDING after the last detection.
        scores: [N, D] float32, descending.
    """

    recalls: ClassVar[np.ndarray] = COCO_RECALLS

    true_boxes: np.ndarray
    true_labels: np.ndarray
    true_areas: np.ndarray
    true_ignored: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def truth(self) -> GroundTruth:
        """Return the annotated objects."""
        known = self.true_labels != PADDING
        return GroundTruth(
            images=len(known),
            # Classes without an object do not count, so the actual number of classes is not needed.
            classes=1 + max(int(self.true_labels.max(initial=0)), int(self.labels.max(initial=0))),
            image=np.nonzero(known)[0],
            labels=self.true_labels[known],
            boxes=self.true_boxes[known],
            areas=self.true_areas[known],
            ignored=self.true_ignored[known],
        )

    def detections(self) -> Detections:
        """Return the detections of all images."""
        known = self.labels != PADDING
        return Detections(np.nonzero(known)[0], self.labels[known], self.scores[known], self.boxes[known])

    def metrics(self) -> dict[str, float]:
        return _percent(average_precision.average_precision(coco_matching.match(self.truth(), self.detections())))

    def matches(self) -> Matches:
        """Match the detections by the primary metric's rule, with objects of all areas."""
        matches = coco_matching.match(self.truth(), self.detections())
        return replace(matches, outcome=matches.outcome[:1], object_counted=matches.object_counted[:1])

    def outcome(self, groups: np.ndarray | None = None) -> Outcome:
        """Return the primary AP in %, with deviations from 1,000 resampled image sets, equal for all detectors."""
        matches = self.matches()

        def metric(matches: Matches, weights: np.ndarray) -> np.ndarray:
            return mean_over_classes(interpolated_precision(matches, self.recalls, weights))

        replicates = 100 * bootstrap(matches, metric, rng(_SEED, RngPurpose.BOOTSTRAP), REPLICATES, groups)
        # A replicate without an object has no AP, whatever the detector.
        replicates = replicates[np.isfinite(replicates)]
        deviations = (replicates - replicates.mean()) / math.sqrt(max(1, len(replicates) - 1))
        units = matches.images if groups is None else int(groups.max()) + 1
        return Outcome(100 * float(metric(matches, np.ones((matches.images, 1)))[0]), deviations, units)

    def per_class(self) -> dict[int, tuple[int, float]]:
        """Return the number of objects and the primary AP of each class."""
        matches = self.matches()
        precision = interpolated_precision(matches, self.recalls)[0, ..., 0].mean(axis=0)
        counts = [
            int(matches.object_counted[0, start:stop].sum())
            for start, stop in itertools.pairwise(matches.object_offsets.tolist())
        ]
        return {label: (count, 100 * float(precision[label])) for label, count in enumerate(counts) if count}


class VocPredictions(BoxPredictions):
    """`BoxPredictions` with the VOC devkit's metrics in addition to COCO's."""

    recalls: ClassVar[np.ndarray] = voc_metric.VOC2007_RECALLS

    def metrics(self) -> dict[str, float]:
        return _percent(voc_metric.average_precision(self.matches())) | super().metrics()

    def matches(self) -> Matches:
        """Match the detections by the devkit's rule."""
        return voc_metric.match(self.truth(), self.detections())


def predictions_of(results: Sequence[Mapping[str, Tensor]], targets: EvalTargets) -> dict[str, Tensor]:
    """Return the `BoxPredictions` arrays for a batch.

    Args:
        results: a detector's results for each image: `boxes` [D, 4], `labels` [D] and `scores` [D].
        targets: targets of the batch.
    """
    count, device = len(results), targets.boxes.device
    boxes = torch.zeros(count, MOST, 4, device=device)
    labels = torch.full((count, MOST), PADDING, device=device)
    scores = torch.zeros(count, MOST, device=device)
    for i, result in enumerate(results):
        found = len(result["scores"])
        order = result["scores"].argsort(descending=True, stable=True)
        for padded, key in ((boxes, "boxes"), (labels, "labels"), (scores, "scores")):
            padded[i, :found] = result[key][order].to(padded.dtype)
    return {
        "true_boxes": targets.boxes,
        "true_labels": targets.labels,
        "true_areas": targets.areas,
        "true_ignored": targets.ignored,
        "boxes": boxes,
        "labels": labels,
        "scores": scores,
    }


def _percent(metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the metrics that have a value, in %. For example, `ap_small` has none without small objects."""
    return {name: 100 * float(values[0]) for name, values in metrics.items() if np.isfinite(values[0])}
