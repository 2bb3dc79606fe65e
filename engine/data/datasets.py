"""Classification data sets on disk, in three layouts."""

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from engine.config.data import DataConfig
from engine.data import file_index, holdout, synthetic
from engine.data.cache import ImageCache
from engine.data.image_notes import ImageNotes
from engine.data.layout_hints import layout_hint
from engine.data.other_files import is_image_name, is_program_folder, program_files_line
from engine.errors import UserError
from engine.logging import log
from engine.processes.distributed import ProcessGroup

ANNOTATIONS = "val_annotations.txt"  # of Tiny ImageNet


@dataclass(frozen=True)
class Split:
    """The images of one split, in a fixed order.

    Attributes:
        root: folder of the data set.
        files: [N] paths relative to `root`, bytes.
        labels: [N] int64 in [0, number of classes).
        upright: whether the EXIF orientation is applied.
        cache: cached decoded images; None without a cache.
    """

    root: Path
    files: np.ndarray
    labels: np.ndarray
    upright: bool = False
    cache: ImageCache | None = None

    @cached_property
    def notes(self) -> ImageNotes:
        """Findings about the images. Use it before workers are forked, so that they share it."""
        return ImageNotes(len(self))

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.files[index]))  # noqa: PTH118 (speed: called once per image)

    def image(self, index: int) -> Tensor:
        """Decode an image to a read-only uint8 [3, H, W].

        Raises:
            UnreadableImage: if the file is missing, truncated or not an image.
        """
        image = None if self.cache is None else self.cache.get(index)
        if image is None:
            image = self.notes.decode(index, self.path(index), self.upright)
            if self.cache is not None:
                self.cache.put(index, image)
        return image

    def new_findings(self) -> list[str]:
        """Return lines on the images read so far; none if there is nothing new since the last call."""
        return self.notes.new_lines(self.path, self.upright)

    def without_images(self) -> "Split":
        """Return an empty split of the same folder."""
        return replace(self, files=self.files[:0], labels=self.labels[:0])

    def cached(self) -> "Split":
        """Return the same images with a cache, which skips images larger than the largest of 64 evenly spaced ones."""
        sample = np.linspace(0, len(self) - 1, 64).astype(int)
        return replace(self, cache=ImageCache(len(self), max(self.image(index).numel() for index in set(sample))))


@dataclass(frozen=True)
class Dataset:
    """A data set of two splits over the same classes, sorted by id.

    Attributes:
        fingerprint: sha256 over every file's path, size in bytes and label.
        part: name of this part of an evaluation set that has several, e.g. `fog/3`.
    """

    name: str
    classes: list[str]
    train: Split
    val: Split
    fingerprint: str
    part: str = ""

    def require_same_images(self, group: ProcessGroup) -> None:
        """Require the same images on all processes.

        Raises:
            UserError: on all processes, naming those that differ from the main process.
        """
        require_same_fingerprint(self.fingerprint, group)

    def cached(self) -> "Dataset":
        """Return the same data set with decoded images cached in memory."""
        return replace(self, train=self.train.cached(), val=self.val.cached())


def require_same_fingerprint(fingerprint: str, group: ProcessGroup) -> None:
    """Require equal fingerprints on all processes; errors as in `Dataset.require_same_images`."""
    fingerprints = group.all_gather_object(fingerprint)
    differing = [str(rank) for rank, other in enumerate(fingerprints) if other != fingerprints[0]]
    if differing:
        processes = f"Process{'es' if len(differing) > 1 else ''} {', '.join(differing)} of {group.world_size}"
        raise UserError(
            f"{processes} found images that differ from those of process 0; give all nodes the same data set."
        )


def open_dataset(config: DataConfig, needs_training_images: bool = True) -> Dataset:
    """List the images of the configured data set; `shapes` is generated if it does not exist.

    Args:
        needs_training_images: if not, `val/` alone is enough.

    Raises:
        UserError: if the folder is missing, has a different layout, or lacks classes or images.
    """
    if config.trained_on is not None:
        raise UserError(
            f"{config.name} has no training images. It is for evaluating networks that were trained on "
            f"{config.trained_on}: run python evaluate.py data={config.name}."
        )
    root = Path(config.root)
    if config.layout == "shapes":
        synthetic.generate(root)
    if not root.is_dir():
        raise UserError(
            f"There is no data set '{config.name}' at {root.absolute()}; set data.root to its folder, "
            "or try data=shapes, which is generated locally."
        )
    # A bare folder of class folders is split; a folder with val/ alone is for evaluation.
    is_split = bool(config.val_fraction)
    if is_split:
        _require_bare(root)
    has_train = needs_training_images or is_split or (root / "train").is_dir() or config.layout == "tiny_imagenet"
    train_folder = root if is_split else root / ("train" if has_train else "val")
    available = class_folder_names(train_folder)
    if config.total_classes not in (0, len(available)):
        raise UserError(_wrong_number(train_folder, available, config))
    classes = available[: config.num_classes or None]
    if len(classes) < config.num_classes:
        raise UserError(f"data.classes={config.classes} exceeds the {len(available)} class folders in {train_folder}.")
    if has_train and not is_split and config.layout != "tiny_imagenet":
        _require_same_classes(available, class_folder_names(root / "val"), root)

    def read() -> list[file_index.FileList]:
        if is_split:
            return holdout.split(file_index.class_folders(root, ".", classes), config.val_fraction, classes)
        if not has_train:
            return [file_index.class_folders(root, "val", classes)]
        train = file_index.class_folders(root, "train", classes)
        if config.layout != "tiny_imagenet":
            return [train, file_index.class_folders(root, "val", classes)]
        annotated = list(_annotated_files(root / "val", classes, available))
        return [train, file_index.named(root, annotated, [root / "val" / ANNOTATIONS, root / "val" / "images"])]

    key = f"{config.layout}{'' if has_train else ' val'} {' '.join(classes)}"
    key += f" {config.val_fraction}" if is_split else ""
    found = file_index.build_file_index(root, key, read, config.skip_other_formats)
    *train_part, val = (
        Split(root, files, labels, config.exif_orientation)
        for files, labels in zip(found.files, found.labels, strict=True)
    )
    train = train_part[0] if train_part else val.without_images()
    if not len(val):
        raise UserError(f"{root} lists no validation images of the selected classes.")
    for line in found.warnings:
        log.warning(line)
    return Dataset(config.label, classes, train, val, found.fingerprint)


