"""AP against pycocotools, and the bootstrap against repeated images and known differences."""

import contextlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.tasks import coco_matching, voc_metric
from engine.tasks.average_precision import (
    Detections,
    GroundTruth,
    Matches,
    average_precision,
    bootstrap,
    interpolated_precision,
)

IMAGES, CLASSES = 40, 4


def boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """Boxes of every area range, float64 that float32 can hold."""
    sides = np.exp(random.uniform(2, 5.5, (count, 2)))
    corner = random.uniform(0, 300, (count, 2))
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32).astype(np.float64)


def objects(random: np.random.Generator, count: int = 300, images: int = IMAGES) -> GroundTruth:
    """Objects in half of the images, overlapping each other, some of them crowds; one class has crowds only."""
    box = boxes(random, count)
    near = random.random(count) < 0.3
    box[near] = box[random.integers(0, count, near.sum())]  # the same box again, maybe in another image or class
    labels = random.integers(0, CLASSES, count)
    sides = box[:, 2:] - box[:, :2]
    return GroundTruth(
        images=images,
        classes=CLASSES + 1,
        image=np.sort(random.integers(0, images // 2, count)),
        labels=labels,
        boxes=box,
        areas=sides.prod(axis=1) * random.uniform(0.4, 1, count),
        ignored=(random.random(count) < 0.1) | (labels == 3),
    )


def found(truth: GroundTruth, random: np.random.Generator, noise: float = 0.1, ties: bool = True) -> Detections:
    """Every object some times, moved by `noise` of its sides, and chance detections in three quarters of the images."""
    again = random.integers(0, 4, len(truth.labels))
    box = np.repeat(truth.boxes, again, axis=0)
    sides = box[:, 2:] - box[:, :2]
    box = box + np.tile(sides, 2) * random.normal(0, noise, box.shape)
    chance = len(box) // 2
    box = np.concatenate([box, boxes(random, chance)]).astype(np.float32).astype(np.float64)
    box[:, 2:] = np.maximum(box[:, 2:], box[:, :2])  # some without area
    scores = random.beta(2, 3, len(box))
    where = random.integers(0, truth.images * 3 // 4, chance)
    return Detections(
        image=np.concatenate([np.repeat(truth.image, again), where]),
        labels=np.concatenate([np.repeat(truth.labels, again), random.integers(0, CLASSES + 1, chance)]),
        scores=scores.round(1) if ties else scores,
        boxes=box,
    )


def by_pycocotools(truth: GroundTruth, detections: Detections) -> np.ndarray:
    """AP, AP50, AP75, small, medium, large."""
    reason = "pycocotools, the reference, is not installed"
    api = pytest.importorskip("pycocotools.coco", reason=reason)
    evaluator = pytest.importorskip("pycocotools.cocoeval", reason=reason)

    def xywh(box: np.ndarray) -> list[float]:
        return [*map(float, box[:2]), *map(float, box[2:] - box[:2])]

    annotations: list[dict[str, Any]] = [
        {
            "id": i + 1,
            "image_id": int(truth.image[i]),
            "category_id": int(truth.labels[i]),
            "bbox": xywh(truth.boxes[i]),
            "area": float(truth.areas[i]),
            "iscrowd": int(truth.ignored[i]),
        }
        for i in range(len(truth.labels))
    ]
    results: list[dict[str, Any]] = [
        {
            "image_id": int(detections.image[i]),
            "category_id": int(detections.labels[i]),
            "bbox": xywh(detections.boxes[i]),
            "score": float(detections.scores[i]),
        }
        for i in range(len(detections.labels))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = api.COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(truth.images)],
            "categories": [{"id": k} for k in range(truth.classes)],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = evaluator.COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6]


def point(matches: Matches) -> np.ndarray:
    return np.array([float(value[0]) for value in average_precision(matches).values()])


def test_matching_takes_best_free_object_crowds_any() -> None:
    # Object 0 goes to detection 0, so detection 1 gets object 1 (IoU 80 / 90), its second choice. Detections 2 and 3
    # are inside the crowd and ignored; detection 4 finds nothing.
    box = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [50, 0, 90, 90]], dtype=float)
    zeros = np.zeros(3, dtype=int)
    truth = GroundTruth(1, 1, zeros, zeros, box, np.full(3, 90.0), np.array([False, False, True]))
    found = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 60, 10], [60, 0, 70, 10], [20, 0, 30, 10]], dtype=float)
    five = np.zeros(5, dtype=int)
    matches = coco_matching.match(truth, Detections(five, five, np.array([0.9, 0.8, 0.7, 0.6, 0.5]), found))
    assert matches.outcome[0, 0].tolist() == [1, 1, 2, 2, 0]  # IoU 0.5
    assert matches.outcome[0, 8].tolist() == [1, 0, 2, 2, 0]  # IoU 0.9, which 80 / 90 does not reach
    assert point(matches)[:2] == pytest.approx([(8 + 2 * 51 / 101) / 10, 1])


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.15])
@pytest.mark.parametrize("ties", [False, True])
def test_ap_equals_pycocotools(noise: float, ties: bool) -> None:
    random = np.random.default_rng(int(100 * noise))
    truth = objects(random)
    detections = found(truth, random, noise, ties)
    np.testing.assert_allclose(
        point(coco_matching.match(truth, detections)), by_pycocotools(truth, detections), atol=1e-12
    )


