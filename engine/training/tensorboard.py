"""TensorBoard curves over images seen, so that runs with different batch sizes can be overlaid."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from engine.errors import UserError


class TensorBoardLogger:
    """Writer of event files in the run directory.

    Without a directory, as on all processes except the main one, it writes nothing.
    """

    def __init__(self, directory: Path | None, purge_from: int) -> None:
        """
        Args:
            purge_from: number of images seen; values of an earlier start from there on are dropped.

        Raises:
            UserError: if the event file cannot be written.
        """
        self.writer = None
        self.is_new = purge_from == 0
        if directory is not None:
            _make_older_than_now(directory)
            try:
                self.writer = SummaryWriter(str(directory), purge_step=purge_from)
            except OSError as error:
                raise UserError(f"TensorBoard's file in {directory} cannot be written ({error.strerror}).") from error

    def describe(self, hyperparameters: Mapping[str, Any], texts: Mapping[str, str], metrics: Sequence[str]) -> None:
        """Describe the run in the tabs HParams, Custom Scalars and Text.

        Args:
            metrics: metrics of the task, shown as results. Each is drawn for training and validation in one chart, and
                so is the loss. Only the training loss has label smoothing.
        """
        if self.writer is None or not self.is_new:
            return
        pairs = {name: ["Multiline", [_tag(name, "train"), _tag(name, "val")]] for name in (*metrics, "loss")}
        self.writer.add_custom_scalars({"Training and validation": pairs})
        for name, text in texts.items():
            self.writer.add_text(name, f"```\n{text}\n```")
        values = {key: str(value) if value is None else value for key, value in hyperparameters.items()}
        results = (*(_tag(name, "val") for name in (*metrics, "loss")), "speed/images_per_second")
        # The last of the three parts marks the end of the session. SummaryWriter.add_hparams would create a second run
        # below this one.
        for part in hparams(values, dict.fromkeys(results, 0.0))[:2]:
            self.writer.file_writer.add_summary(part)  # type: ignore[attr-defined]

    def metrics(self, split: str, values: Mapping[str, float], step: int) -> None:
        """Write a split's losses and accuracies, e.g. `loss/val`, `accuracy/top1_val`."""
        self.scalars({_tag(name, split): value for name, value in values.items()}, step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write values by tag."""
        if self.writer is None:
            return
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)

    def histograms(self, group: str, values: Mapping[str, Tensor], step: int) -> None:
        """Write the distribution of each tensor's values."""
        if self.writer is None:
            return
        for name, tensor in values.items():
            self.writer.add_histogram(f"{group}/{name}", tensor, step)

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Write a picture, uint8 [height, width, 3]."""
        if self.writer is not None:
            self.writer.add_image(name, pixels, step, dataformats="HWC")

    def flush(self) -> None:
        if self.writer:
            self.writer.flush()

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def _tag(metric: str, split: str) -> str:
    if metric == "loss" or metric.startswith("loss_"):
        return f"loss/{metric.removeprefix('loss').removeprefix('_')}_{split}".replace("/_", "/")
    return f"accuracy/{metric}_{split}"


def _make_older_than_now(directory: Path) -> None:
    """Rename event files with future times, which exist if the clock was set back.

    TensorBoard reads a run's files in the order of the seconds in their names, and drops steps of later files that an
    earlier file has passed.
    """
    now = int(time.time())
    files = [(file, _EVENT_FILE.fullmatch(file.name)) for file in sorted(directory.glob("events.out.tfevents.*"))]
    future = [(file, match) for file, match in files if match and int(match[1]) >= now]
    for back, (file, match) in enumerate(reversed(future), start=1):
        file.rename(file.with_name(f"events.out.tfevents.{now - back:010d}.{match[2]}"))


_EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d+)\.(.+)")
