"""What a run tells TensorBoard. Its axis is images seen, so that runs of any batch size lie over each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

_PAIRS = {
    "Training and validation": {
        name: ["Multiline", [f"train/{name}", f"val/{name}"]] for name in ("loss", "top1", "top5")
    }
}
_RESULTS = ("val/top1", "val/top5", "val/loss", "speed/images_per_second")


class TensorBoardLogger:
    """Writes beside the run's other files; what an earlier start wrote from `purge_from` images on is dropped.

    Without a directory, as on all processes of a run but the first, it writes nothing.
    """

    def __init__(self, directory: Path | None, purge_from: int) -> None:
        self.writer = None if directory is None else SummaryWriter(str(directory), purge_step=purge_from)
        self.is_new = purge_from == 0

    def describe(self, hyperparameters: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        """The run in the tabs HParams, with the last values of its curves as its metrics, Custom Scalars and Text."""
        if self.writer is None:
            return
        values = {key: str(value) if value is None else value for key, value in hyperparameters.items()}
        if self.is_new:
            self.writer.add_custom_scalars(_PAIRS)
            for name, text in texts.items():
                self.writer.add_text(name, f"```\n{text}\n```")
            # Of the three parts the last says that the session is over; SummaryWriter.add_hparams would make a second
            # run below this one.
            for part in hparams(values, dict.fromkeys(_RESULTS, 0.0))[:2]:
                self.writer.file_writer.add_summary(part)  # type: ignore[attr-defined]

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        if self.writer is None:
            return
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """uint8 [height, width, 3]."""
        if self.writer is not None:
            self.writer.add_image(name, pixels, step, dataformats="HWC")

    def flush(self) -> None:
        if self.writer:
            self.writer.flush()

    def close(self) -> None:
        if self.writer:
            self.writer.close()
