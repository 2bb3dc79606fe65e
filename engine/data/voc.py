"""Pascal VOC's layout: `JPEGImages/`, `Annotations/` in XML, and lists of images in `ImageSets/Main/`."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from engine.data.annotated_sizes import complete_sizes, valid_size
from engine.data.box_geometry import area
from engine.data.box_problems import Problem, percentages, require_pixels
from engine.data.boxes import UNKNOWN, BoxDataset, BoxSplit, Objects, build_dataset, build_split
from engine.data.other_files import EXTENSIONS, OTHER_EXTENSIONS
from engine.errors import UserError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class _Object(NamedTuple):
    """An annotated object: its corners as annotated, and its class."""

    corners: tuple[float, float, float, float]
    name: str
    difficult: bool


class _Annotation(NamedTuple):
    """An annotated image; its size is None if the annotation has no valid one."""

    size: tuple[int, int] | None
    objects: list[_Object]


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
    first_pixel: int = 1,
) -> BoxDataset:
    """Read a data set in VOC's layout.

    Args:
        root: folder of the data set.
        classes: names of the classes to use; objects of other classes are removed.
        name: name of the data set.
        train, val: image lists: `train` is ImageSets/Main/train.txt in `root`, and `VOC2007/train` is that file in its
            folder VOC2007.
        first_pixel: 1 for VOC's coordinates, which count pixels from 1 and include both ends; 0 for those of tools that
            measure from the corner of the image.

    Raises:
        UserError: if files are missing or malformed, or no image is listed.
    """
    splits = {split: _read(root, lists, classes, first_pixel) for split, lists in (("train", train), ("val", val))}
    problems = {split: found for split, (_, found) in splits.items()}
    return build_dataset(name, list(classes), splits["train"][0], splits["val"][0], problems)


def _read(root: Path, lists: Sequence[str], classes: Sequence[str], first_pixel: int) -> tuple[BoxSplit, list[Problem]]:
    labels = {name: label for label, name in enumerate(classes)}
    files: list[str] = []
    ids: list[int | str] = []
    annotations: list[_Annotation] = []
    for listed in lists:
        folder, _, split = listed.rpartition("/")
        names = _listed(root / folder, split)
        annotations += _annotations(root / folder / "Annotations", names)
        files += [str(_image_file(root / folder, name).relative_to(root)) for name in names]
        ids += names
    sizes, problems = complete_sizes(root, files, [one.size for one in annotations])
    objects = [one for annotation in annotations for one in annotation.objects]
    image = np.repeat(np.arange(len(files)), [len(annotation.objects) for annotation in annotations])
    corners = np.array([one.corners for one in objects], dtype=np.float64).reshape(-1, 4)
    require_pixels(corners, root)
    box = _boxes(corners, first_pixel)
    columns = Objects(
        image=image,
        boxes=box,
        labels=np.array([labels.get(one.name, UNKNOWN) for one in objects], dtype=np.int64),
        areas=area(box),
        crowd=np.zeros(len(objects), dtype=bool),
        difficult=np.array([one.difficult for one in objects], dtype=bool),
    )
    unknown = sorted({one.name for one in objects} - labels.keys())
    problems += _zeros(corners, [files[index] for index in image], first_pixel)
    problems += percentages(corners, sizes[image], str(root))
    return build_split(root, files, ids, sizes, columns, unknown), problems


def _boxes(corners: np.ndarray, first_pixel: int) -> np.ndarray:
    """Return annotated corners, [M, 4], as boxes in pixels whose first pixel spans 0 to 1."""
    # Without area, the annotator clicked without dragging; the object is reported and removed.
    has_area = np.all(corners[:, 2:] > corners[:, :2], axis=1, keepdims=True)
    shift = np.array([first_pixel, first_pixel, 0, 0])
    return np.where(has_area, corners - shift, corners)


def _zeros(corners: np.ndarray, files: Sequence[str], first_pixel: int) -> list[Problem]:
    """Return the problem of coordinates 0, which VOC does not have: the annotations may count from 0."""
    zero = np.flatnonzero((corners[:, :2] == 0).any(axis=1))
    if first_pixel == 0 or not len(zero):
        return []
    handling = "read as VOC's, which count from 1; if these count from 0, set data.first_pixel=0"
    return [Problem(len(zero), "Boxes with a corner at 0", files[zero[0]], handling)]


def _listed(folder: Path, split: str) -> list[str]:
    """Return the image names of a list: its lines, without the extension or the column of a list of one class."""
    file = folder / "ImageSets" / "Main" / f"{split}.txt"
    try:
        lines = _text_of(file).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"The list {file.absolute()} cannot be read; set data.root to a folder with Annotations/, ImageSets/ and "
            "JPEGImages/, as in Pascal VOC, or try data=shapes_boxes, which is generated locally."
        ) from error
    names = [_image_name(folder, line.strip()) for line in lines if line.strip()]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file} lists the image {twice} more than once. Remove the duplicate.")
    return names


def _text_of(file: Path) -> str:
    """Return the content of a list in UTF-8, or in UTF-16 as PowerShell writes it."""
    content = file.read_bytes()
    return content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")


def _image_name(folder: Path, line: str) -> str:
    """Return the name of an image; what follows it is left out only if the whole line is not a name."""

    def has_annotation(name: str) -> bool:
        return (folder / "Annotations" / f"{name}.xml").is_file()

    column = re.fullmatch(r"(.*\S)\s+(-1|0|1)", line)
    if column and not has_annotation(line):
        line = column[1]
    stem, extension = os.path.splitext(line)  # noqa: PTH122 (a name, not a path)
    return stem if extension.lower() in EXTENSIONS and not has_annotation(line) else line


def _image_file(folder: Path, name: str) -> Path:
    """Return the file of an image; if none exists, its .jpg name for the error message.

    Files of other formats are returned too: those that cannot be decoded are named then.
    """
    known = (".jpg", *EXTENSIONS, *OTHER_EXTENSIONS)
    extensions = (*known[:4], *(extension.upper() for extension in known[:4]), *known[4:])
    files = [folder / "JPEGImages" / f"{name}{extension}" for extension in extensions]
    return next((file for file in files if file.is_file()), files[0])


def _annotations(folder: Path, names: Sequence[str]) -> list[_Annotation]:
    """Return the annotations of images.

    Raises:
        UserError: if any is missing or malformed.
    """
    absent = [name for name in names if not (folder / f"{name}.xml").is_file()]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(names)} listed images have no annotation (first: {folder / absent[0]}.xml). Add "
            "the file, without objects for a picture without objects, or remove the name from the list."
        )
    return [_annotation(folder / f"{name}.xml") for name in names]


def _annotation(file: Path) -> _Annotation:
    try:
        document = ElementTree.parse(file).getroot()
        objects = [one for element in document.iterfind("object") for one in _objects(element)]
        return _Annotation(valid_size(document.findtext("size/width"), document.findtext("size/height")), objects)
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise UserError(f"The annotation {file} cannot be read ({error}). Correct it, or export it again.") from error


def _objects(element: ElementTree.Element) -> list[_Object]:
    """Return the objects of an element, one for each of its boxes."""
    boxes = element.findall("bndbox")
    if not boxes:
        raise ValueError("there is no bndbox")
    name = _text(element, "name").strip()
    difficult = element.findtext("difficult", default="0").strip().lower() in ("1", "true")
    corners = ([float(_text(box, side)) for side in ("xmin", "ymin", "xmax", "ymax")] for box in boxes)
    return [_Object((x1, y1, x2, y2), name, difficult) for x1, y1, x2, y2 in corners]


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"there is no {path}")
    return text
