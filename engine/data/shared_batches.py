"""Transfer of image batches from worker processes to the training process through shared memory."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from engine.data import shared_memory

PREFETCH = 2  # batches prefetched per worker
_SLOTS = PREFETCH + 1  # the prefetched batches and the one in use


class Slot(NamedTuple):
    """Location of a batch: the worker that wrote it, one of its slots, and the number of images."""

    worker: int
    number: int
    images: int


class SharedBatchRing:
    """Slots for image batches, in memory that is shared with worker processes forked later.

    A tensor sent through a queue creates a new shared-memory file each time. Clearing and mapping its pages takes 1/15
    of the time of reading its images, and containers often limit such files to 64 MB in total.

    Each worker fills its own slots in turn. While one of its batches is in use, PREFETCH others fill its other slots.
    A slot keeps its content until the next batch is requested, so copy it before then.
    """

    def __init__(self, workers: int, batch_size: int, shapes: Sequence[tuple[int, int]]) -> None:
        """
        Args:
            workers: processes that write batches; 0 if this process writes them.
            batch_size: maximum number of images per batch.
            shapes: (height, width) of each view of the images, pixels.
        """
        self.slots = [
            shared_memory.zeros(
                *(max(1, workers), _SLOTS, batch_size, height, width, 3),
                purpose=f"batches from {workers} workers",
                remedy="lower runtime.workers, runtime.eval_batch_size or recipe.batch_size",
            )
            for height, width in shapes
        ]
        self.written = 0  # batches written by this process

    def write(self, images: Sequence[Sequence[Tensor]]) -> Slot:
        """Write a batch, in a worker.

        Args:
            images: the views of each image, uint8 [3, height, width].
        """
        info = get_worker_info()
        slot = Slot(info.id if info else 0, self.written % _SLOTS, len(images))
        self.written += 1
        for slots, views in zip(self.slots, zip(*images, strict=True), strict=True):
            # Decoders interleave the three colors of each pixel; the copy keeps that memory order.
            torch.stack([view.permute(1, 2, 0) for view in views], out=slots[slot.worker, slot.number, : slot.images])
        return slot

    def read(self, slot: Slot) -> list[Tensor]:
        """Return the batch in a slot: for each view, uint8 [images, 3, height, width], channels_last."""
        return [slots[slot.worker, slot.number, : slot.images].permute(0, 3, 1, 2) for slots in self.slots]
