"""Batches: which images, in which order, read by which processes, moved to the device ahead of their use."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine.data import transforms
from engine.data.datasets import Split
from engine.data.shared_batches import PREFETCH, SharedBatchRing
from engine.data.transforms import Preprocessing
from engine.determinism import RngPurpose, rng
from engine.device import Transfer
from engine.distributed import ProcessGroup
from engine.errors import UserError
from engine.signals import ignore_in_worker


@dataclass(frozen=True)
class TrainSamples(Dataset[tuple[list[Tensor], int, int]]):
    """Augmented training images by (epoch, index): ([image uint8 [3, size, size]], label, index)."""

    split: Split
    seed: int
    size: int
    crop_scale: float

    @property
    def sizes(self) -> list[int]:
        return [self.size]

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[Tensor], int, int]:
        epoch, index = key
        random = rng(self.seed, RngPurpose.SAMPLE, epoch, index)
        image = transforms.augment(self.split.image(index), self.size, self.crop_scale, random)
        return [image], int(self.split.labels[index]), index


@dataclass(frozen=True)
class EvalSamples(Dataset[tuple[list[Tensor], int, int]]):
    """Images by index, decoded once and cut in each of several ways: (images, label, index)."""

    split: Split
    preprocessings: tuple[Preprocessing, ...]

    @property
    def sizes(self) -> list[int]:
        return [preprocessing.crop for preprocessing in self.preprocessings]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int, int]:
        image = self.split.image(index)
        return [p.apply(image) for p in self.preprocessings], int(self.split.labels[index]), index


class EpochBatches:
    """This process's part of each batch of one epoch at a time, as lists of (epoch, index).

    Set `epoch` and `first` (batches to skip) before iterating. The order depends on (seed, epoch) alone. What does
    not fill a batch is left out.
    """

    def __init__(self, images: int, batch_size: int, seed: int, group: ProcessGroup) -> None:
        if images < batch_size:
            raise UserError(f"recipe.batch_size={batch_size} is more than the {images} training images; set it lower.")
        self.images, self.batch_size, self.seed, self.group = images, batch_size, seed, group
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        return self.images // self.batch_size - self.first

    def __iter__(self) -> Iterator[Sequence[tuple[int, int]]]:
        epoch, first = self.epoch, self.first
        order = rng(self.seed, RngPurpose.ORDER, epoch).permutation(self.images)
        for step in range(first, self.images // self.batch_size):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield self.group.shard([(epoch, int(index)) for index in batch])


class TrainLoader:
    """Training batches: (images uint8 [B, 3, size, size] on the device, labels [B], indices [B]).

    `batch_size` is that of all processes together; B is this one's part of it.
    """

    def __init__(
        self, samples: TrainSamples, batch_size: int, workers: int | None, device: torch.device, group: ProcessGroup
    ) -> None:
        self.batches = EpochBatches(len(samples.split), batch_size, samples.seed, group)
        share = -(-batch_size // group.world_size)
        self.reader = _Reader(samples, share, workers, device, group, batch_sampler=self.batches)
        self.device = device
        self.steps_per_epoch = len(self.batches)
        self.path = samples.split.path  # of an image, by its index

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of one epoch, from the `first` on."""
        self.batches.epoch, self.batches.first = epoch, first
        for (images,), labels, indices in self.reader:
            yield images, labels, indices


class EvalLoader:
    """Every image of a split, on one process each: (images, one uint8 tensor per preprocessing; labels; indices)."""

    def __init__(
        self, samples: EvalSamples, batch_size: int, workers: int | None, device: torch.device, group: ProcessGroup
    ) -> None:
        self.samples = samples
        own = range(group.rank, len(samples), group.world_size)
        most = max(1, min(batch_size, len(own)))
        self.reader = _Reader(samples, most, workers, device, group, batch_size=most, sampler=own)
        self.device = device

    def __iter__(self) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
        return iter(self.reader)


def digest(batches: Iterable[tuple[Tensor, ...]]) -> str:
    """sha256 over every byte of the images, labels and indices: equal digests, equal data in equal order."""
    sha256 = hashlib.sha256()
    for batch in batches:
        for tensor in batch:
            sha256.update(tensor.cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()


class _Reader:
    """Batches of samples, read by workers, on the device: (images, a tensor for each cut; labels; indices)."""

    def __init__(
        self,
        samples: TrainSamples | EvalSamples,
        most: int,
        workers: int | None,
        device: torch.device,
        group: ProcessGroup,
        **batching: Any,
    ) -> None:
        """`most`: images of a batch; `batching`: how the DataLoader chooses them."""
        if workers is None:
            workers = min(8, group.cluster.processors)
        self.ring = SharedBatchRing(workers, most, samples.sizes)
        self.transfer = Transfer(device)
        self.loader = DataLoader(
            samples,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
            collate_fn=partial(_put, self.ring),
            # Forked workers share the index, and notice when the main process dies; servers' children would not.
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=ignore_in_worker,
            # A generator of its own: otherwise each epoch draws from torch's global one.
            generator=torch.Generator(),
            **batching,
        )

    def __iter__(self) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
        try:
            for worker, slot, labels, indices in self.loader:
                images = [self.transfer(cut) for cut in self.ring.read(worker, slot, len(labels))]
                yield images, self.transfer(torch.from_numpy(labels)), torch.from_numpy(indices)
        except UserError as error:
            # From a worker the message comes with a traceback, whose last line is the error itself.
            last_line = str(error).strip().splitlines()[-1]
            raise UserError(last_line.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from error


def _put(
    ring: SharedBatchRing, samples: Sequence[tuple[list[Tensor], int, int]]
) -> tuple[int, int, np.ndarray, np.ndarray]:
    """What a worker sends of a batch: the worker and its place where the images lie, labels, indices."""
    images, labels, indices = zip(*samples, strict=True)
    # Arrays: each tensor would get a file of shared memory, which takes longer than to send so few numbers.
    return *ring.write(images), np.array(labels), np.array(indices)
