"""Average precision (AP) of detections, and its bootstrap over images.

An AP is computed in two steps. Matching decides for every detection whether it is a true positive, a false positive
or ignored, and sorts the detections of each class by score. Interpolation averages the precision over recalls.
Only the second step depends on how often an image occurs in a sample, so a bootstrap matches once and repeats the
second step with different image weights. `Matches` is the result of the first step.

COCO's matching rule is in `coco_matching`, the VOC devkit's in `voc_metric`. Both are implemented here because
pycocotools takes a minute for 5,000 images and keeps a dictionary for each (image, class, area range); flattening these
would need as much code as the rule itself. The tests compare with pycocotools.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from engine.data.boxes import BoxSplit

COCO_RECALLS = np.linspace(0, 1, 101)
COCO_AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # pixels
COCO_IOUS = np.linspace(0.5, 0.95, 10)

FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, 2

_CHUNK = 4_000_000  # weighted detections per step: 32 MB per temporary array


@dataclass(frozen=True)
class Detections:
    """Detections of one detector in a set of images.

    Attributes:
        image: [N] int64, index of the image.
        labels: [N] int64, class.
        scores: [N] float.
        boxes: [N, 4] float, x1, y1, x2, y2 in pixels.
    """

    image: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class GroundTruth:
    """The annotated objects of a set of images.

    Attributes:
        images: number of images, including those without objects.
        classes: number of classes.
        image: [M] int64, index of the image.
        labels: [M] int64, class.
        boxes: [M, 4] float, x1, y1, x2, y2 in pixels.
        areas: [M] float, area of the object (not of its box) in pixels.
        ignored: [M] bool; COCO's crowds or VOC's difficult objects, which count neither as found nor as missed.
    """

    images: int
    classes: int
    image: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    ignored: np.ndarray

    @classmethod
    def of(cls, split: BoxSplit, classes: int) -> "GroundTruth":
        """Return the objects of a split; crowds and difficult objects are ignored."""
        ignored = split.crowd | split.difficult
        return cls(len(split), classes, split.box_image, split.labels, split.boxes, split.areas, ignored)


@dataclass(frozen=True)
class Matches:
    """The outcome of every detection in every area range (A) and at every IoU threshold (T).

    Attributes:
        images: number of images.
        detection_image: [N] int, image of each detection, sorted by class and then by descending score.
        detection_offsets: [K + 1] int, start of each class's detections.
        outcome: [A, T, N] int8: FALSE_POSITIVE, TRUE_POSITIVE or IGNORED.
        object_image: [M] int, image of each annotated object, sorted by class.
        object_offsets: [K + 1] int, start of each class's objects.
        object_counted: [A, M] bool, whether an object counts in an area range.
    """

    images: int
    detection_image: np.ndarray
    detection_offsets: np.ndarray
    outcome: np.ndarray
    object_image: np.ndarray
    object_offsets: np.ndarray
    object_counted: np.ndarray

    @classmethod
    def build(cls, truth: GroundTruth, detections: Detections, outcome: np.ndarray, counted: np.ndarray) -> "Matches":
        """Sort detections and objects by class.

        Args:
            truth: the annotated objects.
            detections: the detections. Equal scores of a class keep the image order, as in pycocotools.
            outcome: [A, T, N] int8 in the order of `detections`.
            counted: [A, M] bool in the order of `truth`.
        """
        by_score = np.lexsort((detections.image, -detections.scores, detections.labels))
        by_class = np.argsort(truth.labels, kind="stable")
        classes = np.arange(truth.classes + 1)
        return cls(
            images=truth.images,
            detection_image=detections.image[by_score],
            detection_offsets=np.searchsorted(detections.labels[by_score], classes),
            outcome=outcome[..., by_score],
            object_image=truth.image[by_class],
            object_offsets=np.searchsorted(truth.labels[by_class], classes),
            object_counted=counted[:, by_class],
        )


def interpolated_precision(
    matches: Matches, recalls: np.ndarray | None, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the interpolated precision of every class, averaged over recalls.

    An image of weight w counts as w copies, for both detections and objects. The exception is detections of
    one class in one image with equal scores: real copies would interleave them. The order of ties is arbitrary anyway.

    Args:
        matches: matches of one detector.
        recalls: ascending recalls in [0, 1] to average over; None integrates over all of them.
        weights: [I, R] float, integer values: the weight of each image in each of R replicates. By default there is
            one replicate in which every image counts once.

    Returns:
        [A, T, K, R] float; NaN if a replicate has no object of the class.
    """
    if weights is None:
        weights = np.ones((matches.images, 1))
    areas, thresholds, _ = matches.outcome.shape
    classes = len(matches.object_offsets) - 1
    result = np.full((areas, thresholds, classes, weights.shape[1]), np.nan)
    for k, a in np.ndindex(classes, areas):
        objects = slice(*matches.object_offsets[k : k + 2])
        counted = matches.object_counted[a, objects]
        if not counted.any():
            continue
        positives = weights[matches.object_image[objects][counted]].sum(axis=0)
        detected = slice(*matches.detection_offsets[k : k + 2])
        outcome = matches.outcome[a, :, detected]
        relevant = (outcome != IGNORED).any(axis=0)
        image, outcome = matches.detection_image[detected][relevant], outcome[:, relevant]
        seen = np.cumsum(weights[image], axis=0)
        for t in range(thresholds):
            result[a, t, k] = _mean_precision(image, outcome[t], seen, positives, recalls, weights)
    return result


