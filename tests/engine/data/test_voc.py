"""VOC's layout: what is read, what is refused, and BCCD."""

from pathlib import Path

import PIL.Image
import pytest

from engine.data.voc import CLASSES, open_voc, open_voc2007
from engine.errors import UserError
from tests.conftest import write_image

CELLS = ["RBC", "WBC", "Platelets"]


def element(name: str, box: tuple[int, int, int, int], difficult: int = 0) -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(names, box, strict=True))
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult>{part}<bndbox>{sides}</bndbox></object>"


def write(folder: Path, lists: dict[str, list[str]], *objects: str) -> None:
    """Images of 48x40 pixels, each with the same objects."""
    for folder_name in ("Annotations", "ImageSets/Main"):
        (folder / folder_name).mkdir(parents=True, exist_ok=True)
    size = "<size><width>48</width><height>40</height><depth>3</depth></size>"
    for split, names in lists.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            xml = f"<annotation>{size}{''.join(objects)}</annotation>"
            (folder / "Annotations" / f"{name}.xml").write_text(xml)
            write_image(folder / "JPEGImages" / f"{name}.jpg", 100, seed=sum(name.encode()))


def test_voc_boxes_are_one_based_and_inclusive(tmp_path: Path) -> None:
    write(
        tmp_path, {"train": ["b", "a"], "val": ["c"]}, element("WBC", (1, 1, 48, 40)), element("RBC", (5, 6, 7, 8), 1)
    )
    dataset = open_voc(tmp_path, CELLS)
    assert dataset.train.files.tolist() == [b"JPEGImages/b.jpg", b"JPEGImages/a.jpg"]
    assert dataset.train.ids.tolist() == ["b", "a"]
    assert dataset.val.boxes.tolist() == [[0, 0, 48, 40], [4, 5, 7, 8]]
    assert dataset.val.areas.tolist() == [48 * 40, 9]
    assert dataset.val.labels.tolist() == [1, 0]
    assert dataset.val.difficult.tolist() == [False, True]
    assert dataset.problems == {"train": [], "val": []}


@pytest.mark.parametrize("devkit", ["", "VOCdevkit"])
def test_voc2007_splits(devkit: str, tmp_path: Path) -> None:
    write(tmp_path / devkit / "VOC2007", {"trainval": ["000005"], "test": ["000001"]}, element("dog", (1, 1, 9, 9)))
    write(tmp_path / devkit / "VOC2012", {"trainval": ["2008_000002"]}, element("person", (1, 1, 9, 9)))
    dataset = open_voc2007(tmp_path)
    assert dataset.classes == list(CLASSES)
    assert dataset.train.ids.tolist() == ["000005", "2008_000002"]
    assert [CLASSES[label] for label in dataset.train.labels] == ["dog", "person"]
    assert dataset.val.files.tolist() == [b"VOC2007/JPEGImages/000001.jpg"]


def test_unusable_boxes_and_classes_are_dropped(tmp_path: Path) -> None:
    good, click, other = element("RBC", (1, 1, 9, 9)), element("RBC", (5, 5, 5, 5)), element("yeast", (2, 2, 20, 20))
    write(tmp_path, {"train": ["a"], "val": ["b"]}, good, click, other)
    dataset = open_voc(tmp_path, CELLS)
    for split, name in (("train", "a"), ("val", "b")):
        assert [str(problem) for problem in dataset.problems[split]] == [
            f"Boxes of unknown classes (yeast): 1 (first in JPEGImages/{name}.jpg), removed.",
            f"Boxes without area: 1 (first in JPEGImages/{name}.jpg), removed.",
        ]
    assert len(dataset.train.boxes) == 1


def test_an_absent_image_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"train": ["a"], "val": ["b"]}, element("RBC", (1, 1, 9, 9)))
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 1 annotated images cannot be read \(first: .*a\.jpg\)"):
        open_voc(tmp_path, CELLS)


def test_absent_list_says_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ImageSets/Main/train\.txt cannot be read; .*data=shapes_boxes"):
        open_voc(tmp_path, CELLS)


