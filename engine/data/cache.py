"""In-memory cache of decoded images for small data sets."""

import torch
from torch import Tensor

from engine.data import shared_memory


class ImageCache:
    """Decoded images by index, in memory that is shared with worker processes forked later.

    Address space is reserved for `count` images of `largest` bytes. Memory is used only as images are added.
    """

    def __init__(self, count: int, largest: int) -> None:
        remedy = "set runtime.cache_images=false"
        self.pixels = shared_memory.zeros(count, largest, purpose="decoded images", remedy=remedy)
        sizes = shared_memory.zeros(count, 8, purpose="sizes of decoded images", remedy=remedy)
        self.sizes = sizes.view(torch.int32)  # [count, 2]: height and width, 0 if not cached

    def get(self, index: int) -> Tensor | None:
        """Return an image as read-only uint8 [3, H, W]; None if it is not cached."""
        height, width = self.sizes[index].tolist()
        if not height:
            return None
        return self.pixels[index, : 3 * height * width].view(height, width, 3).permute(2, 0, 1)

    def put(self, index: int, image: Tensor) -> None:
        """Cache an image, uint8 [3, H, W], unless it is larger than `largest`."""
        if image.numel() > self.pixels.shape[1]:
            return
        self.pixels[index, : image.numel()] = image.permute(1, 2, 0).flatten()
        self.sizes[index] = torch.tensor(image.shape[1:])
