"""Images annotated with boxes: the data structure of all readers, and the rules for bad annotations."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from engine.data import transforms as augment
from engine.data.annotated_sizes import require_shown_sizes
from engine.data.box_geometry import overlap, pairs_within_groups
from engine.data.box_problems import Problem
from engine.data.cache import ImageCache
from engine.data.datasets import require_same_fingerprint
from engine.data.duplicates import shared_images
from engine.data.image_notes import ImageNotes
from engine.errors import UserError
from engine.processes.distributed import ProcessGroup

UNKNOWN = -1  # label of a class that the data set does not have
DUPLICATE_IOU = 0.8  # boxes of one class that overlap at least this much are near-duplicates


@dataclass(frozen=True)
class BoxSplit:
    """The images of one split in a fixed order, and their boxes, in flat arrays that processes can share.

    Attributes:
        root: folder of the data set.
        files: [I] paths relative to `root`, bytes.
        ids: [I] COCO image ids or VOC image names.
        sizes: [I, 2] int32, width and height in pixels.
        offsets: [I + 1] int64; the boxes of image i are boxes[offsets[i]:offsets[i + 1]].
        boxes: [M, 4] float32, x1, y1, x2, y2 in pixels; the first pixel spans 0 to 1.
        labels: [M] int64, index of the class; UNKNOWN before cleaning only.
        areas: [M] float64, object area in pixels; smaller than the box's area for segmented objects.
        crowd: [M] bool, a group of objects in one box: not trained on, ignored in evaluation.
        difficult: [M] bool, hard to recognize: trained on, ignored in evaluation.
        unknown: names of the annotated classes that the data set does not have.
        cache: cached decoded images; None without a cache.
    """

    root: Path
    files: np.ndarray
    ids: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    unknown: Sequence[str] = ()
    cache: ImageCache | None = None

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.files[index]))  # noqa: PTH118 (speed: called once per image)

    @cached_property
    def notes(self) -> ImageNotes:
        """Findings about the images. Use it before workers are forked, so that they share it."""
        return ImageNotes(len(self))

    def image(self, index: int) -> Tensor:
        """Decode an image to a read-only uint8 [3, H, W] of the annotated size.

        The EXIF orientation is applied, as annotation tools do, unless only the stored image has the annotated size.

        Raises:
            UnreadableImage: if the file is missing, damaged or not an image, or differs from the annotated size.
        """
        cached = None if self.cache is None else self.cache.get(index)
        if cached is not None:
            return cached
        image = self.notes.decode(index, self.path(index), upright=True)
        width, height = self.sizes[index]
        if image.shape[1:] == (width, height) and width != height:  # perhaps turned by 90 degrees
            image = self.notes.decode(index, self.path(index), upright=False)
        if image.shape[1:] != (height, width):
            found = f"{image.shape[2]}x{image.shape[1]}"
            raise augment.UnreadableImage(
                f"The image {self.path(index)} is {found} pixels, but its annotation says {width}x{height}. "
                "Replace the image by the annotated one, or correct the annotation."
            )
        if self.cache is not None:
            self.cache.put(index, image)
        return image

    def new_findings(self) -> list[str]:
        """Return lines on the images read so far; none if there is nothing new since the last call."""
        exception = " (those whose annotated size is the stored one are not)"
        return self.notes.new_lines(self.path, upright=True, exception=exception)

    def cached(self) -> "BoxSplit":
        """Return the same images with a cache, so that each is decoded once."""
        return replace(self, cache=ImageCache(len(self), 3 * int(self.sizes.astype(np.int64).prod(axis=1).max())))

    @cached_property
    def most_boxes(self) -> int:
        """The largest number of boxes in an image."""
        return int(np.diff(self.offsets).max(initial=0))

    def box_range(self, index: int) -> slice:
        """Return the range of an image's boxes in the box arrays."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    @property
    def box_image(self) -> np.ndarray:
        """[M] int64, index of the image of each box."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def with_boxes(self, kept: np.ndarray) -> "BoxSplit":
        """Return the same images with only the boxes that a boolean mask selects."""
        count = np.bincount(self.box_image[kept], minlength=len(self))
        return replace(
            self,
            offsets=_offsets(count),
            boxes=self.boxes[kept],
            labels=self.labels[kept],
            areas=self.areas[kept],
            crowd=self.crowd[kept],
            difficult=self.difficult[kept],
        )

    def without_empty_images(self) -> "BoxSplit":
        """Return the images that have boxes."""
        count = np.diff(self.offsets)
        kept = count > 0
        return replace(
            self, files=self.files[kept], ids=self.ids[kept], sizes=self.sizes[kept], offsets=_offsets(count[kept])
        )


@dataclass(frozen=True)
class BoxDataset:
    """A data set of two splits over the same classes.

    Attributes:
        fingerprint: sha256 over the classes, every file's path and size in bytes, and every box that is used.
        problems: annotation problems of each split.
    """

    name: str
    classes: list[str]
    train: BoxSplit
    val: BoxSplit
    fingerprint: str
    problems: dict[str, list[Problem]]
    part: ClassVar[str] = ""  # as in Dataset; always empty here

    def require_same_images(self, group: ProcessGroup) -> None:
        """Require the same images and boxes on all processes; errors as in `Dataset.require_same_images`."""
        require_same_fingerprint(self.fingerprint, group)

    def cached(self) -> "BoxDataset":
        """Return the same data set with decoded images cached in memory."""
        return replace(self, train=self.train.cached(), val=self.val.cached())


class Objects(NamedTuple):
    """Annotated objects of a split, in any image order; the arrays are as in `BoxSplit`.

    Attributes:
        image: [M] int64, index of the image.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray


