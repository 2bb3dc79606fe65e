"""Batches of images in a defined order, prefetched by worker processes and copied to the device."""

import hashlib
import signal
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from engine.config.schemas import TrainConfig
from engine.data.image_notes import ImageNotes
from engine.data.mixing import Mixer, Mixing
from engine.data.shared_batches import PREFETCH, SharedBatchRing, Slot
from engine.data.workers import CRASHES, WorkerContext, starting_workers
from engine.errors import UserError
from engine.logging import log
from engine.processes.determinism import RngPurpose, rng
from engine.processes.device import Transfer
from engine.processes.distributed import ProcessGroup

# The views of one image (uint8 [3, H, W]), its targets, and its index in the split.
Sample = tuple[list[Tensor], tuple[Any, ...], int]


class ImageSplit(Protocol):
    """The images of a split, in a fixed order."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> str: ...

    @property
    def notes(self) -> ImageNotes: ...

    def new_findings(self) -> list[str]: ...


class Samples(Protocol):
    """Samples by key, which a task makes from a split's images.

    Attributes:
        split: the images.
        shapes: (height, width) of each view, pixels.
    """

    @property
    def split(self) -> ImageSplit: ...

    @property
    def shapes(self) -> Sequence[tuple[int, int]]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Sample: ...


class Batch(NamedTuple):
    """A batch of samples on the device.

    Attributes:
        views: for each view of the images, uint8 [B, 3, H, W].
        targets: tensors whose first dimension is B.
        indices: int64 [B] on the host, positions in the split.
        mixing: the mixing to apply to the images; None for no mixing.
    """

    views: list[Tensor]
    targets: tuple[Tensor, ...]
    indices: Tensor
    mixing: Mixing | None = None

    def chunk(self, parts: int) -> Iterator["Batch"]:
        """Split the batch into `parts` equal micro-batches, in order."""
        columns = [tensor.chunk(parts) for tensor in (*self.views, *self.targets, self.indices)]
        count = len(self.views)
        for views, targets in zip(zip(*columns[:count], strict=True), zip(*columns[count:], strict=True), strict=True):
            yield Batch(list(views), targets[:-1], targets[-1], self.mixing)


FEW_STEPS = 8  # per epoch


def small_batch(images: int) -> int:
    """Return the batch size for about eight steps per epoch: a power of two, which divides among processes."""
    return 2 ** max(1, (images // FEW_STEPS).bit_length() - 1)


class EpochBatches:
    """This process's share of each batch of an epoch, as lists of (epoch, index).

    Set `epoch` and `first` (batches to skip) before iterating. The order depends only on (seed, epoch). An incomplete
    last batch is dropped.

    With `repetitions`, a batch is the concatenation of that many copies of a smaller one, and an epoch sees
    1 / repetitions of the images (Hoffer et al., CVPR 2020). Copy r of epoch e is sampled as
    (repetitions * e + r, index), so that each copy is augmented differently.
    """

    def __init__(self, images: int, batch_size: int, seed: int, group: ProcessGroup, repetitions: int = 1) -> None:
        if images < batch_size:
            raise UserError(
                f"recipe.batch_size={batch_size} exceeds the {images} training images. Set recipe.batch_size="
                f"{small_batch(images)}, and scale recipe.lr with it."
            )
        self.images, self.batch_size, self.seed, self.group = images, batch_size, seed, group
        self.repetitions = repetitions
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        return self.images // self.batch_size - self.first

    def __iter__(self) -> Iterator[Sequence[tuple[int, int]]]:
        epoch, first = self.epoch, self.first
        order = rng(self.seed, RngPurpose.ORDER, epoch).permutation(self.images)
        distinct = self.batch_size // self.repetitions
        draws = range(self.repetitions * epoch, self.repetitions * (epoch + 1))
        for step in range(first, self.images // self.batch_size):
            batch = order[step * distinct : (step + 1) * distinct]
            yield self.group.shard([(draw, int(index)) for draw in draws for index in batch])


class TrainLoader:
    """Training batches. Each process gets its shard of every batch; the order depends only on (seed, epoch)."""

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        seed: int,
        workers: int | None,
        device: torch.device,
        group: ProcessGroup,
        mixer: Mixer | None = None,
        repetitions: int = 1,
    ) -> None:
        """
        Args:
            samples: samples by (epoch, index).
            batch_size: images per batch over all processes.
            workers: worker processes; None for one per processor, at most 8.
            mixer: mixer of a batch's images; None for no mixing.
            repetitions: differently augmented copies of each image in a batch.
        """
        self.mixer = mixer
        self.batches = EpochBatches(len(samples), batch_size, seed, group, repetitions)
        shard = -(-batch_size // group.world_size)
        self.reader = _Reader(samples, shard, workers, device, group, batch_sampler=self.batches)
        self.split = samples.split
        self.device = device
        self.steps_per_epoch = len(self.batches)

    @classmethod
    def from_config(
        cls, samples: Samples, config: TrainConfig, device: torch.device, group: ProcessGroup
    ) -> "TrainLoader":
        """Return the loader of a training run."""
        recipe = config.recipe
        mixer = Mixer(config.seed, samples.shapes[0], recipe.mixup, recipe.cutmix) if recipe.mixes else None
        return cls(
            *(samples, recipe.batch_size, config.seed, config.runtime.workers, device, group),
            mixer=mixer,
            repetitions=recipe.repeated_augmentation,
        )

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, skipping the first `first` ones."""
        self.batches.epoch, self.batches.first = epoch, first
        for step, batch in enumerate(self.reader, start=first):
            yield batch._replace(mixing=self.mixer.draw(epoch, step)) if self.mixer else batch


