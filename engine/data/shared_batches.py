"""How batches of images get from the workers that read them to the process that trains: through memory of both."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from engine.data import shared_memory

PREFETCH = 2  # batches on order of each worker
_SLOTS = PREFETCH + 1  # for those and the one in use


class SharedBatchRing:
    """Places for batches of images, in memory that is shared with worker processes forked later.

    A tensor that is sent through a queue becomes a new file of shared memory each time. Clearing and mapping its pages
    takes a fifteenth of the time that reading its images takes, and containers often allow 64 MB of such files in all.

    Here each worker fills slots of its own in turn. While a batch of its is in use, PREFETCH others are on order, and
    take its other slots: what lies in a slot stays until the next batch is asked for. Copy it before.
    """

    def __init__(self, workers: int, batch_size: int, sizes: Sequence[int]) -> None:
        """
        Args:
            workers: processes that put batches down; 0 if this one does.
            batch_size: images of a batch, at most.
            sizes: side of the images, pixels, one for each cut that is made of them.
        """
        self.slots = [
            shared_memory.zeros(
                *(max(1, workers), _SLOTS, batch_size, size, size, 3),
                purpose=f"batches from {workers} workers",
                remedy="set runtime.workers, runtime.eval_batch_size or recipe.batch_size lower",
            )
            for size in sizes
        ]
        self.filled = 0  # batches that this process put down

    def write(self, images: Sequence[Sequence[Tensor]]) -> tuple[int, int]:
        """Put a batch down; called by the worker.

        Args:
            images: of each image its cuts, uint8 [3, size, size].

        Returns:
            The worker and its slot, for `take`.
        """
        info = get_worker_info()
        worker, slot = info.id if info else 0, self.filled % _SLOTS
        self.filled += 1
        for slots, cuts in zip(self.slots, zip(*images, strict=True), strict=True):
            # Decoders give the three colours of each pixel together; so they are copied as they lie.
            torch.stack([cut.permute(1, 2, 0) for cut in cuts], out=slots[worker, slot, : len(cuts)])
        return worker, slot

    def read(self, worker: int, slot: int, count: int) -> list[Tensor]:
        """The batch that lies there: of each cut uint8 [count, 3, size, size] in channels_last memory format."""
        return [slots[worker, slot, :count].permute(0, 3, 1, 2) for slots in self.slots]
