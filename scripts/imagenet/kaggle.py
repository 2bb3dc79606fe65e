"""Kaggle's ImageNet: `ILSVRC/Data/CLS-LOC` with class folders in train/, a flat val/, and LOC_val_solution.csv."""

import os
from pathlib import Path

from tqdm import tqdm

from engine.data.other_files import EXTENSIONS
from engine.errors import UserError
from scripts.imagenet.names import SOLUTION, image_name, val_classes


def find(source: Path) -> Path | None:
    """Return the folder with train/ and val/ in an unpacked archive of Kaggle; None if it is not one."""
    for folder in (source, source / "CLS-LOC", source / "Data" / "CLS-LOC", source / "ILSVRC" / "Data" / "CLS-LOC"):
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            return folder
    return None


def link(folder: Path, target: Path) -> None:
    """Make links to the class folders of train/, and to the images of val/ in a folder for each class.

    Raises:
        UserError: if the classes of the validation images are not known, or `target` is in the way.
    """
    if target.resolve() == folder.resolve():
        raise UserError(f"target={target} is the folder with the images; give the links another one.")
    for entry in _progress(folder / "train"):
        if entry.is_dir():
            _link(target / "train" / entry.name, entry)
    classes = _classes(folder)
    unknown = []
    for entry in _progress(folder / "val"):
        if entry.is_dir():  # sorted into class folders already
            _link(target / "val" / entry.name, entry)
        elif entry.name.lower().endswith(EXTENSIONS):
            named = image_name(entry.name, classes)
            if named is None:
                unknown.append(entry.name)
            else:
                _link(target / "val" / named[0] / named[1], entry)
    if unknown:
        raise UserError(
            f"The classes of {len(unknown):,} images in {folder / 'val'} are unknown (first: {unknown[0]}); put "
            f"Kaggle's {SOLUTION} into {folder}."
        )


def _classes(folder: Path) -> dict[str, str]:
    """Return the class of each validation image from the list, which is beside ILSVRC/ in Kaggle's archive."""
    folders = (folder, *folder.resolve().parents[:4])
    return next((classes for classes in map(val_classes, folders) if classes), {})


def _progress(folder: Path) -> tqdm:
    entries = sorted(Path(entry.path) for entry in os.scandir(folder))
    return tqdm(entries, unit="link", disable=None, desc=f"linking {folder.name}")


def _link(link: Path, to: Path) -> None:
    """Make a link unless it exists; one whose target has moved is replaced."""
    if link.is_symlink() and not link.exists():
        link.unlink()
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(to.resolve())