class EvalLoader:
    """Evaluation batches: every image of a split exactly once, on one of the processes."""

    def __init__(
        self, samples: Samples, batch_size: int, workers: int | None, device: torch.device, group: ProcessGroup
    ) -> None:
        self.images = len(samples)  # over all processes
        shard = range(group.rank, self.images, group.world_size)
        batch_size = max(1, min(batch_size, len(shard)))
        self.reader = _Reader(samples, batch_size, workers, device, group, batch_size=batch_size, sampler=shard)
        self.device = device

    def __len__(self) -> int:
        return len(self.reader)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.reader)


def digest(batches: Iterable[Batch]) -> str:
    """Return a sha256 over every byte of the batches. Equal digests mean equal data in equal order."""
    sha256 = hashlib.sha256()
    for batch in batches:
        for tensor in (*batch.views, *batch.targets, batch.indices):
            sha256.update(tensor.cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()


class _Reader:
    """Batches of samples, read by worker processes and copied to the device."""

    def __init__(
        self,
        samples: Samples,
        largest: int,
        workers: int | None,
        device: torch.device,
        group: ProcessGroup,
        **batching: Any,
    ) -> None:
        """
        Args:
            largest: maximum number of images per batch.
            batching: the DataLoader's batching arguments.
        """
        if workers is None:
            workers = min(8, group.cluster.processors)
        self.split, self.notes = samples.split, samples.split.notes  # before the workers are forked
        self.ring = SharedBatchRing(workers, largest, samples.shapes)
        self.transfer = Transfer(device)
        self.loader: DataLoader = DataLoader(
            samples,  # type: ignore[arg-type]  # has a Dataset's methods
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
            collate_fn=partial(_collate, self.ring),
            multiprocessing_context=WorkerContext() if workers else None,
            # Without its own generator, each epoch would draw from torch's global one.
            generator=torch.Generator(),
            **batching,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        try:
            with starting_workers():
                batches = iter(self.loader)
            for slot, targets, indices in batches:
                views = [self.transfer(view) for view in self.ring.read(slot)]
                yield Batch(
                    views, tuple(self.transfer(torch.from_numpy(t)) for t in targets), torch.from_numpy(indices)
                )
        except UserError as error:
            # A worker's message includes a traceback, whose last line is the error.
            last_line = str(error).strip().splitlines()[-1]
            raise UserError(last_line.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from error
        except RuntimeError as error:
            raise self._crash() or error from error
        for line in self.split.new_findings():
            log.warning(line)

    def _crash(self) -> UserError | None:
        """Return the error for workers that crashed; None if there are none."""
        workers = getattr(self.loader._iterator, "_workers", [])
        crashed = [number for number, worker in enumerate(workers) if -(worker.exitcode or 0) in CRASHES]
        if not crashed:
            return None
        names = sorted({signal.Signals(-workers[number].exitcode).name for number in crashed})
        files = ", ".join(self.split.path(int(self.notes.reading[number])) for number in crashed)
        return UserError(
            f"A data loading worker was ended by {' and '.join(names)} while it read {files}. Convert the file to "
            "another format or remove it, then run the same command again to resume."
        )


def _collate(ring: SharedBatchRing, samples: Sequence[Sample]) -> tuple[Slot, list[np.ndarray], np.ndarray]:
    """Write a batch's views into shared memory; return their slot, the targets and the indices."""
    views, targets, indices = zip(*samples, strict=True)
    # Arrays, because each tensor would get a shared-memory file, which is slower than sending so few numbers.
    return ring.write(views), [np.array(column) for column in zip(*targets, strict=True)], np.array(indices)