def test_an_image_listed_twice_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"train": ["a", "a"], "val": ["b"]}, element("RBC", (1, 1, 9, 9)))
    with pytest.raises(UserError, match="lists the image a more than once"):
        open_voc(tmp_path, CELLS)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "<annotation>",
        "<annotation><object/></annotation>",
        "<annotation><size><width>48</width><height>40</height></size><object><name>RBC</name></object></annotation>",
    ],
)
def test_broken_annotation_is_named(content: str, tmp_path: Path) -> None:
    write(tmp_path, {"train": ["a"], "val": ["b"]}, element("RBC", (1, 1, 9, 9)))
    (tmp_path / "Annotations" / "b.xml").write_text(content)
    with pytest.raises(UserError, match=r"annotation .*b\.xml cannot be read"):
        open_voc(tmp_path, CELLS)


def names_of(root: Path, *lines: str, encoding: str = "utf-8") -> list[str]:
    for split in ("train", "val"):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(lines), encoding=encoding)
    return [str(name) for name in open_voc(root, CELLS).train.ids]


def test_a_line_of_a_list_is_a_name(tmp_path: Path) -> None:
    """Spaces belong to it, but for the column of a list of one class."""
    names = ["im 1", "scan1", "scan1 copy", "photo (2)", "im"]
    write(tmp_path, {"train": names, "val": names}, element("RBC", (1, 1, 9, 9)))
    assert names_of(tmp_path, "im 1", "scan1 copy", "photo (2)") == ["im 1", "scan1 copy", "photo (2)"]
    assert names_of(tmp_path, "scan1 -1", "scan1 copy  1", "im 0", "") == ["scan1", "scan1 copy", "im"]
    assert names_of(tmp_path, "scan1.jpg", "im 1.JPG") == ["scan1", "im 1"]
    assert names_of(tmp_path, "scan1", "im", encoding="utf-8-sig") == ["scan1", "im"]
    assert names_of(tmp_path, "scan1", "im", encoding="utf-16") == ["scan1", "im"]


def test_every_box_of_an_object_is_read(tmp_path: Path) -> None:
    boxes = "".join(
        f"<bndbox><xmin>{x}</xmin><ymin>1</ymin><xmax>{x + 8}</xmax><ymax>9</ymax></bndbox>" for x in (1, 11, 21)
    )
    write(
        tmp_path,
        {"train": ["a"], "val": ["b"]},
        f"<object><name>RBC</name>{boxes}</object>",
        element("WBC", (1, 20, 9, 30)),
    )
    train = open_voc(tmp_path, CELLS).train
    assert train.boxes.tolist() == [[0, 0, 9, 9], [10, 0, 19, 9], [20, 0, 29, 9], [0, 19, 9, 30]]
    assert train.labels.tolist() == [0, 0, 0, 1]


def test_boxes_that_count_from_0_are_reported_and_read_with_a_key(tmp_path: Path) -> None:
    write(tmp_path, {"train": ["a"], "val": ["b"]}, element("RBC", (0, 0, 9, 9)), element("RBC", (20, 10, 30, 20)))
    data = open_voc(tmp_path, CELLS)
    assert (
        "Boxes with a corner at 0: 1 (first in JPEGImages/a.jpg), read as VOC's, which count from 1; if these"
        in str(data.problems["train"][-1])
    )
    data = open_voc(tmp_path, CELLS, first_pixel=0)
    assert data.problems == {"train": [], "val": []}
    assert data.train.boxes.tolist() == [[0, 0, 9, 9], [20, 10, 30, 20]]


def test_fractions_are_an_error(tmp_path: Path) -> None:
    box = "<bndbox><xmin>0.1</xmin><ymin>0.2</ymin><xmax>0.5</xmax><ymax>0.9</ymax></bndbox>"
    write(tmp_path, {"train": ["a"], "val": ["b"]}, f"<object><name>RBC</name>{box}</object>")
    with pytest.raises(UserError, match=r"are fractions of the image, not pixels .*Multiply x by the width"):
        open_voc(tmp_path, CELLS)


