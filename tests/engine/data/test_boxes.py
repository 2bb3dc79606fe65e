"""The rules for bad annotations, each in training and in evaluation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from engine.data.boxes import UNKNOWN, BoxSplit, Objects, build_dataset, build_split, clean
from engine.data.transforms import UnreadableImage
from engine.errors import UserError
from tests.conftest import write_image

GOOD = (10.0, 10.0, 30.0, 30.0)
Box = tuple[float, float, float, float]


def split(
    boxes: Sequence[Box],
    image: Sequence[int],
    labels: Sequence[int] | None = None,
    crowd: Sequence[int] = (),
    images: int = 2,
    root: Path = Path(),
) -> BoxSplit:
    """Images a.jpg, b.jpg, ... of 48x40 pixels."""
    box = np.array(boxes, dtype=float).reshape(-1, 4)
    of = Objects(
        image=np.array(image, dtype=int),
        boxes=box,
        labels=np.zeros(len(box), dtype=int) if labels is None else np.array(labels),
        areas=(box[:, 2:] - box[:, :2]).prod(axis=1),
        crowd=np.isin(np.arange(len(box)), crowd),
        difficult=np.zeros(len(box), dtype=bool),
    )
    files = [f"{letter}.jpg" for letter in "abcdefgh"[:images]]
    return build_split(root, files, range(images), np.array([(48, 40)] * images), of)


def with_good(bad: Box, **options: Sequence[int]) -> BoxSplit:
    """Two images with a good box each, the second with a bad one as well."""
    return split([GOOD, GOOD, bad], [0, 1, 1], **options)


CASES = {
    "Boxes of unknown classes": (with_good((0, 0, 9, 9), labels=[0, 0, UNKNOWN]), "removed", 2, "removed", 2),
    "Boxes without area": (with_good((5, 5, 5, 9)), "removed", 2, "removed", 2),
    "Boxes outside of their image": (with_good((48, 5, 60, 9)), "removed", 2, "removed", 2),
    "Boxes partly outside of their image": (with_good((-2, 30, 60, 50)), "clipped to the image", 3, "kept", 3),
    "Crowds": (with_good((0, 0, 40, 40), crowd=[2]), "removed", 2, "ignored in evaluation", 3),
    "Near-duplicate boxes": (with_good((10, 10, 30, 31)), "all but the first removed", 2, "kept", 3),
}


@pytest.mark.parametrize("what", CASES)
def test_bad_boxes_are_named_once(what: str) -> None:
    raw, in_training, left_in_training, in_evaluation, left_in_evaluation = CASES[what]
    for training, handling, left in ((True, in_training, left_in_training), (False, in_evaluation, left_in_evaluation)):
        cleaned, problems = clean(raw, training)
        assert [str(problem) for problem in problems] == [f"{what}: 1 (first in b.jpg), {handling}."]
        assert cleaned.offsets.tolist() == [0, 1, left]
        assert cleaned.boxes[:2].tolist() == [list(GOOD)] * 2


def test_boxes_partly_outside_are_cut_in_training_only() -> None:
    raw = CASES["Boxes partly outside of their image"][0]
    assert clean(raw, training=True)[0].boxes[2].tolist() == [0, 30, 48, 40]
    assert clean(raw, training=False)[0].boxes[2].tolist() == [-2, 30, 60, 50]


@pytest.mark.parametrize("bad", [(9, 9, 5, 5), (float("nan"), 0, 9, 9), (0, 0, float("nan"), 9)])
def test_invalid_boxes_have_no_area(bad: Box) -> None:
    cleaned, problems = clean(with_good(bad), training=True)
    assert [problem.what for problem in problems] == ["Boxes without area"]
    assert len(cleaned.boxes) == 2


def test_images_without_boxes_are_only_evaluated() -> None:
    raw = split([GOOD, (5, 5, 5, 5), GOOD], [0, 1, 3], images=4)
    cleaned, problems = clean(raw, training=True)
    assert [str(problem) for problem in problems][1] == "Images without boxes: 2 (first in b.jpg), removed."
    assert cleaned.files.tolist() == [b"a.jpg", b"d.jpg"]
    assert cleaned.ids.tolist() == [0, 3]
    assert cleaned.offsets.tolist() == [0, 1, 2]
    assert len(clean(raw, training=False)[0]) == 4


def test_near_duplicates_share_image_and_class() -> None:
    raw = split([GOOD, GOOD, GOOD], [0, 0, 1], labels=[0, 1, 0])
    assert clean(raw, training=True)[1] == []


def test_good_annotations_are_left_as_they_are() -> None:
    raw = split([GOOD, (0, 0, 48, 40)], [0, 1])
    cleaned, problems = clean(raw, training=True)
    assert problems == []
    assert all(np.array_equal(getattr(raw, name), getattr(cleaned, name)) for name in ("boxes", "labels", "offsets"))


def test_first_absent_file_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", 100, seed=0)
    raw = split([GOOD, GOOD], [0, 1], root=tmp_path)
    with pytest.raises(UserError, match=r"1 of 2 annotated images cannot be read \(first: .*b\.jpg\)"):
        build_dataset("some", ["one"], raw, raw)


def test_a_split_without_usable_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training images with boxes"):
        build_dataset("some", ["one"], split([], [], root=tmp_path), split([GOOD], [0], root=tmp_path))


def test_fingerprint_covers_files_and_annotations(tmp_path: Path) -> None:
    for name in "ab":
        write_image(tmp_path / f"{name}.jpg", 100, seed=0)

    def fingerprint(boxes: Sequence[Box] = (GOOD, GOOD), labels: Sequence[int] = (0, 0), name: str = "one") -> str:
        raw = split(boxes, [0, 1], labels, root=tmp_path)
        return build_dataset("some", [name, "two"], raw, raw).fingerprint

    prints = [fingerprint(), fingerprint([GOOD, (10, 10, 30, 31)]), fingerprint(labels=[0, 1]), fingerprint(name="x")]
    assert fingerprint() == prints[0]
    write_image(tmp_path / "b.jpg", 200, seed=5)
    assert len({*prints, fingerprint()}) == 5


def test_image_size_must_match_annotation(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", 100, seed=0, height=40, width=48)
    write_image(tmp_path / "b.jpg", 100, seed=0, height=48, width=40)
    raw = split([GOOD, GOOD], [0, 1], root=tmp_path)
    assert raw.image(0).shape == (3, 40, 48)
    with pytest.raises(UnreadableImage, match="40x48 pixels, but its annotation says 48x40"):
        raw.image(1)