def test_ap_equals_pycocotools_beyond_100_detections() -> None:
    random = np.random.default_rng(3)
    truth = replace(objects(random, 120, images=4), labels=np.zeros(120, dtype=int))
    detections = found(truth, random, 0.05)
    # The chance detections, which are the last, get the highest scores, so that the limit cuts true positives off.
    detections = replace(
        detections, labels=np.zeros_like(detections.labels), scores=np.linspace(0, 1, len(detections.image))
    )
    assert np.bincount(detections.image).max() > 100
    np.testing.assert_allclose(
        point(coco_matching.match(truth, detections)), by_pycocotools(truth, detections), atol=1e-12
    )


def test_detection_limit_is_per_image_and_class() -> None:
    count = coco_matching.MAX_DETECTIONS + 1
    box = np.array([[0, 0, 50, 50.0]])
    truth = GroundTruth(2, 1, np.zeros(1, int), np.zeros(1, int), box, np.full(1, 2500.0), np.zeros(1, bool))
    far = np.repeat(box + 100, count, axis=0)
    far[-1] = box[0]  # the last of the first image finds the object, too late
    image = np.zeros(count, dtype=int)
    detections = Detections(image, image, np.linspace(1, 0, count), far)
    assert point(coco_matching.match(truth, detections))[0] == 0
    in_time = Detections(*(values[1:] for values in vars(detections).values()))
    assert point(coco_matching.match(truth, in_time))[0] == pytest.approx(1 / 100)


def test_ties_in_overlap_coco_takes_last_voc_first() -> None:
    box = np.array([[8, 0, 18, 10], [12, 0, 22, 10]], dtype=float)
    zeros = np.zeros(2, dtype=int)
    truth = GroundTruth(1, 1, zeros, zeros, box, np.full(2, 100.0), np.zeros(2, dtype=bool))
    for second, coco, voc in ((0, [1, 1], [1, 0]), (1, [1, 0], [1, 1])):
        detections = Detections(
            zeros, zeros, np.array([0.9, 0.8]), np.stack([np.array([10, 0, 20, 10.0]), box[second]])
        )
        # At IoU 0.65 the second detection reaches one object only.
        assert coco_matching.match(truth, detections).outcome[0, 3].tolist() == coco
        assert voc_metric.match(truth, detections).outcome[0, 0].tolist() == voc