def _mean_precision(
    image: np.ndarray,
    outcome: np.ndarray,
    seen: np.ndarray,
    positives: np.ndarray,
    recalls: np.ndarray | None,
    weights: np.ndarray,
) -> np.ndarray:
    """Return one class's precision envelope averaged over recalls: [R].

    Recall grows only at true positives, where precision has its maxima, so only these are evaluated.

    Args:
        image: [N], image of each detection, by descending score.
        outcome: [N], outcome of each detection.
        seen: [N, R], cumulative weight of the detections up to and including each one.
        positives: [R], weight of the objects.
        recalls: as in `interpolated_precision`.
        weights: [I, R].
    """
    hits = np.flatnonzero(outcome == TRUE_POSITIVE)
    ignored = np.flatnonzero(outcome == IGNORED)
    total = seen[hits]
    if len(ignored):
        before = np.searchsorted(ignored, hits)
        weight = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(weights[image[ignored]], axis=0)])
        total -= weight[before]
    true_positives = np.cumsum(weights[image[hits]], axis=0)
    # Spacing as in pycocotools; 0 / 0 is 0.
    precision = true_positives / (total + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    with np.errstate(invalid="ignore"):  # 0 / 0 if a replicate has no object
        recall = true_positives / positives
    if recalls is not None:
        recall = np.searchsorted(recalls, recall, side="right") / len(recalls)
    steps = np.diff(recall, axis=0, prepend=0)
    return np.where(positives > 0, (steps * envelope).sum(axis=0), np.nan)


def average_precision(matches: Matches, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return COCO's summary: `ap`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large`.

    Args:
        matches: result of `coco_matching.match`.
        weights: [I, R], as in `interpolated_precision`.

    Returns:
        For each metric, [R] in [0, 1]; NaN if no object counts.
    """
    precision = interpolated_precision(matches, COCO_RECALLS, weights)
    of_area = {name: precision[a] for a, name in enumerate(COCO_AREAS)}
    selected = {
        "ap": of_area["all"],
        "ap50": of_area["all"][:1],
        "ap75": of_area["all"][5:6],
        "ap_small": of_area["small"],
        "ap_medium": of_area["medium"],
        "ap_large": of_area["large"],
    }
    return {name: mean_over_classes(values) for name, values in selected.items()}


def bootstrap(
    matches: Matches,
    metric: Callable[[Matches, np.ndarray], np.ndarray],
    random: np.random.Generator,
    resamples: int = 1000,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Return a metric of a detector on resampled images: [resamples].

    A replicate's images depend only on `random` and the groups. With generators in the same state, detectors are
    evaluated on the same images, so that their replicates can be subtracted from each other.

    Args:
        matches: matches of the detector.
        metric: function of matches and image weights [I, R] that returns the metric, [R]; `average_precision` returns
            several.
        random: generator that draws the images.
        resamples: number of replicates.
        groups: [I] int64, 0 to G - 1: images of one group are drawn together. None: single images are drawn.
    """
    largest = max(1, int(np.diff(matches.detection_offsets).max(initial=1)))
    units = matches.images if groups is None else int(groups.max()) + 1
    drawn = _resampled(units, resamples, max(1, _CHUNK // largest), random)
    return np.concatenate([metric(matches, counts if groups is None else counts[groups]) for counts in drawn])


def mean_over_classes(precision: np.ndarray) -> np.ndarray:
    """Average [..., K, R] over all dimensions but replicates, without the classes that have no object: [R]."""
    flat = precision.reshape(-1, precision.shape[-1])
    present = ~np.isnan(flat)
    with np.errstate(invalid="ignore"):  # 0 / 0 if no class has an object
        return np.where(present, flat, 0).sum(axis=0) / present.sum(axis=0)


def _resampled(units: int, resamples: int, chunk: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield how often each unit occurs in samples with replacement, as [units, at most chunk].

    The replicates do not depend on the chunk size.
    """
    chances = np.full(units, 1 / units)
    for start in range(0, resamples, chunk):
        counts = random.multinomial(units, chances, size=min(chunk, resamples - start))
        yield np.ascontiguousarray(counts.T, dtype=np.float64)