def _require_bare(root: Path) -> None:
    """Reject a folder that is split already."""
    if (root / "train").is_dir() and (root / "val").is_dir():
        raise UserError(
            f"{root} contains train/ and val/, which are not classes; leave out data.val_fraction, or set data.root to "
            f"{root / 'train'} to split its images."
        )


def class_folder_names(folder: Path) -> list[str]:
    """Return the names of the class folders, sorted; names that are all numbers are sorted as numbers.

    Folders of other programs, and images beside the class folders, are skipped with a warning.

    Raises:
        UserError: if the folder is missing, or the name of a class folder is not UTF-8.
    """
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder.absolute()}; data.root must contain train/ and val/, or the class "
            f"folders with data.val_fraction=0.2{layout_hint(folder.parent)}."
        )
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    beside = [entry.path for entry in entries if is_image_name(entry.name) and entry.is_file()]
    if beside:
        some = "image is" if len(beside) == 1 else "images are"
        log.warning("%d %s in no class folder and left out (first: %s).", len(beside), some, beside[0])
    found = [entry.name for entry in entries if entry.is_dir()]
    names = [name for name in found if not is_program_folder(name)]
    if len(names) < len(found):
        log.warning(program_files_line([str(folder / name) for name in found if is_program_folder(name)]))
    for name in names:
        if not name.isprintable():  # also finds bytes that are not UTF-8
            raise UserError(
                f"The name of the class folder {os.fsencode(name)!r} in {folder} is not text; rename it, or set "
                "PYTHONUTF8=1 where the locale is not UTF-8."
            )
    if all(name.isdecimal() for name in names):
        names.sort(key=lambda name: (int(name), name))
    return names


def _wrong_number(folder: Path, available: list[str], config: DataConfig) -> str:
    """Return the message on another number of classes than configured; it names folders that only train/ has."""
    val = folder.parent / "val"
    others = set() if config.layout == "tiny_imagenet" or not val.is_dir() else set(class_folder_names(val))
    odd = [name for name in available if name not in others] if others else []
    if odd and len(available) - len(odd) == config.total_classes:
        remedy = f"{', '.join(odd[:5])} {'is' if len(odd) == 1 else 'are'} not in {val}; move what is not a class"
    elif config.layout == "tiny_imagenet":
        remedy = f"set data.root to the whole data set, or data.total_classes={len(available)} to use this part of it"
    else:
        remedy = (
            "set data.root to the whole data set, or use data=folders data.name=NAME for classes of your own, which "
            "are counted"
        )
    return f"{folder} contains {len(available)} class folders, not {config.total_classes}; {remedy}."


def _require_same_classes(train: list[str], val: list[str], root: Path) -> None:
    if not val:
        raise UserError(
            f"{root / 'val'} contains no class folders; sort its images into one folder per class{layout_hint(root)}."
        )
    differing = sorted(set(train) ^ set(val))
    if differing:
        in_one_form = {unicodedata.normalize("NFC", name) for name in differing}
        if 2 * len(in_one_form) == len(differing):  # each is in both, with accents composed in two ways
            raise UserError(
                f"train/ and val/ of {root} write these classes with different Unicode characters that look the same: "
                f"{', '.join(map(ascii, differing[:4]))}. Rename the folders of one of them."
            )
        raise UserError(f"train/ and val/ of {root} differ in these classes: {', '.join(differing[:5])}.")


def _annotated_files(folder: Path, classes: list[str], known: list[str]) -> Iterator[tuple[Path, int]]:
    """Return Tiny ImageNet's validation images. Each line of the list begins with an image's file and class."""
    annotations = folder / ANNOTATIONS
    if not annotations.is_file():
        raise UserError(f"There is no {annotations}; data.root must contain Tiny ImageNet as published.")
    labels = {name: label for label, name in enumerate(classes)}
    lines = annotations.read_text(encoding="utf-8", errors="replace").splitlines()
    seen = set()
    for number, line in enumerate(lines, start=1):
        file, _, rest = line.partition("\t")
        name = rest.partition("\t")[0]
        if name not in known:
            raise UserError(
                f"Line {number} of {annotations} names class '{name[:60]}', which train/ does not have; restore the "
                "line, or unzip all parts of the data set into one folder."
            )
        if file in seen:
            raise UserError(f"Line {number} of {annotations} lists {file} a second time.")
        seen.add(file)
        if name in labels:
            yield folder / "images" / file, labels[name]
