"""Make the two small data sets of the sweeps attention_lr, attention_lr_cells and cells_long, in class folders.

    python scripts/small_sets.py tiny_imagenet=/path/to/tiny-imagenet-200 bccd=/path/to/BCCD into=data/small

INTO/tiny_imagenet_other contains classes 101 to 110 of Tiny ImageNet, which the sweeps on its first 20 or 40 classes do
not use. For each class, 400 of its 500 training images are used for training; the other 100 and the 50 validation
images are used for validation. INTO/blood_cells contains the cells of BCCD, cut out of its photographs, at most 200 per
class and split. Cells from the list `train` are for training. INTO/blood_cells/groups.csv contains the photograph of
each cell, for data.groups: cells of one photograph are not independent.
"""

import shutil
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

import numpy as np
from torch import Tensor
from torchvision.io import write_png

from engine import cli
from engine.data import voc
from engine.data.groups import ImageGroups
from engine.errors import UserError

FIRST_CLASS, CLASSES, TRAINING = 100, 10, 400
CELL_CLASSES = ("RBC", "WBC", "Platelets")
CELLS = 200  # of a class in a split, at most
MARGIN = 1.2  # side of a crop divided by the longer side of its cell


def make(tiny_imagenet: str, bccd: str, into: str) -> None:
    """Write both data sets.

    Raises:
        UserError: if a source has an unexpected layout, or a target exists.
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
    data = voc.open_voc(source, CELL_CLASSES, "bccd", ("train",), ("val", "test"))
    images, photographs = [], []
    for name, split in (("train", data.train), ("val", data.val)):
        counts: Counter[str] = Counter()
        for index in range(len(split)):
            image, objects = split.image(index), split.box_range(index)
            for box, label in zip(split.boxes[objects], split.labels[objects], strict=True):
                cell = CELL_CLASSES[label]
                if counts[cell] < CELLS:
                    counts[cell] += 1
                    folder = target / name / cell
                    folder.mkdir(parents=True, exist_ok=True)
                    file = folder / f"{counts[cell]:03d}.png"
                    write_png(cut(image, box), str(file))
                    images.append(file.relative_to(target).as_posix())
                    photographs.append(str(split.ids[index]))
    (target / "groups.csv").write_text(ImageGroups(tuple(images), tuple(photographs)).text(), encoding="utf-8")


def cut(image: Tensor, box: np.ndarray) -> Tensor:
    """Return a square around a box [4], uint8 [3, side, side], moved to lie inside the image."""
    left, top, right, bottom = map(float, box)
    _, height, width = image.shape
    side = max(8, min(round(MARGIN * max(right - left, bottom - top)), height, width))
    x = min(max(0, round((left + right - side) / 2)), width - side)
    y = min(max(0, round((top + bottom - side) / 2)), height - side)
    return image[:, y : y + side, x : x + side].contiguous()


if __name__ == "__main__":
    cli.run_script(make)
