"""COCO's published layout: `annotations/instances_{train,val}2017.json`, images in `train2017/` and `val2017/`."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.data.annotated_sizes import complete_sizes, valid_size
from engine.data.box_problems import Problem, percentages, require_pixels, require_sides
from engine.data.boxes import UNKNOWN, BoxDataset, BoxSplit, Objects, build_dataset, build_split
from engine.errors import UserError

SPLITS = {"train": "train2017", "val": "val2017"}

_LIMIT = 2**31  # of pixels

_CORRECT = "Correct the file, or export it again."

Entry = dict[str, Any]


class _Images(NamedTuple):
    """The images of a split.

    Attributes:
        files: [I] paths relative to the root, in the order of their ids.
        ids: [I] image ids.
        sizes: [I] width and height; None if there is no valid one.
        position: index of the image of each id.
        problems: what was found.
    """

    files: list[str]
    ids: list[int | str]
    sizes: list[tuple[int, int] | None]
    position: dict[int | str, int]
    problems: list[Problem]


def open_coco(root: Path, name: str = "coco") -> BoxDataset:
    """Read a data set in COCO's layout. The classes are its categories in ascending id order.

    Raises:
        UserError: if files are missing or malformed, or the splits have different categories.
    """
    documents = {split: _read(root, folder) for split, folder in SPLITS.items()}
    categories = {split: _categories(*document) for split, document in documents.items()}
    if categories["train"] != categories["val"]:
        one, other = (set(categories[split].items()) for split in SPLITS)
        differing = sorted(one ^ other, key=str)[:5]
        raise UserError(
            f"The annotations of {root} have different categories for train and val: "
            f"{', '.join(f'{label} (id {number})' for number, label in differing)}. Give both files the same ones."
        )
    train, val = (_split(root, SPLITS[split], *documents[split], categories[split]) for split in SPLITS)
    problems = {"train": train[1], "val": val[1]}
    return build_dataset(name, list(categories["val"].values()), train[0], val[0], problems)


def _read(root: Path, folder: str) -> tuple[Path, dict[str, Any]]:
    """Return a split's annotations and their file."""
    file = root / "annotations" / f"instances_{folder}.json"
    try:
        document = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"There is no {file.absolute()}; set data.root to the folder with COCO's annotations/, train2017/ and "
            "val2017/, or try data=shapes_boxes, which is generated locally."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"The annotations {file} cannot be read ({error}). {_CORRECT}") from error
    if not isinstance(document, dict) or not {"images", "annotations", "categories"} <= document.keys():
        raise UserError(f"{file} lacks the images, annotations or categories of COCO's instances. {_CORRECT}")
    return file, document


def _categories(file: Path, document: dict[str, Any]) -> dict[int, str]:
    """Return the category names in ascending id order."""
    try:
        named = {_integer(category["id"]): str(category["name"]) for category in document["categories"]}
        if len(set(named.values())) < len(document["categories"]):
            raise ValueError("an id or name occurs twice")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"A category of {file} has no valid id or name ({error!r}). {_CORRECT}") from error
    return dict(sorted(named.items()))


def _integer(value: Any) -> int:
    """Return an integer that is written as such, with a decimal point, or as text."""
    number = float(value)
    if isinstance(value, bool) or not number.is_integer():
        raise ValueError(f"{value!r} is not an integer")
    return int(value) if isinstance(value, str) and value.isdecimal() else int(number)


def _identity(value: Any) -> int | str:
    """Return an image id; a whole number, also as text, is an integer. Text such as `1_2` and `1e5` is a name."""
    if isinstance(value, str) and not re.fullmatch(r"\s*-?\d+(\.0*)?\s*", value):
        return value
    try:
        return _integer(value)
    except ValueError:
        return str(value)


def _split(
    root: Path, folder: str, file: Path, document: dict[str, Any], categories: dict[int, str]
) -> tuple[BoxSplit, list[Problem]]:
    try:
        images = _images(folder, document["images"])
        return _parse(root, file, images, document["annotations"], categories)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"one has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"An image or annotation of {file} is malformed ({reason}). {_CORRECT}") from error


