"""Findings from reading a split's images, in memory that is shared with worker processes forked later."""

from collections.abc import Callable

import numpy as np
from torch import Tensor
from torch.utils.data import get_worker_info

from engine.data import shared_memory, transforms
from engine.data.image_checks import StderrCapture
from engine.data.transforms import Finding

_CHECKED = 128  # flag of an image that has been inspected; the others are values of `Finding`
_READERS = 1025  # worker processes and the main process

_LINES = {
    Finding.DAMAGED: "have damaged data according to libjpeg and are decoded as far as possible; replace these files "
    "(a transfer in text mode causes such damage), or remove them",
    Finding.DARK: "have 16 bits but no value above 4,095, so they are nearly black; if their data have 12 bits, "
    "multiply them by 16",
    Finding.NOTED: "have metadata, such as a color profile, or data beyond their pixels of which libpng warns; their "
    "pixels are intact",
}
_IGNORED = (
    "have an EXIF orientation, which is ignored, as for torchvision's published accuracies; "
    "data.exif_orientation=true turns them upright"
)
_TURNED = "have an EXIF orientation and are turned upright"


class ImageNotes:
    """Findings about the images of a split, by index, and the image that each worker is reading.

    Attributes:
        flags: [images] uint8, sums of `Finding` and _CHECKED.
        reading: [_READERS] int64, the image that each worker, and last the main process, reads or read last.
    """

    def __init__(self, images: int) -> None:
        remedy = "lower runtime.workers"
        self.flags = shared_memory.zeros(max(1, images), purpose="notes on images", remedy=remedy).numpy()
        reading = shared_memory.zeros(_READERS, 8, purpose="notes on workers", remedy=remedy)
        self.reading = reading.numpy().view(np.int64)[:, 0]
        self._capture = StderrCapture()
        self._reported: list[int] = []

    def decode(self, index: int, path: str, upright: bool) -> Tensor:
        """Decode an image as `transforms.decode` does, and note the findings of its first reading."""
        worker = get_worker_info()
        self.reading[-1 if worker is None else worker.id] = index
        flags = self.flags[index]
        capture = None if flags == _CHECKED else self._capture
        image, findings = transforms.inspect(path, upright, capture, bool(flags))
        self.flags[index] |= sum(findings) | _CHECKED
        return image

    def with_finding(self, finding: Finding) -> np.ndarray:
        """Return the indices of the images read so far that have a finding."""
        return np.flatnonzero(self.flags & int(finding))

    def new_lines(self, path: Callable[[int], str], upright: bool, exception: str = "") -> list[str]:
        """Return a line for each kind of finding; none if there are no more findings than at the last call.

        Args:
            path: function that returns an image's path.
            upright: whether the EXIF orientation was applied.
            exception: clause on images to which it was not applied.
        """
        found = {finding: self.with_finding(finding) for finding in Finding}
        counts = [len(indices) for indices in found.values()]
        if counts == self._reported:
            return []
        self._reported = counts
        read = np.count_nonzero(self.flags)
        texts = _LINES | {Finding.ROTATED: _TURNED + exception if upright else _IGNORED}
        return [
            f"{len(indices):,} of {read:,} images read (first: {path(int(indices[0]))}) {texts[finding]}."
            for finding, indices in found.items()
            if len(indices)
        ]