def build_split(
    root: Path,
    files: Sequence[str],
    ids: Sequence[int | str],
    sizes: np.ndarray,
    objects: Objects,
    unknown: Sequence[str] = (),
) -> BoxSplit:
    """Sort annotated objects by image, in annotation order within an image.

    Args:
        root: folder of the data set.
        files: paths relative to `root`.
        ids: image ids.
        sizes: [I, 2], width and height.
        objects: annotated objects of the images.
        unknown: names of the annotated classes that the data set does not have.
    """
    order = np.argsort(objects.image, kind="stable")
    return BoxSplit(
        root=root,
        files=np.array([os.fsencode(file) for file in files]),
        ids=np.array(ids),
        sizes=np.asarray(sizes, dtype=np.int32).reshape(-1, 2),
        offsets=_offsets(np.bincount(objects.image.astype(np.int64), minlength=len(files))),
        boxes=objects.boxes.reshape(-1, 4)[order].astype(np.float32),
        labels=objects.labels[order].astype(np.int64),
        areas=objects.areas[order].astype(np.float64),
        crowd=objects.crowd[order].astype(bool),
        difficult=objects.difficult[order].astype(bool),
        unknown=unknown,
    )


def build_dataset(
    name: str, classes: list[str], train: BoxSplit, val: BoxSplit, found: dict[str, list[Problem]] | None = None
) -> BoxDataset:
    """Clean the splits, check their files, and compute the fingerprint.

    Args:
        found: problems that the reader found in each split, `train` and `val`.

    Raises:
        UserError: if a split has no images, files are missing, or boxes are not in the picture as it is shown.
    """
    problems = found or {"train": [], "val": []}
    for split in (train, val):
        require_shown_sizes(split.root, split.files, split.sizes, split.box_image, split.boxes)
    train, in_train = clean(train, training=True)
    val, in_val = clean(val, training=False)
    for split, description in ((train, "training images with boxes"), (val, "validation images")):
        if not len(split):
            names = f"; the annotations name {', '.join(split.unknown[:8])}" if split.unknown else ""
            raise UserError(
                f"{split.root} lists no {description} of the classes {', '.join(classes[:5])}{names}. Correct the "
                "lists, or the names of the classes."
            )
    sizes = [_file_sizes(split) for split in (train, val)]
    problems = {"train": in_train + problems["train"], "val": in_val + problems["val"]}
    shared = shared_images(train.root, (train.files, np.array(sizes[0])), (val.files, np.array(sizes[1])))
    if shared.pairs:
        what = "Validation images that are training images too"
        problems["val"].append(Problem(len(shared.pairs), what, shared.pairs[0][0], "kept; remove them from one list"))
    return BoxDataset(name, classes, train, val, _fingerprint(classes, [train, val], sizes), problems)


