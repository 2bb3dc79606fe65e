"""Evaluation-only data sets for networks that were trained on another data set.

The layouts are the published ones: class folders (ImageNet-A, -R, -Sketch), folders named by class number
(ImageNet-V2), and class folders below each corruption and severity (ImageNet-C).
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from engine.config.data import DataConfig
from engine.data import file_index
from engine.data.datasets import Dataset, Split, class_folder_names
from engine.errors import UserError
from engine.logging import log

# ImageNet-C's corruptions in its paper's order (Hendrycks and Dietterich, ICLR 2019), without the four extra ones.
CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
SEVERITIES = range(1, 6)


def open_evaluation_sets(config: DataConfig) -> list[Dataset]:
    """List the images of a data set; for ImageNet-C, one set for each existing corruption and severity.

    Raises:
        UserError: if the folder is missing, has a different layout, or lacks classes or images.
    """
    root = Path(config.root)
    if not root.is_dir():
        raise UserError(f"There is no data set '{config.name}' at {root.absolute()}; set data.root to its folder.")
    if config.layout != "corruptions":
        return [_open(config, root, "", "")]
    parts = list(_corruptions(root))
    if not parts:
        raise UserError(
            f"{root} contains no corruption, such as {CORRUPTIONS[0]}/1/CLASS or noise/{CORRUPTIONS[0]}/1/CLASS; "
            "unpack the archives of ImageNet-C there."
        )
    return [_open(config, root, folder, part) for folder, part in parts]


def logits_of(classes: Sequence[str], trained: Sequence[str], name: str) -> tuple[int, ...] | None:
    """Return the position of each class among a network's training classes.

    Returns None if each class is at its own position. Classes are matched by name, or by their number among the
    network's sorted classes if those have other names than 0, 1, ...

    Args:
        classes: the data set's classes: names of its folders, or class numbers.
        trained: names of the network's classes, in the order of its logits.
        name: name of the data set, for the message.

    Raises:
        UserError: if the network lacks one of the classes.
    """
    names = list(trained)
    if set(classes) == set(_numbers(len(names))) != set(names):
        ranked = sorted(names)
        names = [str(ranked.index(label)) for label in names]
    position = {label: number for number, label in enumerate(names)}
    missing = [label for label in classes if label not in position]
    if missing:
        raise UserError(
            f"The networks lack {len(missing)} of the {len(classes)} classes of {name} (first: {missing[0]}); compare "
            "networks that were trained on class folders of the same names (published weights: WordNet ids)."
        )
    positions = [position[label] for label in classes]
    return None if positions == list(range(len(names))) else tuple(positions)


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def _corruptions(root: Path) -> Iterator[tuple[str, str]]:
    """Yield each corruption and severity as its folder relative to the root, and its name, e.g. `fog/3`."""
    for corruption in CORRUPTIONS:
        # Archives extracted into separate folders add a level: noise/gaussian_noise.
        folders = sorted(folder for folder in (root / corruption, *root.glob(f"*/{corruption}")) if folder.is_dir())
        for severity in SEVERITIES:
            for folder in folders[:1]:
                if (folder / str(severity)).is_dir():
                    yield str((folder / str(severity)).relative_to(root)), f"{corruption}/{severity}"


def _open(config: DataConfig, root: Path, folder: str, part: str) -> Dataset:
    available = class_folder_names(root / folder)
    if config.layout == "index_folders" and available != _numbers(len(available)):
        raise UserError(f"The folders of {root} are not named 0, 1, and so on; unpack {config.name} again.")
    if len(available) != config.total_classes:
        raise UserError(
            f"{root / folder} contains {len(available)} class folders, not {config.total_classes}; "
            "set data.root to the whole data set, or data.total_classes to the number of folders."
        )
    key = f"{config.layout} {folder} {' '.join(available)}"
    found = file_index.build_file_index(
        root, key, lambda: [file_index.class_folders(root, folder, available)], config.skip_other_formats
    )
    for line in found.warnings:
        log.warning(line)
    val = Split(root, found.files[0], found.labels[0], config.exif_orientation)
    nothing = Split(root, np.array([], dtype=val.files.dtype), np.array([], dtype=np.int64))
    name = config.label + (f" {part.replace(os.sep, ' ')}" if part else "")
    return Dataset(name, available, nothing, val, found.fingerprint, part)
