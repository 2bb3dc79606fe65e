"""Calibration of attention at the identity start, on training images that depend only on the seed."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from engine.data.loader import EvalLoader, ImageSplit, Sample, Samples
from engine.data.transforms import Preprocessing
from engine.processes.determinism import RngPurpose, rng
from engine.processes.device import to_device
from engine.processes.distributed import ProcessGroup
from engine.tasks.base import AnyDataset, Task

# For each gate, by name.
Scales = dict[str, list[float]]

_BATCH_SIZE = 32  # independent of runtime.eval_batch_size, so that the bits are too


@dataclass(frozen=True)
class _Selection:
    """Some samples of a split."""

    samples: Samples
    indices: list[int]

    @property
    def split(self) -> ImageSplit:
        return self.samples.split

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [*self.samples.shapes]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample:
        return self.samples[self.indices[position]]


@dataclass(frozen=True)
class CalibrationImages:
    """Training images as in evaluation, with the model that they are for.

    Attributes:
        count: number of images; all training images if there are fewer.
    """

    task: Task
    data: AnyDataset
    preprocessing: Preprocessing
    seed: int
    count: int
    device: torch.device

    def run(self, model: nn.Module) -> None:
        """Run the model in evaluation mode on the images, on this process, in fp32."""
        order = rng(self.seed, RngPurpose.CALIBRATION).permutation(len(self.data.train))
        samples = self.task.eval_samples(self.data.train, [self.preprocessing])
        selection = _Selection(samples, sorted(order[: self.count].tolist()))
        batch_size = self.task.eval_batch_size or _BATCH_SIZE
        loader = EvalLoader(selection, batch_size, 0, self.device, ProcessGroup())
        model.eval()
        with torch.no_grad():
            for batch in loader:
                (images,) = self.task.inputs(batch.views, [self.preprocessing])
                self.task.predict(model, images, batch.targets)
        model.train()


def calibrate(
    model: nn.Module,
    images: CalibrationImages,
    measuring: Callable[[nn.Module], AbstractContextManager[Scales]],
    set_scales: Callable[[nn.Module, Scales], None],
    group: ProcessGroup,
) -> Scales:
    """Measure the scales of the model's gates on the main process and set them on all processes.

    Args:
        measuring: yields the scales, which are complete after the context.
    """
    scales: Scales = {}
    if group.is_main_process:
        with measuring(model) as scales:
            images.run(to_device(model, images.device, channels_last=True))
    scales = group.broadcast_object(scales)
    set_scales(model, scales)
    return scales


def facts(scales: Mapping[str, list[float]], images: CalibrationImages) -> dict[str, object]:
    """Return the calibration's part of a run's record."""
    if not scales:
        return {"calibration_images": 0, "scales_sha256": None}
    digest = hashlib.sha256(json.dumps(scales, sort_keys=True).encode()).hexdigest()
    return {"calibration_images": min(images.count, len(images.data.train)), "scales_sha256": digest}
