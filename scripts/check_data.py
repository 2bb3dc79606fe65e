"""Read every image and annotation of a data set once, and list all problems.

    python scripts/check_data.py data.root=/path/to/images      # class folders, below train/ and val/ or not
    python scripts/check_data.py data=imagenet data.root=/path/to/imagenet
    python scripts/check_data.py data=coco data.root=/path/to/coco workers=16

The keys are those of train.py for data. `workers` is the number of processes, by default one per processor. The exit
code is 2 if there are problems. Images of other formats are a problem unless data.skip_other_formats=true leaves them
out.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()
    from engine import cli

    cli.check_arguments("check_data")  # before the imports that take seconds

import numpy as np
import torch
from tqdm import tqdm

from engine import cli
from engine.config.data import DataConfig
from engine.config.schemas import CheckDataConfig
from engine.data import file_index, shared_memory
from engine.data.box_datasets import open_boxes
from engine.data.boxes import BoxSplit
from engine.data.datasets import Split, open_dataset
from engine.data.duplicates import LARGE, shared_images
from engine.data.evaluation_sets import open_evaluation_sets
from engine.data.layout_hints import layout_hint
from engine.data.other_files import LEFT_OUT, other_images_line, program_files_line
from engine.data.transforms import Finding, UnreadableImage
from engine.errors import UserError
from engine.logging import log, print_line, setup_logging
from engine.tasks.base import AnyDataset

AnySplit = Split | BoxSplit

FINDINGS = {
    Finding.DAMAGED: "has damaged data according to libjpeg; replace it",
    Finding.DARK: "has 16 bits but no value above 4,095; if its data have 12 bits, multiply them by 16",
}


def check(config: CheckDataConfig) -> None:
    """Print the problems of a data set.

    Raises:
        UserError: with the number of problems, if there are any.
    """
    setup_logging()
    torch.set_num_threads(1)
    problems = _Problems(config.data.skip_other_formats)
    splits: list[AnySplit] = []
    try:
        for data in _open(_split_if_bare(config.data)):
            splits += [split for split in (data.train, data.val) if len(split)]
    except UserError as error:
        problems.add(str(error))
        splits = [_all_images(config.data)]
    for split in splits:
        for line in _damage(split, config.workers or len(os.sched_getaffinity(0))):
            problems.add(line)
        for finding, text in FINDINGS.items():
            for index in split.notes.with_finding(finding):
                problems.add(f"The image {split.path(int(index))} {text}.")
        rotated = split.notes.with_finding(Finding.ROTATED)
        if len(rotated):
            first = split.path(int(rotated[0]))
            problems.add(f"{len(rotated):,} images have an EXIF orientation (first: {first}; docs/data.md).")
    images = sum(len(split) for split in splits)
    if problems.count:
        listed = "problem in {:,} images; it is" if problems.count == 1 else "problems in {:,} images; they are"
        raise UserError(f"{problems.count:,} {listed.format(images)} listed above.")
    print_line(f"{images:,} images: no problems.")


class _Problems(logging.Handler):
    """The number of problems, which are printed; warnings of the log are problems too.

    Attributes:
        skips_other_formats: whether the user leaves out images of other formats, which are then no problem.
    """

    def __init__(self, skips_other_formats: bool) -> None:
        super().__init__(logging.WARNING)
        self.count, self.skips_other_formats = 0, skips_other_formats
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:  # printed by the console's handler
        self.count += not (self.skips_other_formats and record.getMessage().endswith(LEFT_OUT))

    def add(self, line: str) -> None:
        self.count += 1
        print_line(line)


def _split_if_bare(config: DataConfig) -> DataConfig:
    """Return the keys with a validation split if the class folders are not in train/ and val/."""
    root = Path(config.root)
    is_split = config.val_fraction or (root / "train").exists() or (root / "val").exists() or layout_hint(root)
    has_folders = config.layout == "folders" and root.is_dir() and any(entry.is_dir() for entry in root.iterdir())
    if config.trained_on is not None or is_split or not has_folders:
        return config
    print_line(f"{root} has no train/ and val/. To train on it, hold out images with data.val_fraction=0.2.")
    return replace(config, val_fraction=0.2)


def _open(config: DataConfig) -> Sequence[AnyDataset]:
    """Open the data set, or each part of an evaluation set; images of other formats are only a warning."""
    config = replace(config, skip_other_formats=True)
    if config.task != "classification":
        return [open_boxes(config)]
    if config.trained_on is not None:
        return open_evaluation_sets(config)
    data = open_dataset(config)
    if len(data.train) + len(data.val) >= LARGE:  # of which only some files have been compared
        train, val = ((split.files, _sizes(split)) for split in (data.train, data.val))
        shared = shared_images(data.train.root, train, val, most=len(data.train) + len(data.val))
        if shared.pairs:
            log.warning(str(shared))
    return [data]


def _sizes(split: Split) -> np.ndarray:
    return np.array([os.stat(split.path(index)).st_size for index in range(len(split))])  # noqa: PTH116 (a million)


def _all_images(config: DataConfig) -> Split:
    """Return all images below the root of a data set that cannot be opened.

    Warn of images of other formats, and of images in both splits.
    """
    root = Path(config.root)
    if not root.is_dir():
        return Split(root, np.array([], dtype=bytes), np.array([], dtype=np.int64))
    found = file_index.class_folders(root, "", [""])
    if found.others:
        log.warning(other_images_line(found.others))
    if found.skipped:
        log.warning(program_files_line(found.skipped))
    _compare(root, found)
    return Split(root, np.array(found.files, dtype=bytes), np.array(found.labels, dtype=np.int64))


def _compare(root: Path, found: file_index.FileList) -> None:
    """Warn of images in the folders of both splits, `train/` and `val/` or those of COCO."""
    files, sizes = np.array(found.files, dtype=bytes), np.array(found.sizes)
    top = np.array([file.partition(b"/")[0] for file in found.files], dtype=bytes)
    train, val = (np.isin(top, [name, name + b"2017"]) for name in (b"train", b"val"))
    if train.any() and val.any():
        shared = shared_images(root, (files[train], sizes[train]), (files[val], sizes[val]), most=len(files))
        if shared.pairs:
            log.warning(str(shared))


def _damage(split: AnySplit, workers: int) -> Iterator[str]:
    """Decode every image in worker processes, and yield a line for each that cannot be decoded.

    A worker that the decoder crashes is replaced by one that starts at the next image.
    """
    _ = split.notes  # created here, so that the workers share it
    position = shared_memory.zeros(workers, 8, purpose="positions", remedy="lower workers").numpy().view(np.int64)[:, 0]
    running = {_start(split, worker, worker, position): worker for worker in range(min(workers, len(split)))}
    with tqdm(total=len(split), unit="image", disable=None, leave=False) as bar:
        while running:
            for reader in wait([reader for reader, _ in running], timeout=1):
                (pair,) = [pair for pair in running if pair[0] is reader]
                try:
                    yield pair[0].recv()
                except EOFError:
                    worker = running.pop(pair)
                    pair[1].join()
                    if pair[1].exitcode:
                        index = int(position[worker])
                        yield f"{_crash(pair[1].exitcode)} on the image {split.path(index)}. Convert or remove it."
                        running[_start(split, worker, index + workers, position)] = worker
            bar.update(int(np.count_nonzero(split.notes.flags)) - bar.n)


def _crash(exitcode: int) -> str:
    return f"The decoder crashes ({signal.Signals(-exitcode).name if exitcode < 0 else f'exit code {exitcode}'})"


def _start(split: AnySplit, worker: int, start: int, position: np.ndarray) -> tuple[Connection, ForkProcess]:
    """Start a process that decodes every image from `start` in steps of the number of workers."""
    reader, writer = Pipe(duplex=False)

    def read() -> None:
        for index in range(start, len(split), len(position)):
            position[worker] = index
            try:
                split.image(index)
            except UnreadableImage as error:
                writer.send(str(error).partition(" Replace the file")[0])

    process = get_context("fork").Process(target=read)
    process.start()
    writer.close()
    return reader, process


if __name__ == "__main__":
    cli.run("check_data", check)
