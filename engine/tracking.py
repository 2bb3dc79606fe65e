"""Scalars to TensorBoard. The horizontal axis is images seen, so that runs of any batch size lie over each other."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class Tracker:
    """Writes to the run's own `tensorboard/`; what an earlier start wrote from `purge_from` images on is dropped.

    Without a directory, as on all processes of a run but the first, it writes nothing.
    """

    def __init__(self, directory: Path | None, purge_from: int) -> None:
        self.writer = None if directory is None else SummaryWriter(str(directory), purge_step=purge_from)

    def scalars(self, group: str, values: dict[str, float], images_seen: int) -> None:
        if self.writer is None:
            return
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, images_seen)

    def flush(self) -> None:
        if self.writer:
            self.writer.flush()

    def close(self) -> None:
        if self.writer:
            self.writer.close()