def clean(split: BoxSplit, training: bool) -> tuple[BoxSplit, list[Problem]]:
    """Apply the rules for bad annotations.

    Boxes of unknown classes, without area or outside their image are removed. In training, boxes are also clipped to
    the image, and near-duplicates, crowds and images without boxes are removed. In evaluation these are kept as
    published, so that the AP is comparable with others' results; crowds are ignored there.

    Returns:
        The clean split and its problems.
    """
    report = _Report(split, training)
    bad = split.labels == UNKNOWN
    names = f" ({', '.join(split.unknown[:8])})" if split.unknown else ""
    report.boxes(bad, f"Boxes of unknown classes{names}", "removed", "removed")
    empty = ~bad & ~(split.boxes[:, 2:] > split.boxes[:, :2]).all(axis=1)  # NaN also counts as no area
    report.boxes(empty, "Boxes without area", "removed", "removed")
    border = np.tile(split.sizes[split.box_image], 2).astype(np.float32)
    clipped = np.clip(split.boxes, 0, border)
    bad |= empty
    outside = ~bad & ~(clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    report.boxes(outside, "Boxes outside of their image", "removed", "removed")
    bad |= outside
    beyond = ~bad & (clipped != split.boxes).any(axis=1)
    report.boxes(beyond, "Boxes partly outside of their image", "clipped to the image", "kept")
    crowd = ~bad & split.crowd
    report.boxes(crowd, "Crowds", "removed", "ignored in evaluation")
    duplicate = _near_duplicates(split, ~bad & ~crowd)
    report.boxes(duplicate, "Near-duplicate boxes", "all but the first removed", "kept")
    if training:
        bad |= crowd | duplicate
        split = replace(split, boxes=clipped)
    split = split.with_boxes(~bad)
    report.images(np.diff(split.offsets) == 0, "Images without boxes", "removed", "kept")
    return (split.without_empty_images() if training else split), report.problems


class _Report:
    """Collector of a split's problems."""

    def __init__(self, split: BoxSplit, training: bool) -> None:
        self.problems: list[Problem] = []
        self._split = split
        self._training = training

    def images(self, bad: np.ndarray, what: str, in_training: str, in_evaluation: str) -> None:
        """Add a problem if the mask selects any images."""
        if bad.any():
            first = os.fsdecode(self._split.files[bad.argmax()])
            handling = in_training if self._training else in_evaluation
            self.problems.append(Problem(int(bad.sum()), what, first, handling))

    def boxes(self, bad: np.ndarray, what: str, in_training: str, in_evaluation: str) -> None:
        """Add a problem if the mask selects any boxes."""
        if bad.any():
            first = os.fsdecode(self._split.files[self._split.box_image[bad.argmax()]])
            handling = in_training if self._training else in_evaluation
            self.problems.append(Problem(int(bad.sum()), what, first, handling))


def _near_duplicates(split: BoxSplit, considered: np.ndarray) -> np.ndarray:
    """Return [M] bool, the boxes that nearly equal an earlier box of the same image and class."""
    box = np.flatnonzero(considered)
    group = split.box_image[box] * (split.labels.max(initial=0) + 1) + split.labels[box]
    later, earlier = (box[one] for one in pairs_within_groups(group, group))
    later, earlier = later[later > earlier], earlier[later > earlier]
    near = overlap(split.boxes[later], split.boxes[earlier]) >= DUPLICATE_IOU
    duplicate = np.zeros(len(considered), dtype=bool)
    duplicate[later[near]] = True
    return duplicate


def _fingerprint(classes: Sequence[str], splits: Sequence[BoxSplit], sizes: Sequence[Sequence[int]]) -> str:
    digest = hashlib.sha256("\n".join(classes).encode())
    for split, of_files in zip(splits, sizes, strict=True):
        for index, size in enumerate(of_files):
            digest.update(b"%s\0%d\n" % (split.files[index], size))
        for name in ("offsets", "boxes", "labels", "areas", "crowd", "difficult"):
            values = getattr(split, name)
            digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _file_sizes(split: BoxSplit) -> list[int]:
    """Return the sizes of a split's image files in bytes.

    Raises:
        UserError: if any file is missing, because a metric over the others would not be comparable.
    """
    sizes, absent = [], []
    for index in range(len(split)):
        path = split.path(index)
        try:
            sizes.append(os.stat(path).st_size)  # noqa: PTH116 (a hundred thousand paths)
        except OSError:
            absent.append(path)
    if absent:
        remedy = "Add the files, or remove their annotations"
        if len(absent) == len(split):
            remedy = "Correct data.root, or the paths in the annotations"
        raise UserError(
            f"{len(absent)} of {len(split)} annotated images cannot be read (first: {absent[0]}). {remedy}."
        )
    return sizes


def _offsets(count: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