def _images(folder: str, entries: Sequence[Entry]) -> _Images:
    """Return the images in the order of pycocotools; several entries for one file are one image."""
    ids = [_identity(entry["id"]) for entry in entries]
    if len(set(ids)) < len(ids):
        raise ValueError("an image id occurs twice")
    order = sorted(range(len(ids)), key=lambda index: (isinstance(ids[index], str), ids[index]))
    images = _Images([], [], [], {}, [])
    index_of: dict[str, int] = {}
    repeated: list[str] = []
    for entry, identity in ((entries[index], ids[index]) for index in order):
        file = os.path.normpath(os.path.join(folder, entry["file_name"]))  # noqa: PTH118 (a hundred thousand)
        if file in index_of:
            repeated.append(file)
        else:
            index_of[file] = len(images.files)
            images.files.append(file)
            images.ids.append(identity)
            images.sizes.append(valid_size(entry.get("width"), entry.get("height")))
        images.position[identity] = index_of[file]
    if repeated:
        what = "Images with several ids"
        images.problems.append(Problem(len(repeated), what, repeated[0], "their boxes are those of one image"))
    return images


def _parse(
    root: Path, file: Path, images: _Images, entries: Sequence[Entry], categories: dict[int, str]
) -> tuple[BoxSplit, list[Problem]]:
    sizes, problems = complete_sizes(root, images.files, images.sizes)
    labels = {category: label for label, category in enumerate(categories)}
    if images.problems:  # the entries of one file may repeat its boxes
        entries = _distinct(entries, images.position)
    of = [images.position.get(_identity(one["image_id"])) for one in entries]
    annotations = [one for one, index in zip(entries, of, strict=True) if index is not None]
    strays = [one for one, index in zip(entries, of, strict=True) if index is None]
    if strays and not annotations:
        raise UserError(
            f"No annotation of {file} belongs to a listed image: the first image_id is {strays[0]['image_id']!r}, the "
            f"first id of an image is {next(iter(images.position), None)!r}. Give both the same ids."
        )
    image = np.array([index for index in of if index is not None], dtype=np.int64)
    box = _boxes(annotations)
    corners = np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1)
    require_pixels(corners, file)
    require_sides(box, sizes[image], file)
    areas, without = _areas(annotations, box)
    crowd = np.array([_flag(one.get("iscrowd")) for one in annotations], dtype=bool)
    category = [_integer(one["category_id"]) for one in annotations]
    objects = Objects(
        image=image,
        boxes=corners,
        labels=np.array([labels.get(one, UNKNOWN) for one in category], dtype=np.int64),
        areas=areas,
        crowd=crowd,
        difficult=np.zeros_like(crowd),
    )
    unknown = sorted({f"category {one}" for one in category if one not in labels})
    split = build_split(root, images.files, images.ids, sizes, objects, unknown)
    problems += images.problems
    if without:
        problems.append(Problem(without, "Boxes without an annotated area", str(file), "width x height is used"))
    if strays:
        what, first = "Annotations of images that are not listed", f"image {strays[0]['image_id']}"
        problems.append(Problem(len(strays), what, first, "removed"))
    return split, problems + percentages(corners, sizes[image], str(file))


def _distinct(entries: Sequence[Entry], position: Mapping[int | str, int]) -> list[Entry]:
    """Return the annotations without those that repeat the class and box of another one of the same file."""
    seen, distinct = set(), []
    for number, one in enumerate(entries):
        image = position.get(_identity(one["image_id"]), -1 - number)
        key = (image, str(one["category_id"]), str(one["bbox"]))
        if key not in seen:
            distinct.append(one)
        seen.add(key)
    return distinct


def _boxes(annotations: Sequence[Entry]) -> np.ndarray:
    """Return the annotated boxes, [M, 4] float64; NaN for those that are reported as boxes without area."""
    for one in annotations:
        box = one["bbox"]
        if not isinstance(box, list) or len(box) != 4 or any(isinstance(value, list) for value in box):
            raise ValueError(f"bbox={box!r:.60} of annotation {one.get('id')} is not [x, y, width, height]")
    box = np.array([one["bbox"] for one in annotations], dtype=np.float64).reshape(len(annotations), 4)
    box[~(np.abs(box) < _LIMIT).all(axis=1)] = np.nan
    return box


def _areas(annotations: Sequence[Entry], box: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the areas of the objects, and the number of those that were not annotated."""
    given = [one.get("area") for one in annotations]
    without = np.array([area is None for area in given], dtype=bool)
    areas = np.array([0 if area is None else area for area in given], dtype=np.float64)
    if not ((areas >= 0) & (areas < np.inf)).all():
        raise ValueError("an area is not a finite number of at least 0")
    own = np.nan_to_num(box[:, 2:].prod(axis=1)).clip(min=0)
    return np.where(without, own, areas), int(without.sum())


def _flag(value: Any) -> bool:
    if value not in (None, 0, 1, "0", "1"):
        raise ValueError("iscrowd is neither 0 nor 1")
    return value in (1, "1")
