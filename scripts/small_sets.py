"""Make the two small data sets of the sweeps attention_lr and attention_lr_cells, in class folders.

    python scripts/small_sets.py tiny_imagenet=/path/to/tiny-imagenet-200 bccd=/path/to/BCCD into=data/small

INTO/tiny_imagenet_other: classes 101 to 110 of Tiny ImageNet, of each 400 training images for training, and the other
100 with its 50 validation images for validation. No result of this repository uses these classes. INTO/blood_cells: the
cells of BCCD, cut out of its photographs, at most 200 of a class; those of the list `train` for training.
"""

import shutil
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

from torch import Tensor
from torchvision.io import write_png

from engine import cli
from engine.data.transforms import decode
from engine.errors import UserError

FIRST_CLASS, CLASSES, TRAINING = 100, 10, 400
CELLS = 200  # of a class, at most
MARGIN = 1.2  # side of a cut by the longer side of its cell


def make(tiny_imagenet: str, bccd: str, into: str) -> None:
    """Write both data sets.

    Raises:
        UserError: if a source is not what it should be, or a target exists.
    """
    for name, source in (("tiny_imagenet_other", Path(tiny_imagenet)), ("blood_cells", Path(bccd))):
        target = Path(into) / name
        if target.exists():
            raise UserError(f"{target} exists; delete it to make it again.")
        try:
            (copy_classes if name == "tiny_imagenet_other" else cut_cells)(source, target)
        except OSError as error:
            shutil.rmtree(target, ignore_errors=True)
            raise UserError(f"{error.filename or source} cannot be read or written ({error.strerror}).") from error
        print(target)


def copy_classes(source: Path, target: Path) -> None:
    lines = (source / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
    validation = [line.split("\t")[:2] for line in lines]
    for name in sorted(entry.name for entry in (source / "train").iterdir())[FIRST_CLASS : FIRST_CLASS + CLASSES]:
        training = sorted((source / "train" / name / "images").iterdir())
        held_out = [source / "val" / "images" / file for file, label in validation if label == name]
        for split, files in (("train", training[:TRAINING]), ("val", training[TRAINING:] + held_out)):
            folder = target / split / name
            folder.mkdir(parents=True)
            for file in files:
                shutil.copyfile(file, folder / file.name)


def cut_cells(source: Path, target: Path) -> None:
    lists = source / "ImageSets" / "Main"
    for split, names in (("train", ("train",)), ("val", ("val", "test"))):
        counts: Counter[str] = Counter()
        for photograph in [line for name in names for line in (lists / f"{name}.txt").read_text().split()]:
            image = decode(str(source / "JPEGImages" / f"{photograph}.jpg"))
            annotations = ElementTree.parse(source / "Annotations" / f"{photograph}.xml")
            for cell in annotations.getroot().iter("object"):
                label = cell.findtext("name", "")
                if counts[label] < CELLS:
                    counts[label] += 1
                    folder = target / split / label
                    folder.mkdir(parents=True, exist_ok=True)
                    write_png(cut(image, cell), str(folder / f"{counts[label]:03d}.png"))


def cut(image: Tensor, cell: ElementTree.Element) -> Tensor:
    """Return a square around a cell, uint8 [3, side, side], moved to lie inside the photograph."""
    left, top, right, bottom = (float(cell.findtext(f"bndbox/{key}", "0")) for key in ("xmin", "ymin", "xmax", "ymax"))
    _, height, width = image.shape
    side = max(8, min(round(MARGIN * max(right - left, bottom - top)), height, width))
    x = min(max(0, round((left + right - side) / 2)), width - side)
    y = min(max(0, round((top + bottom - side) / 2)), height - side)
    return image[:, y : y + side, x : x + side].contiguous()


if __name__ == "__main__":
    cli.run_script(make)