@pytest.mark.parametrize("width", ["0", "48.0", "", "unknown", "96000000"])
def test_sizes_are_read_from_the_image_where_the_annotation_has_none(width: str, tmp_path: Path) -> None:
    write(tmp_path, {"train": ["a"], "val": ["b"]}, element("RBC", (1, 1, 9, 9)))
    file = tmp_path / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<width>48<", f"<width>{width}<"))
    data = open_voc(tmp_path, CELLS)
    assert data.train.sizes.tolist() == [[48, 40]]
    assert [problem.what for problem in data.problems["train"]] == (
        [] if width == "48.0" else ["Images without a valid size"]
    )


def test_images_without_annotation_are_counted(tmp_path: Path) -> None:
    write(tmp_path, {"train": ["a", "b", "c"], "val": ["d"]}, element("RBC", (1, 1, 9, 9)))
    for name in "bc":
        (tmp_path / "Annotations" / f"{name}.xml").unlink()
    with pytest.raises(UserError, match=r"2 of 3 listed images have no annotation \(first: .*b\.xml\)\. Add the file"):
        open_voc(tmp_path, CELLS)


def test_other_spellings_of_all_classes_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"train": ["a"], "val": ["b"]}, element("rbc", (1, 1, 9, 9)), element("wbc", (11, 11, 19, 19)))
    with pytest.raises(UserError, match=r"no training images .*; the annotations name rbc, wbc"):
        open_voc(tmp_path, CELLS)


def test_images_of_a_camera_have_capital_extensions(tmp_path: Path) -> None:
    write(tmp_path, {"train": ["a"], "val": ["b"]}, element("RBC", (1, 1, 9, 9)))
    for name in "ab":
        (tmp_path / "JPEGImages" / f"{name}.jpg").rename(tmp_path / "JPEGImages" / f"{name}.JPG")
    assert open_voc(tmp_path, CELLS).train.files.tolist() == [b"JPEGImages/a.JPG"]


def test_bccd_is_read_and_its_faults_named(bccd: Path) -> None:
    dataset = open_voc(bccd, CELLS, "bccd", train=("train", "val"), val=("test",))
    assert (len(dataset.train), len(dataset.val)) == (292, 72)
    problems = [str(problem) for problem in dataset.problems["train"]]
    assert problems[0] == "Boxes without area: 2 (first in JPEGImages/BloodImage_00343.jpg), removed."
    near = sum(one.count for found in dataset.problems.values() for one in found if one.what == "Near-duplicate boxes")
    assert near == 8
    assert len(dataset.train.boxes) + len(dataset.val.boxes) == 4888 - 2 - (near - 1)
    assert dataset.train.image(0).shape == (3, 480, 640)


def test_images_of_other_formats_are_found(tmp_path: Path) -> None:
    """WebP can be decoded; other formats are named when they are decoded, and not said to be absent."""
    write(tmp_path, {"train": ["a", "b"], "val": ["c"]}, element("RBC", (1, 1, 9, 9)))
    for name, extension in (("a", ".webp"), ("b", ".bmp")):
        image = tmp_path / "JPEGImages" / f"{name}.jpg"
        PIL.Image.open(image).save(image.with_suffix(extension))
        image.unlink()
    train = open_voc(tmp_path, CELLS).train
    assert train.image(0).shape == (3, 40, 48)
    with pytest.raises(UserError, match=r"b\.bmp cannot be decoded \(it is not a JPEG, PNG, WebP or GIF file"):
        train.image(1)


def test_difficult_may_be_a_word(tmp_path: Path) -> None:
    write(tmp_path, {"train": ["a"], "val": ["c"]}, element("RBC", (1, 1, 9, 9)), element("RBC", (11, 1, 19, 9), 1))
    for file in (tmp_path / "Annotations").iterdir():
        file.write_text(file.read_text().replace("<difficult>1<", "<difficult>True<"))
    assert open_voc(tmp_path, CELLS).val.difficult.tolist() == [False, True]
