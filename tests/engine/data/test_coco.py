"""COCO's layout: what is read, what is refused, the real format, and the generated scenes."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
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
            write_image(root / f"{split}2017" / f"{i}.jpg", 100, seed=i + 10 * (split == "val"))
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
        "Boxes of unknown classes (category 99): 1 (first in train2017/5.jpg), removed.",
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
        ({"annotations": [{"image_id": 5}]}, r"malformed \(one has no bbox\)"),
        ({"annotations": [annotation(1, 5, [1, 2, 3, 4]) | {"bbox": [1, 2, 3]}] * 4}, "malformed"),
        ({"images": [{"id": 5, "file_name": "5.jpg", "width": 48, "height": 40}] * 2}, "an image id occurs twice"),
        ({"annotations": [annotation(1, 5, [1, 2, 3, 4], area=-1)]}, "an area is not a finite number"),
        ({"annotations": [annotation(1, 5, [1, 2, 3, 4], area=10**400)]}, "malformed"),
        ({"annotations": [annotation(1, 5, [1, 2, 3, 4], iscrowd="no")]}, "iscrowd is neither 0 nor 1"),
        ({"categories": [*CATEGORIES, CATEGORIES[0]]}, "an id or name occurs twice"),
        ({"categories": [{"id": 1.5, "name": "cat"}]}, "1.5 is not an integer"),
        (
            {"images": [{"id": "nine", "file_name": "9.jpg", "width": 48, "height": 40}]},
            "No annotation of .*train2017.json belongs to a listed image: the first image_id is 5, .* is 'nine'",
        ),
        (
            {"annotations": [annotation(1, 5, [1, 2, 3, 4], category=9)]},
            "lists no training .* annotations name category 9",
        ),
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


def change(root: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """Edit the annotations of both splits."""
    for file in (root / "annotations").iterdir():
        document = json.loads(file.read_text())
        edit(document)
        file.write_text(json.dumps(document))
    return root


def test_entries_of_one_file_are_one_image(tmp_path: Path) -> None:
    """One entry for each annotation, as some converters write them, and one that repeats another's box."""

    def edit(document: dict[str, Any]) -> None:
        document["images"] = [one | {"id": 10 * one["id"] + k} for one in document["images"] for k in (0, 1)]
        for number, one in enumerate(document["annotations"]):
            one["image_id"] = 10 * one["image_id"] + number % 2
        document["annotations"].append(document["annotations"][1] | {"id": 9, "image_id": 20})

    expected = open_coco(write(tmp_path / "one")).train
    data = open_coco(change(write(tmp_path / "two"), edit))
    assert data.train.files.tolist() == expected.files.tolist()
    assert np.diff(data.train.offsets).tolist() == [2, 2]
    assert data.train.boxes.tolist() == expected.boxes.tolist()
    assert "Images with several ids: 2 (first in train2017/2.jpg), their boxes are those of one image." in map(
        str, data.problems["train"]
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda box: [box[0] / 48, box[1] / 40, box[2] / 48, box[3] / 40], "are fractions of the image, not pixels"),
        (lambda box: [box[:2], box[2:]], r"bbox=\[\[.*\]\] of annotation 1 is not \[x, y, width, height\]"),
        (
            lambda box: [box[0] + 9, box[1] + 9, box[0] + 29, box[1] + 28],
            r"\[x1, y1, x2, y2\].*Replace x2 by",
        ),
        (lambda box: box[:3], "is not"),
        (lambda box: [*box[:3], "wide"], "malformed"),
    ],
    ids=["fractions", "pairs", "corners", "three", "words"],
)
def test_boxes_of_other_units_are_an_error(
    edit: Callable[[list[float]], list[Any]], message: str, tmp_path: Path
) -> None:
    def edit_all(document: dict[str, Any]) -> None:
        for one in document["annotations"]:
            one["bbox"] = edit(one["bbox"])

    with pytest.raises(UserError, match=message):
        open_coco(change(write(tmp_path), edit_all))


def as_text(document: dict[str, Any]) -> None:
    for image in document["images"]:
        image |= {key: str(image[key]) for key in ("id", "width", "height")}
    for one in document["annotations"]:
        one |= {key: str(one[key]) for key in ("image_id", "category_id", "area", "iscrowd")}
        one["bbox"] = [str(value) for value in one["bbox"]]
    for category in document["categories"]:
        category["id"] = str(category["id"])


def only_image_ids_as_text(document: dict[str, Any]) -> None:
    for image in document["images"]:
        image["id"] = str(image["id"])


def only_image_ids_as_decimals(document: dict[str, Any]) -> None:
    for image in document["images"]:
        image["id"] = f"{image['id']}.0"


