"""COCO's published layout: `annotations/instances_{train,val}2017.json`, images in `train2017/` and `val2017/`."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.boxes import UNKNOWN, BoxDataset, BoxSplit, Objects, Problem, build_dataset, build_split
from engine.errors import UserError

SPLITS = {"train": "train2017", "val": "val2017"}

_LIMIT = 2**31  # of pixels


def open_coco(root: Path, name: str = "coco") -> BoxDataset:
    """Read a data set in COCO's layout. The classes are its categories in ascending id order.

    Raises:
        UserError: if files are missing or malformed, or the splits have different categories.
    """
    documents = {split: _read(root, folder) for split, folder in SPLITS.items()}
    categories = {split: _categories(*document) for split, document in documents.items()}
    if categories["train"] != categories["val"]:
        raise UserError(f"The annotations of {root} have different categories for train and val. Restore them.")
    train, val = (_split(root, SPLITS[split], *documents[split], categories[split]) for split in SPLITS)
    dataset = build_dataset(name, list(categories["val"].values()), train[0], val[0])
    for split, strays in zip(SPLITS, (train[1], val[1]), strict=True):
        dataset.problems[split].extend(strays)
    return dataset


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
        raise UserError(f"The annotations {file} cannot be read ({error}). Restore the file.") from error
    if not isinstance(document, dict) or not {"images", "annotations", "categories"} <= document.keys():
        raise UserError(f"{file} lacks the images, annotations or categories of COCO's instances. Restore it.")
    return file, document


def _categories(file: Path, document: dict[str, Any]) -> dict[int, str]:
    """Return the category names in ascending id order."""
    try:
        named = {_integer(category["id"]): str(category["name"]) for category in document["categories"]}
        if len(set(named.values())) < len(document["categories"]):
            raise ValueError("an id or name occurs twice")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"A category of {file} has no valid id or name ({error!r}). Restore the file.") from error
    return dict(sorted(named.items()))


def _integer(value: Any) -> int:
    if not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
        raise ValueError(f"{value!r} is not an integer")
    return int(value)


def _split(
    root: Path, folder: str, file: Path, document: dict[str, Any], categories: dict[int, str]
) -> tuple[BoxSplit, list[Problem]]:
    try:
        return _parse(root, folder, document, categories)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"An image or annotation of {file} is malformed ({error!r}). Restore the file.") from error


def _parse(
    root: Path, folder: str, document: dict[str, Any], categories: dict[int, str]
) -> tuple[BoxSplit, list[Problem]]:
    images = sorted(document["images"], key=lambda image: image["id"])  # the order of pycocotools
    position = {image["id"]: index for index, image in enumerate(images)}
    if len(position) < len(images):
        raise ValueError("an image id occurs twice")
    labels = {category: label for label, category in enumerate(categories)}
    annotations = [one for one in document["annotations"] if one["image_id"] in position]
    strays = [one for one in document["annotations"] if one["image_id"] not in position]
    box = np.array([one["bbox"] for one in annotations], dtype=np.float64).reshape(len(annotations), 4)
    box[~(np.abs(box) < _LIMIT).all(axis=1)] = np.nan  # reported as boxes without area
    areas = np.array([one["area"] for one in annotations], dtype=np.float64)
    if not ((areas >= 0) & (areas < np.inf)).all():
        raise ValueError("an area is not a finite number of at least 0")
    if not all(one.get("iscrowd") in (None, 0, 1) for one in annotations):
        raise ValueError("iscrowd is neither 0 nor 1")
    crowd = np.array([one.get("iscrowd") for one in annotations], dtype=bool)
    objects = Objects(
        image=np.array([position[one["image_id"]] for one in annotations], dtype=np.int64),
        boxes=np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1),
        labels=np.array([labels.get(one["category_id"], UNKNOWN) for one in annotations], dtype=np.int64),
        areas=areas,
        crowd=crowd,
        difficult=np.zeros_like(crowd),
    )
    files = [os.path.join(folder, image["file_name"]) for image in images]  # noqa: PTH118 (a hundred thousand)
    sizes = np.array([(_integer(image["width"]), _integer(image["height"])) for image in images])
    if not ((sizes > 0) & (sizes < _LIMIT)).all():
        raise ValueError("the width or height of an image is out of range")
    split = build_split(root, files, [image["id"] for image in images], sizes, objects)
    what = "Annotations of images that are not listed"
    return split, [Problem(len(strays), what, f"image {strays[0]['image_id']}", "removed")] if strays else []
