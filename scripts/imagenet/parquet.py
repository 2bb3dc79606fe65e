"""Parquet shards as of Hugging Face's `ILSVRC/imagenet-1k`: image bytes, original file name and label in each row."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision
from tqdm import tqdm

from engine.data.image_checks import JPEG, PNG
from engine.errors import UserError
from engine.runs.atomic_io import DRAFT
from models import imagenet_classes
from scripts.imagenet.names import image_name

SPLITS = {"train": "train", "validation": "val"}

_SAME_NAMES = 0.95  # of the label names; few are written differently


def shards(source: Path) -> dict[str, list[Path]]:
    """Return the shards of each split in a folder or its `data/`; empty if it has none.

    Raises:
        UserError: if some of a split's shards are missing.
    """
    found: dict[str, list[Path]] = {}
    for folder in (source, source / "data"):
        for prefix, split in SPLITS.items():
            files = sorted(folder.glob(f"{prefix}-*.parquet")) if folder.is_dir() else []
            if files and split not in found:
                _require_all(files)
                found[split] = files
    return found


def _require_all(files: Sequence[Path]) -> None:
    named = [re.fullmatch(r"(.+-)(\d{5})-of-(\d{5})(?:-\w+)?", file.stem) for file in files]
    numbers = {int(one[2]) for one in named if one}
    total = max((int(one[3]) for one in named if one), default=0)
    missing = sorted(set(range(total)) - numbers)
    if missing:
        raise UserError(
            f"{len(missing)} of {total} shards are missing in {files[0].parent} (first: number {missing[0]:05d} of "
            f"those like {files[0].name}); download them, then run the same command again."
        )


@dataclass(frozen=True)
class _Labels:
    """The classes of a split's labels.

    Attributes:
        names: label names in the shards' metadata; empty if there are none.
        is_imagenet: whether labels are positions among ImageNet's sorted WordNet ids.
    """

    names: list[str]
    is_imagenet: bool

    def place(self, label: int, path: str | None, default: str) -> tuple[str, str]:
        """Return the class and file name of a row.

        Raises:
            UserError: if the file name contradicts the label.
            IndexError: if the label is not that of a class; test splits have -1.
        """
        if label < 0:
            raise IndexError(f"label {label} is not that of a class")
        named = None if path is None else image_name(path, {})
        if self.is_imagenet:
            expected = imagenet_classes()[label]
            if named is not None and named[0] != expected:
                raise UserError(
                    f"Label {label} of {path} is {expected} in ImageNet's order, but its name says {named[0]}; the "
                    "shards have another order of the labels, or are damaged."
                )
            return expected, default if path is None else (named[1] if named else Path(path).name)
        if named is not None:
            return named
        folder = self.names[label].replace("/", " or ") if self.names else str(label)
        return folder, default if path is None else Path(path).name


def unpack(found: dict[str, list[Path]], target: Path) -> dict[str, int]:
    """Write the images that are missing below `target`; return the number of rows of each split.

    Raises:
        UserError: if pyarrow is not installed, or a shard is damaged or of another layout.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError("Reading parquet shards needs pyarrow; pip install pyarrow.") from error
    rows = dict.fromkeys(found, 0)
    for split, files in found.items():
        for file in tqdm(files, unit="shard", disable=None, desc=f"unpacking {split}"):
            try:
                with ParquetFile(file) as shard:
                    rows[split] += shard.metadata.num_rows
                    _unpack(shard, file, target / split)
            except (pyarrow.ArrowException, KeyError, TypeError, IndexError) as error:
                raise UserError(
                    f"The shard {file} is damaged or has other columns than image (bytes, path) and label ({error}); "
                    "download it again, then run the same command again."
                ) from error
    return rows


def _unpack(shard: Any, file: Path, folder: Path) -> None:
    labels = _labels(shard, file)
    places = list(_places(shard, file, labels))
    if len(set(places)) < len(places):
        raise UserError(f"Two images of {file} have the same class and name; the shards have another layout.")
    paths = [folder / label / name for label, name in places]
    missing = {number for number, path in enumerate(paths) if not (path.is_file() and path.stat().st_size)}
    if not missing:
        return
    for label in {label for label, _ in places}:
        (folder / label).mkdir(parents=True, exist_ok=True)
    number = 0
    for batch in shard.iter_batches(batch_size=64, columns=["image.bytes"]):
        for image in batch.column("image").to_pylist():
            if number in missing:
                _write(paths[number], image["bytes"])
            number += 1
    os.sync()  # otherwise a crash could leave empty files


def _write(path: Path, content: bytes) -> None:
    if not content.startswith((JPEG, PNG)):
        raise UserError(f"{path.name} in the shards is neither a JPEG nor a PNG file; the shards are damaged.")
    draft = path.with_name(path.name + DRAFT)
    draft.write_bytes(content)
    draft.replace(path)


def _places(shard: Any, file: Path, labels: _Labels) -> Iterator[tuple[str, str]]:
    """Yield the class and file name of each row, without reading the images."""
    table = shard.read(columns=["image.path", "label"])
    images, numbers = (table.column(name).to_pylist() for name in ("image", "label"))
    for number, (image, label) in enumerate(zip(images, numbers, strict=True)):
        yield labels.place(label, image["path"], f"{file.stem}_{number:06d}.JPEG")


def _labels(shard: Any, file: Path) -> _Labels:
    """Return the classes of the labels, checked against ImageNet's if there are 1,000."""
    content = (shard.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    names = json.loads(content).get("info", {}).get("features", {}).get("label", {}).get("names", [])
    known = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    if names and len(names) != len(known):
        return _Labels(list(names), is_imagenet=False)
    same = sum(name.split(",")[0] == other for name, other in zip(names, known, strict=bool(names)))
    if names and same < _SAME_NAMES * len(known):
        raise UserError(
            f"The 1,000 label names of {file} are not those of ImageNet in the order of their WordNet ids (first: "
            f"{names[0]!r} instead of {known[0]!r})."
        )
    return _Labels(list(names), is_imagenet=True)