def test_ap_does_not_depend_on_the_order_of_detections() -> None:
    random = np.random.default_rng(4)
    truth = objects(random)
    detections = found(truth, random, ties=False)
    order = random.permutation(len(detections.scores))
    shuffled = Detections(*(values[order] for values in vars(detections).values()))
    ours, again = (point(coco_matching.match(truth, one)) for one in (detections, shuffled))
    assert np.array_equal(ours, again)


def test_ap_without_detections_or_objects() -> None:
    random = np.random.default_rng(5)
    truth = objects(random)
    none = Detections(np.zeros(0, int), np.zeros(0, int), np.zeros(0), np.zeros((0, 4)))
    assert np.array_equal(point(coco_matching.match(truth, none)), np.zeros(6))
    ignored = replace(truth, ignored=np.ones_like(truth.ignored))
    assert np.isnan(point(coco_matching.match(ignored, found(truth, random)))).all()


@pytest.mark.parametrize("match", [coco_matching.match, voc_metric.match])
@pytest.mark.parametrize(("image", "label"), [(IMAGES, 0), (0, CLASSES + 1), (0, -1)])
def test_unknown_image_or_class_is_refused(match: Any, image: int, label: int) -> None:
    stray = Detections(np.array([image]), np.array([label]), np.ones(1), np.array([[0, 0, 9, 9.0]]))
    with pytest.raises(ValueError, match="is not in"):
        match(objects(np.random.default_rng(0)), stray)


def repeated(truth: GroundTruth, detections: Detections, weights: np.ndarray) -> tuple[GroundTruth, Detections]:
    """The images copied as often as their weights say."""
    copies = np.repeat(np.arange(truth.images), weights)  # the original of each copy
    annotated = [np.flatnonzero(truth.image == original) for original in copies]
    detected = [np.flatnonzero(detections.image == original) for original in copies]
    a, d = np.concatenate(annotated), np.concatenate(detected)
    copied_truth = GroundTruth(
        len(copies),
        truth.classes,
        np.repeat(np.arange(len(copies)), list(map(len, annotated))),
        truth.labels[a],
        truth.boxes[a],
        truth.areas[a],
        truth.ignored[a],
    )
    image = np.repeat(np.arange(len(copies)), list(map(len, detected)))
    return copied_truth, Detections(image, detections.labels[d], detections.scores[d], detections.boxes[d])


@pytest.mark.parametrize(
    ("match", "metrics"),
    [
        (coco_matching.match, average_precision),
        (voc_metric.match, voc_metric.average_precision),
    ],
)
def test_weighted_replicate_equals_repeated_images(match: Any, metrics: Any) -> None:
    random = np.random.default_rng(6)
    truth = objects(random)
    detections = found(truth, random, ties=False)
    weights = random.multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), size=5)
    replicates = metrics(match(truth, detections), weights.T.astype(float))
    for r, weight in enumerate(weights):
        copied = metrics(match(*repeated(truth, detections, weight)))
        for name, values in copied.items():
            assert replicates[name][r] == pytest.approx(values[0], abs=1e-12), name


def test_replicate_without_a_class_omits_it() -> None:
    truth = GroundTruth(
        images=2,
        classes=2,
        image=np.array([0, 1]),
        labels=np.array([0, 1]),
        boxes=np.array([[0, 0, 50, 50.0], [0, 0, 50, 50]]),
        areas=np.full(2, 2500.0),
        ignored=np.zeros(2, bool),
    )
    detections = Detections(truth.image[:1], truth.labels[:1], np.ones(1), truth.boxes[:1])
    matches = coco_matching.match(truth, detections)
    ap = average_precision(matches, np.array([[1, 2, 0], [1, 0, 2]], dtype=float))["ap"]
    assert ap == pytest.approx([0.5, 1, 0], abs=1e-12)


def primary(matches: Matches, weights: np.ndarray) -> np.ndarray:
    return average_precision(matches, weights)["ap"]


