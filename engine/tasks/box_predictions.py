"""A model's detections for every image of a split, and their average precision."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.data.box_samples import PADDING, EvalTargets
from engine.processes.determinism import RngPurpose, rng
from engine.tasks import average_precision, coco_matching, voc_metric
from engine.tasks.average_precision import COCO_RECALLS, Detections, GroundTruth, Matches
from engine.tasks.base import Predictions
from engine.tasks.paired_stats import PairedDifference

MOST = 300  # maximum number of detections kept per image
REPLICATES = 1000
_SEED = 51  # of the resampling, the same for every table

Metrics = Callable[[Matches, np.ndarray], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class BoxPredictions(Predictions):
    """Detections and annotated objects of every image, in dataset order.

    Detections are padded to `MOST` per image, objects to the largest number per image.

    The metrics are COCO's.

    Attributes:
        true_boxes: [N, M, 4] float32, x1, y1, x2, y2 in pixels.
        true_labels: [N, M] int64, classes; PADDING after the last object.
        true_areas: [N, M] float64, areas of the objects in pixels.
        true_ignored: [N, M] bool, crowds and difficult objects.
        boxes: [N, D, 4] float32.
        labels: [N, D] int64; PADDING after the last detection.
        scores: [N, D] float32, descending.
    """

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


class VocPredictions(BoxPredictions):
    """`BoxPredictions` with the VOC devkit's metrics in addition to COCO's."""

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


def primary_ap(recalls: np.ndarray, matches: Matches, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the primary AP of matches, [R] in [0, 1], for `paired_bootstrap`."""
    precision = average_precision.interpolated_precision(matches, recalls, weights)
    return {"ap": average_precision.mean_over_classes(precision)}


COCO_AP: Metrics = partial(primary_ap, COCO_RECALLS)
VOC_AP: Metrics = partial(primary_ap, voc_metric.VOC2007_RECALLS)


def paired_difference(
    predictions: Sequence[Any], baseline: Sequence[Any], metrics: Metrics, replicates: int = REPLICATES
) -> PairedDifference:
    """Compare the AP of a detector with its baseline's; positive is better.

    Args:
        predictions: predictions of the detector, one for each seed.
        baseline: predictions of the baseline, one for each of the same seeds.
        metrics: function that returns the AP of their matches.
        replicates: number of resampled image sets.
    """
    pairs = [(ours.matches(), theirs.matches()) for ours, theirs in zip(predictions, baseline, strict=True)]
    once = np.ones((pairs[0][0].images, 1))
    per_seed = np.array([100 * float((metrics(a, once)["ap"] - metrics(b, once)["ap"])[0]) for a, b in pairs])
    random = rng(_SEED, RngPurpose.BOOTSTRAP)
    ours, theirs = zip(*pairs, strict=True)
    interval = average_precision.paired_bootstrap(ours, theirs, random, replicates, metrics)["ap"]
    return PairedDifference.of_seeds(per_seed, 100 * interval.low, 100 * interval.high)


def _percent(metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the metrics that have a value, in %. For example, `ap_small` has none without small objects."""
    return {name: 100 * float(values[0]) for name, values in metrics.items() if np.isfinite(values[0])}
