"""A fixed selection of training images, on which the gates of a network are measured."""

from dataclasses import dataclass

import torch
from torch import nn

from engine.data.loader import EvalLoader, ImageSplit, Sample, Samples
from engine.data.transforms import Preprocessing
from engine.processes.determinism import RngPurpose, rng
from engine.processes.device import to_device
from engine.processes.distributed import ProcessGroup
from engine.tasks.base import AnyDataset, Task

_BATCH_SIZE = 32  # independent of runtime.eval_batch_size, so that the bits are too


@dataclass(frozen=True)
class TrainingImages:
    """Training images, cropped as in evaluation. The selection depends only on the seed.

    Attributes:
        count: number of images; all training images if there are fewer.
    """

    task: Task
    data: AnyDataset
    preprocessing: Preprocessing
    seed: int
    count: int
    device: torch.device

    def __len__(self) -> int:
        return min(self.count, len(self.data.train))

    def run(self, model: nn.Module) -> None:
        """Run a model on the images, on this process alone, in evaluation mode and fp32; restore its mode."""
        order = rng(self.seed, RngPurpose.GATES).permutation(len(self.data.train))
        samples = self.task.eval_samples(self.data.train, [self.preprocessing])
        selection = _Selection(samples, sorted(order[: self.count].tolist()))
        batch_size = self.task.eval_batch_size or _BATCH_SIZE
        loader = EvalLoader(selection, batch_size, 0, self.device, ProcessGroup())
        was_training = model.training
        to_device(model, self.device, channels_last=True).eval()
        with torch.no_grad():
            for batch in loader:
                (images,) = self.task.inputs(batch.views, [self.preprocessing])
                self.task.predict(model, images, batch.targets)
        model.train(was_training)


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
