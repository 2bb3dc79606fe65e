"""Pascal VOC's layout: `JPEGImages/`, `Annotations/` in XML, and lists of images in `ImageSets/Main/`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from engine.data.box_geometry import area
from engine.data.boxes import UNKNOWN, BoxDataset, BoxSplit, Objects, build_dataset, build_split
from engine.data.file_index import EXTENSIONS
from engine.errors import UserError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class _Object(NamedTuple):
    box: tuple[float, float, float, float]
    label: int
    difficult: bool


def open_voc2007(root: Path, name: str = "voc2007") -> BoxDataset:
    """Read VOC 2007 trainval and VOC 2012 trainval for training, and VOC 2007 test for evaluation.

    Args:
        root: the folder that contains VOC2007 and VOC2012, or VOCdevkit with them.
        name: name of the data set.
    """
    devkit = root / "VOCdevkit"
    folder = devkit if devkit.is_dir() else root
    return open_voc(folder, CLASSES, name, train=("VOC2007/trainval", "VOC2012/trainval"), val=("VOC2007/test",))


def open_voc(
    root: Path,
    classes: Sequence[str],
    name: str = "voc",
    train: Sequence[str] = ("train",),
    val: Sequence[str] = ("val",),
) -> BoxDataset:
    """Read a data set in VOC's layout.

    Args:
        root: folder of the data set.
        classes: names of the classes to use; objects of other classes are removed.
        name: name of the data set.
        train, val: image lists: `train` is ImageSets/Main/train.txt in `root`, and `VOC2007/train` is that file in its
            folder VOC2007.

    Raises:
        UserError: if files are missing or malformed, or no image is listed.
    """
    return build_dataset(name, list(classes), _read(root, train, classes), _read(root, val, classes))


def _read(root: Path, lists: Sequence[str], classes: Sequence[str]) -> BoxSplit:
    labels = {name: label for label, name in enumerate(classes)}
    files: list[str] = []
    ids, sizes, image, objects = [], [], [], []
    for listed in lists:
        folder, _, split = listed.rpartition("/")
        for identity in _listed(root / folder, split):
            size, found = _annotation(root / folder / "Annotations" / f"{identity}.xml", labels)
            image += [len(files)] * len(found)
            objects += found
            files.append(str(_image_file(root / folder, identity).relative_to(root)))
            ids.append(identity)
            sizes.append(size)
    box = np.array([one.box for one in objects], dtype=np.float64).reshape(-1, 4)
    columns = Objects(
        image=np.array(image, dtype=np.int64),
        boxes=box,
        labels=np.array([one.label for one in objects], dtype=np.int64),
        areas=area(box),
        crowd=np.zeros(len(objects), dtype=bool),
        difficult=np.array([one.difficult for one in objects], dtype=bool),
    )
    return build_split(root, files, ids, np.array(sizes), columns)


def _listed(folder: Path, split: str) -> list[str]:
    """Return the image names of a list."""
    file = folder / "ImageSets" / "Main" / f"{split}.txt"
    try:
        lines = file.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"The list {file.absolute()} cannot be read; set data.root to a folder with Annotations/, ImageSets/ and "
            "JPEGImages/, as in Pascal VOC, or try data=shapes_boxes, which is generated locally."
        ) from error
    names = [line.split()[0] for line in lines if line.strip()]  # lists of a single class have a second column
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file} lists the image {twice} more than once. Remove the duplicate.")
    return names


def _image_file(folder: Path, name: str) -> Path:
    """Return the file of an image; if none exists, its .jpg name for the error message."""
    files = [folder / "JPEGImages" / f"{name}{extension}" for extension in (".jpg", *EXTENSIONS)]
    return next((file for file in files if file.is_file()), files[0])


def _annotation(file: Path, labels: dict[str, int]) -> tuple[tuple[int, int], list[_Object]]:
    """Return the width and height of an image, and its objects."""
    try:
        document = ElementTree.parse(file).getroot()
        width, height = (int(_text(document, f"size/{side}")) for side in ("width", "height"))
        if width <= 0 or height <= 0:
            raise ValueError(f"size {width}x{height}")
        return (width, height), [_object(element, labels) for element in document.iterfind("object")]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise UserError(f"The annotation {file} cannot be read ({error}). Restore the file.") from error


def _object(element: ElementTree.Element, labels: dict[str, int]) -> _Object:
    x1, y1, x2, y2 = (float(_text(element, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    if x2 > x1 and y2 > y1:
        # VOC counts pixels from 1, and its boxes include both ends.
        x1, y1 = x1 - 1, y1 - 1
    # Otherwise the annotator clicked without dragging; the object is reported and removed as a box without area.
    return _Object(
        box=(x1, y1, x2, y2),
        label=labels.get(_text(element, "name").strip(), UNKNOWN),
        difficult=element.findtext("difficult", default="0").strip() == "1",
    )


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"there is no {path}")
    return text
