"""Make the folders that `data=imagenet` reads from ImageNet as it is distributed, or check existing folders.

    python scripts/prepare_imagenet.py archives=/path/to/archives target=/path/to/imagenet
    python scripts/prepare_imagenet.py archives=none target=/path/to/imagenet              # only count the images

The folder `archives` contains one of:

- the archives from https://image-net.org: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
  ILSVRC2012_devkit_t12.tar.gz, which are unpacked. Reading the devkit needs scipy; Kaggle's LOC_val_solution.csv can
  replace it.
- Kaggle's ImageNet, unpacked: ILSVRC/Data/CLS-LOC and LOC_val_solution.csv. The folders contain links to its images.
- Hugging Face's ILSVRC/imagenet-1k: train-*.parquet and validation-*.parquet, which are unpacked. Needs pyarrow.

If interrupted, run the same command again: existing files are not written again. scipy and pyarrow are the extra
`prepare` of pyproject.toml.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

from tqdm import tqdm

from engine import cli
from engine.data.other_files import EXTENSIONS, is_program_folder
from engine.errors import UserError
from engine.logging import print_line
from engine.runs.atomic_io import DRAFT
from models import imagenet_classes
from scripts.imagenet import archives as tar_archives
from scripts.imagenet import kaggle, parquet
from scripts.imagenet.archives import TRAIN, VAL
from scripts.imagenet.names import DEVKIT

CLASSES, TRAIN_IMAGES, VAL_IMAGES = 1000, 1_281_167, 50_000
SMALLEST, LARGEST, VAL_PER_CLASS = 732, 1300, 50  # images of a class in train/, and in val/

__all__ = ["DEVKIT", "TRAIN", "VAL", "prepare"]


def prepare(archives: str, target: str) -> None:
    """Make the missing parts of `target`, then count all images.

    Raises:
        UserError: naming what is damaged or absent in `archives`, or the folders that are incomplete.
    """
    source, into = Path(archives), Path(target)
    if archives == "none":
        count(into)
        return
    if not source.is_dir():
        raise UserError(f"There is no folder {source.absolute()}; set archives to the folder with the downloads.")
    shards = parquet.shards(source)
    folder = kaggle.find(source)
    if shards:
        rows = parquet.unpack(shards, into)
        _report(into, {split: (rows[split], "rows in the shards") for split in rows})
    elif folder is not None:
        kaggle.link(folder, into)
        _report(into, {})
    else:
        tar_archives.unpack(source, into)
        count(into, source)


def count(target: Path, source: Path | None = None) -> None:
    """Count the images.

    Args:
        source: folder of the archives, if they have just been unpacked.

    Raises:
        UserError: unless the folders contain all of ImageNet.
    """
    found = {split: _images(target / split) for split in ("train", "val")}
    expected = {"train": TRAIN_IMAGES, "val": VAL_IMAGES}
    wrong = [
        f"{target / split} contains {sum(classes.values()):,} images in {len(classes):,} classes, not "
        f"{expected[split]:,} in {CLASSES:,}{_suspects(split, classes)}"
        for split, classes in found.items()
        if (sum(classes.values()), len(classes)) != (expected[split], CLASSES)
    ]
    if not wrong and found["train"].keys() != found["val"].keys():
        wrong = [f"{target / 'train'} and {target / 'val'} contain different classes"]
    if wrong:
        remedy = "Rerun with archives=FOLDER, where FOLDER contains the downloads: it adds what is missing."
        if source is not None:
            remedy = (
                f"All images in the archives of {source} are unpacked. For all of ImageNet-1K, download the archives "
                "again, and move files that are not in them; a part can be used as it is, with data.total_classes."
            )
        raise UserError(f"{'; '.join(wrong)}. {remedy}")
    print_line(
        f"{target} is complete: {TRAIN_IMAGES:,} training and {VAL_IMAGES:,} validation images in {CLASSES:,} classes."
    )


def _suspects(split: str, classes: dict[str, int]) -> str:
    """Return a clause that names the classes whose number of images is impossible, or that are absent."""
    low, high = (SMALLEST, LARGEST) if split == "train" else (VAL_PER_CLASS, VAL_PER_CLASS)
    odd = [f"{name} has {images:,}" for name, images in classes.items() if not low <= images <= high]
    absent = [f"{name} is absent" for name in imagenet_classes() if name not in classes]
    named = [*odd, *absent][:5]
    return f" ({', '.join(named)}{', ...' if len(odd) + len(absent) > 5 else ''})" if named else ""


def _report(target: Path, expected: dict[str, tuple[int, str]]) -> None:
    """Print the number of images, which may be those of a part of ImageNet.

    Args:
        expected: for each split, the number of images that it must have, and what they are.

    Raises:
        UserError: if there are more or fewer.
    """
    found = {split: _images(target / split) for split in ("train", "val")}
    totals = {split: sum(classes.values()) for split, classes in found.items()}
    for split, (number, what) in expected.items():
        if totals[split] != number:
            raise UserError(
                f"{target / split} contains {totals[split]:,} images, but there are {number:,} {what}; set target to "
                "an empty folder."
            )
    print_line(
        f"{target} has {totals['train']:,} training and {totals['val']:,} validation images in "
        f"{len(found['train']):,} classes."
    )
    if (totals["train"], totals["val"]) != (TRAIN_IMAGES, VAL_IMAGES):
        print_line(
            f"All of ImageNet-1K would be {TRAIN_IMAGES:,} and {VAL_IMAGES:,} images; for a part, set "
            "data.total_classes."
        )


def _images(folder: Path) -> dict[str, int]:
    """Return the number of images in each class folder."""
    if not folder.is_dir():
        return {}
    names = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.endswith(DRAFT) and not is_program_folder(entry.name)
    )
    return {
        name: sum(_is_image(file.name) for file in os.scandir(folder / name))
        for name in tqdm(names, unit="class", disable=None, desc=f"counting {folder.name}")
    }


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


if __name__ == "__main__":
    cli.run_script(prepare)
