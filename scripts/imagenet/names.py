"""The class of an image by its name, and the classes of the validation images."""

import csv
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from engine.errors import UserError

DEVKIT, SOLUTION = "ILSVRC2012_devkit_t12.tar.gz", "LOC_val_solution.csv"

_WORDNET = r"n\d{8}"


def image_name(path: str, val_classes: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the class (WordNet id) and the official file name of an image; None if its path does not give the class.

    Args:
        path: `n01440764/x.JPEG`, `n01440764_10026.JPEG`, or either with the class appended, as in Hugging Face's
            archives: `ILSVRC2012_val_00000293_n01440764.JPEG`.
        val_classes: class of each validation image, by the official name without extension.
    """
    parts = PurePosixPath(path)
    appended = re.fullmatch(rf"(.+)_({_WORDNET})", parts.stem)
    if appended:
        return appended[2], appended[1] + parts.suffix
    if re.fullmatch(_WORDNET, parts.parent.name):
        return parts.parent.name, parts.name
    leading = re.match(rf"({_WORDNET})_", parts.name)
    if leading:
        return leading[1], parts.name
    return (val_classes[parts.stem], parts.name) if parts.stem in val_classes else None


def val_classes(folder: Path) -> dict[str, str]:
    """Return the class (WordNet id) of each validation image, from Kaggle's list or the devkit in a folder.

    The result is empty if the folder has neither.

    Raises:
        UserError: if the list or the devkit is damaged, or scipy, which reads the devkit, is not installed.
    """
    if (folder / SOLUTION).is_file():
        return _of_solution(folder / SOLUTION)
    if not (folder / DEVKIT).is_file():
        return {}
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError("Reading the devkit needs scipy; pip install scipy.") from error
    try:
        return _of_devkit(folder / DEVKIT, loadmat)
    except (tarfile.TarError, zlib.error, EOFError, KeyError, ValueError) as error:
        raise UserError(
            f"The archive {folder / DEVKIT} is damaged; replace it and run the same command again."
        ) from error


def _of_solution(file: Path) -> dict[str, str]:
    with file.open(newline="", encoding="utf-8") as lines:
        found = {row[0]: row[1].split()[0] for row in csv.reader(lines) if len(row) == 2 and row[1].split()}
    classes = {name: label for name, label in found.items() if re.fullmatch(_WORDNET, label)}
    if not classes:
        raise UserError(f"{file} does not list images and their classes; download it again from Kaggle.")
    return classes


def _of_devkit(devkit: Path, loadmat: Callable[..., Any]) -> dict[str, str]:
    with tarfile.open(devkit) as files:
        contents = {Path(member.name).name: member for member in files if member.isfile()}
        meta, truth = (
            files.extractfile(contents[name]) for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
        )
        assert meta is not None
        assert truth is not None
        synsets = loadmat(io.BytesIO(meta.read()), squeeze_me=True)["synsets"]
        names = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
        numbers = enumerate(truth.read().decode().split(), start=1)
        return {f"ILSVRC2012_val_{number:08d}": names[int(line)] for number, line in numbers}
