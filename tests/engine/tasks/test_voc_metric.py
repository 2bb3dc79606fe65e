"""The VOC devkit's rule against cases worked out by hand, and against a loop over one detection at a time."""

import numpy as np
import pytest

from engine.data.box_geometry import overlap
from engine.tasks.average_precision import Detections, GroundTruth
from engine.tasks.voc_metric import average_precision, match
from tests.engine.tasks.test_average_precision import found, objects

Box = tuple[float, float, float, float]


def half_open(boxes: list[Box]) -> np.ndarray:
    """The devkit's boxes as `engine.data.voc` reads them."""
    return np.array(boxes, dtype=np.float64).reshape(-1, 4) - (1, 1, 0, 0)


def metric(objects: list[Box], detections: list[Box], difficult: tuple[int, ...] = ()) -> tuple[float, float]:
    """11 points and area, for one image, one class, and detections of falling score; boxes as the devkit has them."""
    zeros = np.zeros(len(objects), dtype=int)
    ignored = np.isin(np.arange(len(objects)), difficult)
    truth = GroundTruth(1, 1, zeros, zeros, half_open(objects), np.ones(len(objects)), ignored)
    none = np.zeros(len(detections), dtype=int)
    found = Detections(none, none, -np.arange(len(detections), dtype=float), half_open(detections))
    values = average_precision(match(truth, found))
    return float(values["ap_11_points"][0]), float(values["ap_area"][0])


def test_sides_are_inclusive_and_half_overlap_matches() -> None:
    # Columns 1 to 5 of 1 to 10 are 50 of 100 pixels; x2 - x1 would make it 36 of 81.
    assert metric([(1, 1, 10, 10)], [(1, 1, 5, 10)]) == pytest.approx((1, 1))
    assert metric([(1, 1, 100, 100)], [(1, 1, 49, 100)]) == (0, 0)


def test_taken_best_object_makes_a_false_positive() -> None:
    # The second detection overlaps the second object by 60 of 120, but the first by 80 of 100: COCO would match it.
    objects: list[Box] = [(1, 1, 10, 10), (1, 3, 10, 10)]
    detections: list[Box] = [(1, 1, 10, 10), (1, 1, 10, 9)]
    eleven, area = metric(objects, detections)
    assert eleven == pytest.approx(6 / 11)  # recall 0.5 at precision 1
    assert area == pytest.approx(0.5)


def test_difficult_objects_are_ignored() -> None:
    objects: list[Box] = [(1, 1, 10, 10), (101, 101, 110, 110)]
    detections: list[Box] = [(1, 1, 10, 10), (1, 1, 10, 10), (101, 101, 110, 110)]
    assert metric(objects, detections, difficult=(0,)) == pytest.approx((1, 1))
    assert metric(objects, detections) == pytest.approx(((6 + 5 * 2 / 3) / 11, 0.5 + 0.5 * 2 / 3))


def test_recalls_are_compared_with_tenths() -> None:
    # Recall 3 / 10 is reached; 3 * 0.1 is 0.30000000000000004. Precision 1 at recalls 0, 0.1, 0.2 and 0.3.
    objects: list[Box] = [(100 * i + 1, 1, 100 * i + 10, 10) for i in range(10)]
    assert metric(objects, objects[:3]) == pytest.approx((4 / 11, 0.3))


def test_envelope_is_best_precision_beyond_recall() -> None:
    # Hit, miss, hit of two objects: precision 1 up to recall 1/2 and 2/3 up to 1.
    objects: list[Box] = [(1, 1, 10, 10), (101, 1, 110, 10)]
    detections: list[Box] = [(1, 1, 10, 10), (201, 1, 210, 10), (101, 1, 110, 10)]
    assert metric(objects, detections) == pytest.approx(((6 + 5 * 2 / 3) / 11, 0.5 + 0.5 * 2 / 3))


def test_objects_match_within_image_and_class() -> None:
    box = half_open([(1, 1, 10, 10)])
    zero, one = np.zeros(1, dtype=int), np.ones(1, dtype=int)
    truth = GroundTruth(2, 2, zero, zero, box, np.ones(1), np.zeros(1, bool))
    for image, label in ((one, zero), (zero, one)):
        found = Detections(image, label, np.ones(1), box)
        assert average_precision(match(truth, found))["ap_area"] == pytest.approx([0])


def by_the_devkit(truth: GroundTruth, detections: Detections) -> tuple[float, float]:
    """VOCevaldet.m, one detection at a time: the mean over 11 points and area."""
    means = []
    for label in np.unique(truth.labels[~truth.ignored]):
        (of_class,) = np.nonzero(detections.labels == label)
        order = of_class[np.lexsort((detections.image[of_class], -detections.scores[of_class]))]
        taken, hits = set(), []
        for one in order:
            (near,) = np.nonzero((truth.labels == label) & (truth.image == detections.image[one]))
            overlaps = overlap(np.tile(detections.boxes[one], (len(near), 1)), truth.boxes[near])
            best = None if overlaps.max(initial=0) < 0.5 else near[overlaps.argmax()]
            if best is None or not truth.ignored[best]:
                hits.append(best is not None and best not in taken)
                taken.add(best)
        correct = np.cumsum(hits)
        recall = correct / ((truth.labels == label) & ~truth.ignored).sum()
        precision = correct / np.arange(1, len(hits) + 1)
        envelope = np.array([precision[i:].max() for i in range(len(hits))])
        eleven = np.mean([precision[recall >= tenth / 10].max(initial=0) for tenth in range(11)])
        means.append((eleven, (np.diff(recall, prepend=0) * envelope).sum()))
    eleven, area = np.mean(means, axis=0)
    return float(eleven), float(area)


@pytest.mark.parametrize("seed", range(6))
def test_random_scenes_as_by_the_devkit(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = objects(random)
    detections = found(truth, random, ties=seed % 2 == 0)
    values = average_precision(match(truth, detections))
    ours = (values["ap_11_points"][0], values["ap_area"][0])
    assert ours == pytest.approx(by_the_devkit(truth, detections), abs=1e-12)