def test_bootstrap_shares_images_between_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(7)
    truth = objects(random)
    ours, theirs = (coco_matching.match(truth, found(truth, random, noise=noise)) for noise in (0.1, 0.2))
    one, again, other = (bootstrap(m, primary, np.random.default_rng(0), 100) for m in (ours, ours, theirs))
    assert (one == again).all()
    assert np.std(one - other) < np.hypot(np.std(one), np.std(other))  # what the images have in common cancels out
    monkeypatch.setattr("engine.tasks.average_precision._CHUNK", 1)
    assert bootstrap(ours, primary, np.random.default_rng(0), 20) == pytest.approx(one[:20], abs=1e-12)


def test_images_of_a_group_are_drawn_together() -> None:
    random = np.random.default_rng(11)
    truth = objects(random, images=20)
    matches = coco_matching.match(truth, found(truth, random))
    halves = np.arange(20) % 2
    replicates = bootstrap(matches, primary, np.random.default_rng(0), 50, halves)
    possible = primary(matches, np.array([[2, 0], [1, 1], [0, 2]])[:, halves].T.astype(float))
    assert {*replicates} == {*possible}
    alone = bootstrap(matches, primary, np.random.default_rng(0), 50, np.arange(20))
    assert (alone == bootstrap(matches, primary, np.random.default_rng(0), 50)).all()


def test_replicate_without_objects_is_undefined() -> None:
    random = np.random.default_rng(10)
    truth = replace(objects(random, count=1), ignored=np.zeros(1, dtype=bool))
    matches = coco_matching.match(truth, found(truth, random))
    assert np.isnan(bootstrap(matches, primary, random, 50)).any()


def detector(truth: GroundTruth, hard: np.ndarray, skill: float, random: np.random.Generator) -> Matches:
    """Finds objects the more often the more skilled it is and the easier their image."""
    chance = 1 / (1 + np.exp(hard[truth.image] - skill))
    seen = random.random(len(chance)) < chance
    wrong = random.poisson(1.0, truth.images)
    image = np.concatenate([truth.image[seen], np.repeat(np.arange(truth.images), wrong)])
    hits = np.arange(len(image)) < seen.sum()
    scores = random.normal(np.where(hits, 1.0, 0.0), 1.0)
    outcome = hits.astype(np.int8)[None, None]
    detections = Detections(image, np.zeros_like(image), scores, np.zeros((len(image), 4)))
    return Matches.build(truth, detections, outcome, np.ones((1, len(truth.image)), dtype=bool))


def scene(images: int, random: np.random.Generator) -> tuple[GroundTruth, np.ndarray]:
    image = np.repeat(np.arange(images), random.integers(0, 6, images))
    zeros = np.zeros(len(image), dtype=int)
    truth = GroundTruth(images, 1, image, zeros, np.zeros((len(image), 4)), zeros, zeros.astype(bool))
    return truth, random.normal(0, 1.5, images)


def ap(matches: Matches, weights: np.ndarray | None = None) -> np.ndarray:
    return interpolated_precision(matches, np.linspace(0, 1, 101), weights)[0, 0, 0]


@pytest.mark.parametrize("advantage", [0.0, 0.5])
def test_interval_coverage_is_95_percent(advantage: float) -> None:
    random = np.random.default_rng(8)
    large = scene(400_000, random)
    better, worse = (ap(detector(*large, skill, random))[0] for skill in (1 + advantage, 1))
    truth = better - worse if advantage else 0.0
    covered = []
    for number in range(400):
        small = scene(150, random)
        ours, theirs = (detector(*small, skill, random) for skill in (1 + advantage, 1))
        ones = np.ones((150, 1))
        replicates = [bootstrap(m, ap, np.random.default_rng(number), 100) for m in (ours, theirs)]
        error = float((ap(ours, ones) - ap(theirs, ones))[0]) - truth
        covered.append(abs(error) < 1.96 * np.std(replicates[0] - replicates[1]))
    assert 0.92 <= np.mean(covered) <= 0.98