@pytest.mark.parametrize("edit", [as_text, only_image_ids_as_text, only_image_ids_as_decimals])
def test_numbers_as_text_are_numbers(edit: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    expected, data = open_coco(write(tmp_path / "one")), open_coco(change(write(tmp_path / "two"), edit))
    assert data.fingerprint == expected.fingerprint
    assert data.train.ids.tolist() == [2, 5]


def test_names_that_python_reads_as_numbers_are_names(tmp_path: Path) -> None:
    """Frames of videos: 1_11 and 11_1 are not the number 111, nor are 1e1 and 10 the same."""
    for number, names in enumerate((("1_11", "11_1"), ("1e1", "10"))):

        def rename(document: dict[str, Any], names: tuple[str, str] = names) -> None:
            new = dict(zip((2, 5), names, strict=True))
            for image in document["images"]:
                image["id"] = new[image["id"]]
            for one in document["annotations"]:
                one["image_id"] = new[one["image_id"]]

        data = open_coco(change(write(tmp_path / str(number)), rename))
        assert sorted(data.train.ids.tolist()) == sorted(names)
        assert len(data.train.boxes) == 4


def test_paths_that_are_all_wrong_are_said_to_be(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        for image in document["images"]:
            image["file_name"] = f"C:\\images\\{image['file_name']}"

    with pytest.raises(UserError, match=r"2 of 2 annotated images cannot .*Correct data\.root, or the paths"):
        open_coco(change(write(tmp_path), edit))


def test_an_absent_area_is_that_of_the_box(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        del document["annotations"][0]["area"]

    data = open_coco(change(write(tmp_path), edit))
    assert data.train.areas.tolist() == [15, 50, 210, 50]
    assert any("Boxes without an annotated area: 1" in str(problem) for problem in data.problems["train"])


@pytest.mark.parametrize("width", [0, None, "", 4.5, 96_000_000, -3])
def test_an_impossible_size_is_read_from_the_image(width: object, tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["images"][0]["width"] = width

    data = open_coco(change(write(tmp_path), edit))
    assert data.train.sizes.tolist() == [[48, 40]] * 2
    assert any("Images without a valid size: 1 (first in train2017/5.jpg)" in str(p) for p in data.problems["train"])


def with_orientation(root: Path, value: int, upright: bool) -> None:
    """Store every image so that a viewer shows the picture of before (`upright`), or just add the tag."""
    turn = {3: PIL.Image.Transpose.ROTATE_180, 6: PIL.Image.Transpose.ROTATE_90}[value]
    exif = PIL.Image.Exif()
    exif[0x0112] = value
    for file in root.rglob("*.jpg"):
        image = PIL.Image.open(file).copy()
        (image.transpose(turn) if upright else image).save(file, exif=exif, quality=95)


@pytest.mark.parametrize("value", [3, 6])
def test_boxes_in_the_upright_picture_get_the_upright_picture(value: int, tmp_path: Path) -> None:
    root = write(tmp_path)
    before = open_coco(root).train.image(0)
    with_orientation(root, value, upright=True)
    train = open_coco(root).train
    difference = (train.image(0).int() - before.int()).abs().float().mean()
    assert difference < 6  # of another compression; turned the wrong way it is 23
    assert "1 of 1 images read" in train.new_findings()[0]


def test_boxes_in_the_stored_picture_get_the_stored_picture(tmp_path: Path) -> None:
    """The annotated size is that before the orientation, and no box exceeds it."""
    root = write(tmp_path)
    before = open_coco(root).train.image(0)
    with_orientation(root, 6, upright=False)
    assert (open_coco(root).train.image(0).int() - before.int()).abs().float().mean() < 6


def test_boxes_in_the_upright_picture_with_the_stored_size_are_an_error(tmp_path: Path) -> None:
    """Label Studio's export of photographs from a phone."""

    def edit(document: dict[str, Any]) -> None:
        document["annotations"][0]["bbox"] = [10, 30, 20, 17]  # below 40, the stored height

    root = change(write(tmp_path), edit)
    with_orientation(root, 6, upright=False)
    with pytest.raises(UserError, match=r"1 images \(first: train2017/5\.jpg\) have boxes in the upright"):
        open_coco(root)


def test_images_in_both_splits_are_reported(tmp_path: Path) -> None:
    root = write(tmp_path)
    shutil.copy(root / "train2017" / "2.jpg", root / "val2017" / "5.jpg")
    (problem,) = open_coco(root).problems["val"]
    assert str(problem).startswith("Validation images that are training images too: 1 (first in val2017/5.jpg), kept;")


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
