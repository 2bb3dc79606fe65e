"""COCO's layout: what is read, what is refused, the real format, and the generated scenes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.data import synthetic_boxes
from engine.data.coco import open_coco
from engine.errors import UserError
from engine.tasks import coco_matching
from engine.tasks.average_precision import Detections, GroundTruth, average_precision
from tests.conftest import write_image

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def annotation(number: int, image: int, box: list[float], category: int = 3, **more: Any) -> dict[str, Any]:
    area = box[2] * box[3] / 2
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": 0} | more


def write(root: Path, **train: Any) -> Path:
    """Images 5 and 2 in both splits, a dog and a cat in each; `train` replaces parts of the training annotations."""
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 48, "height": 40} for i in (5, 2)],
        "annotations": [
            annotation(1, 5, [1, 2, 10.5, 20], category=7),
            annotation(2, 2, [3, 4, 5, 6]),
            annotation(3, 5, [20, 5, 10, 10]),
            annotation(4, 2, [20, 5, 10, 10], category=7),
        ],
        "categories": CATEGORIES,
    }
    (root / "annotations").mkdir(parents=True)
    for split, replaced in (("train", train), ("val", {})):
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document | replaced))
        for i in (5, 2):
            write_image(root / f"{split}2017" / f"{i}.jpg", 100, seed=i)
    return root


def test_annotations_are_read_in_order_of_ids(tmp_path: Path) -> None:
    dataset = open_coco(write(tmp_path))
    assert dataset.classes == ["cat", "dog"]
    assert dataset.problems == {"train": [], "val": []}
    train = dataset.train
    assert train.files.tolist() == [b"train2017/2.jpg", b"train2017/5.jpg"]
    assert train.ids.tolist() == [2, 5]
    assert train.sizes.tolist() == [[48, 40]] * 2
    assert train.boxes[train.box_range(1)].tolist() == [[1, 2, 11.5, 22], [20, 5, 30, 15]]
    assert train.boxes.dtype == np.float32
    assert train.labels.tolist() == [0, 1, 1, 0]
    assert train.areas.tolist() == [15, 50, 105, 50]
    assert train.image(0).shape == (3, 40, 48)


def test_unknown_categories_and_images_are_dropped(tmp_path: Path) -> None:
    good = [annotation(1, 5, [1, 2, 10, 20]), annotation(2, 2, [1, 2, 10, 20])]
    bad = [annotation(3, 5, [20, 5, 10, 10], category=99), annotation(4, 77, [20, 5, 10, 10])]
    dataset = open_coco(write(tmp_path, annotations=good + bad))
    assert [str(problem) for problem in dataset.problems["train"]] == [
        "Boxes of unknown classes: 1 (first in train2017/5.jpg), removed.",
        "Annotations of images that are not listed: 1 (first in image 77), removed.",
    ]
    assert len(dataset.train.boxes) == 2


def test_absent_annotations_say_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no .*annotations/instances_train2017\.json; .*data=shapes_boxes"):
        open_coco(tmp_path)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"categories": CATEGORIES[:1]}, "different categories"),
        ({"categories": [{"name": "cat"}]}, "no valid id or name"),
        ({"annotations": [{"image_id": 5}]}, "malformed"),
        ({"annotations": [annotation(1, 5, [1, 2, 3, 4]) | {"bbox": [1, 2, 3]}] * 4}, "malformed"),
        ({"images": [{"id": 5, "file_name": "5.jpg", "width": 48, "height": 40}] * 2}, "an image id occurs twice"),
        ({"annotations": [annotation(1, 5, [1, 2, 3, 4], area=None)]}, "an area is not a finite number"),
        ({"annotations": [annotation(1, 5, [1, 2, 3, 4], area=-1)]}, "an area is not a finite number"),
        ({"annotations": [annotation(1, 5, [1, 2, 3, 4], area=10**400)]}, "malformed"),
        ({"annotations": [annotation(1, 5, [1, 2, 3, 4], iscrowd="0")]}, "iscrowd is neither 0 nor 1"),
        ({"categories": [*CATEGORIES, CATEGORIES[0]]}, "an id or name occurs twice"),
        ({"categories": [{"id": 1.5, "name": "cat"}]}, "1.5 is not an integer"),
        ({"images": [{"id": 5, "file_name": "5.jpg", "width": 0, "height": 40}]}, "width or height .* out of range"),
        ({"images": [{"id": 5, "file_name": "5.jpg", "width": 4.5, "height": 40}]}, "4.5 is not an integer"),
        ({"images": [{"id": 9, "file_name": "9.jpg", "width": 48, "height": 40}]}, "no training images with boxes"),
    ],
)
def test_malformed_annotations_are_an_error(replaced: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_coco(write(tmp_path, **replaced))


@pytest.mark.parametrize("box", [[1, 1, math.inf, 3], [1, 1, 1e39, 3], [None, 1, 2, 3]])
def test_boxes_that_are_not_finite_are_reported_and_removed(box: list[float], tmp_path: Path) -> None:
    root = write(tmp_path, annotations=[annotation(1, 5, [1, 2, 3, 4]), annotation(2, 2, [1, 2, 3, 4]) | {"bbox": box}])
    data = open_coco(root)
    assert len(data.train.boxes) == 1
    assert any("Boxes without area: 1" in str(problem) for problem in data.problems["train"])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"images": []}'])
def test_a_broken_annotation_file_is_an_error(content: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "annotations" / "instances_val2017.json").write_text(content)
    with pytest.raises(UserError, match=r"instances_val2017\.json"):
        open_coco(tmp_path)


def test_the_published_format_is_read(coco_sample: Path) -> None:
    dataset = open_coco(coco_sample)
    assert (len(dataset.classes), dataset.classes[0], dataset.classes[-1]) == (80, "person", "toothbrush")
    assert (len(dataset.train), len(dataset.val)) == (29, 30)
    assert (len(dataset.train.boxes), len(dataset.val.boxes), int(dataset.val.crowd.sum())) == (261, 226, 3)
    assert [str(problem) for problem in dataset.problems["val"]] == [
        "Crowds: 3 (first in val2017/000000087038.jpg), ignored in evaluation.",
        "Images without boxes: 2 (first in val2017/000000058636.jpg), kept.",
    ]
    assert dataset.val.image(0).ndim == 3


def test_ap_equals_pycocotools_on_coco_format(coco_sample: Path) -> None:
    api = pytest.importorskip("pycocotools.coco", reason="pycocotools, the reference, is not installed")
    evaluator = pytest.importorskip("pycocotools.cocoeval")
    dataset = open_coco(coco_sample)
    truth = GroundTruth.of(dataset.val, len(dataset.classes))
    random = np.random.default_rng(0)
    moved = truth.boxes + random.normal(0, 4, truth.boxes.shape)
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    detections = Detections(truth.image, truth.labels, random.random(len(moved)), moved)
    reference = api.COCO(str(coco_sample / "annotations" / "instances_val2017.json"))
    categories = sorted(reference.cats)
    results = [
        {
            "image_id": int(dataset.val.ids[image]),
            "category_id": categories[label],
            "bbox": [*box[:2], *(box[2:] - box[:2])],
            "score": score,
        }
        for image, label, score, box in zip(*vars(detections).values(), strict=True)
    ]
    evaluation = evaluator.COCOeval(reference, reference.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    ours = average_precision(coco_matching.match(truth, detections))
    assert 0.1 < ours["ap"][0] < 0.9
    np.testing.assert_allclose([float(value[0]) for value in ours.values()], evaluation.stats[:6], atol=1e-9)


def test_generated_scenes_are_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_boxes, "IMAGES", {"train": 20, "val": 10})
    for name in ("one", "two"):
        synthetic_boxes.generate(tmp_path / name)
    one, two = (open_coco(tmp_path / name) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert {problem.what for found in one.problems.values() for problem in found} == {"Images without boxes"}
    assert len(one.val) == 10
    assert set(one.train.labels) == set(range(5))


def test_scene_boxes_enclose_the_visible_shapes() -> None:
    scenes = [synthetic_boxes.draw_scene(np.random.default_rng(seed)) for seed in range(5)]
    objects = [one for _, found in scenes for one in found]
    assert scenes[0][0].shape == (synthetic_boxes.SIDE, synthetic_boxes.SIDE, 3)
    assert len(objects) > 5
    for label, visible in objects:
        x, y, width, height = synthetic_boxes._annotation(1, 1, label, visible)["bbox"]
        assert visible[y : y + height, x : x + width].sum() == visible.sum()
        assert all(
            side.any() for side in (visible[y], visible[y + height - 1], visible[:, x], visible[:, x + width - 1])
        )
