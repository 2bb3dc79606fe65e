"""Make the data sets of the sweeps trashnet, calibrated_start and lr_factor_*, in class folders.

    python scripts/calibration_sets.py trashnet=/path/to/trashnet tiny_imagenet=/path/to/tiny-imagenet-200 \
        into=data/calibration

TrashNet (dataset-resized.zip of its repository, or a copy at another size) has one folder for each of its six classes.
Every fifth photograph of a class, in the order of the names, is a validation image of INTO/trashnet_full and of
INTO/trashnet. The training images are all others in INTO/trashnet_full, and 80 of them per class in INTO/trashnet.
INTO/trashnet_choice is for choosing settings: all of its images are training photographs, 80 per class for training and
at most 50 others for validation. INTO/tiny_imagenet_choice is the same for classes 111 to 120 of Tiny ImageNet (100
and 50 training images per class), and INTO/tiny_imagenet_start has 300 and 10 training images of each of the classes
121 to 140, on which a network is trained first. The files are links.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

from engine import cli
from engine.errors import UserError

VALIDATION_EVERY = 5
TRAINING, CHOICE = 80, 50  # photographs of a class


def make(trashnet: str, tiny_imagenet: str, into: str) -> None:
    """Write the five data sets.

    Raises:
        UserError: if a source has an unexpected layout, or the target exists.
    """
    target = Path(into)
    if target.exists():
        raise UserError(f"{target} exists; delete it to make it again.")
    try:
        link_trashnet(Path(trashnet).resolve(), target)
        link_tiny_imagenet(Path(tiny_imagenet).resolve(), target)
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise UserError(f"{error.filename or into} cannot be read or written ({error.strerror}).") from error
    print(target)


def link_trashnet(source: Path, target: Path) -> None:
    for folder in sorted(entry for entry in source.iterdir() if entry.is_dir()):
        photographs = sorted(folder.iterdir())
        held_out = photographs[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]
        training = [file for file in photographs if file not in held_out]
        link(target / "trashnet_full", folder.name, training, held_out)
        link(target / "trashnet", folder.name, evenly(training, TRAINING), held_out)
        chosen = training[3::4]
        rest = [file for file in training if file not in chosen]
        link(target / "trashnet_choice", folder.name, evenly(rest, TRAINING), evenly(chosen, CHOICE))


def link_tiny_imagenet(source: Path, target: Path) -> None:
    classes = sorted(entry for entry in (source / "train").iterdir() if entry.is_dir())
    for name, span, training, validation in (
        ("tiny_imagenet_choice", slice(110, 120), 100, 50),
        ("tiny_imagenet_start", slice(120, 140), 300, 10),
    ):
        for folder in classes[span]:
            files = sorted((folder / "images").iterdir())
            link(target / name, folder.name, files[:training], files[training : training + validation])


def evenly(files: Sequence[Path], count: int) -> list[Path]:
    """Return at most `count` of the files, evenly spaced."""
    count = min(count, len(files))
    return [files[i * len(files) // count] for i in range(count)]


def link(data: Path, name: str, training: Sequence[Path], validation: Sequence[Path]) -> None:
    for split, files in (("train", training), ("val", validation)):
        folder = data / split / name
        folder.mkdir(parents=True)
        for file in files:
            (folder / file.name).symlink_to(file)


if __name__ == "__main__":
    cli.run_script(make)
