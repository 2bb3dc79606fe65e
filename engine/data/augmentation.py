"""Augmentation of a training crop with torchvision's transforms, as a pure function of the crop's random numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from engine.data.transforms import IMAGENET_MEAN

_BILINEAR = v2.InterpolationMode.BILINEAR


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of a crop after its flip.

    Attributes:
        kind: `none`, `trivialaugment`, `randaugment` or `colorjitter`.
        erase: probability that a rectangle gets ImageNet's mean color, which the network sees as 0.
    """

    kind: str = "none"
    erase: float = 0.0

    def __call__(self, image: Tensor, random: np.random.Generator) -> Tensor:
        """Augment a crop: uint8 [3, H, W] -> uint8 [3, H, W]."""
        if self.kind == "none" and not self.erase:
            return image
        # The transforms draw only from this generator. torch.manual_seed would be slower because it also seeds GPUs.
        torch.default_generator.manual_seed(int(random.integers(2**63)))
        if self.kind != "none":
            image = _transform(self.kind)(image)
        return _erase()(image) if random.random() < self.erase else image


NO_AUGMENTATION = Augmentation()


class _FasterOperations:
    """torchvision's automatic augmentation operations in half the time.

    Geometry and sharpness skip the constant parts of torchvision's tensor computation. Most of the others are faster
    in Pillow. The results equal torchvision's up to rounding.
    """

    def _apply_image_or_video_transform(
        self, image: Tensor, transform_id: str, magnitude: float, interpolation: Any, fill: Any
    ) -> Tensor:
        match transform_id:
            case "TranslateX":
                return _shift(image, int(magnitude), dim=2)
            case "TranslateY":
                return _shift(image, int(magnitude), dim=1)
            case "ShearX":
                return _warp(image, (1.0, magnitude, 0.0, 1.0), centered=False)
            case "ShearY":
                return _warp(image, (1.0, 0.0, magnitude, 1.0), centered=False)
            case "Rotate":
                cos, sin = math.cos(math.radians(magnitude)), math.sin(math.radians(magnitude))
                return _warp(image, (cos, -sin, sin, cos), centered=True)
            case "Sharpness":
                return _sharpen(image, 1 + magnitude)
        apply = super()._apply_image_or_video_transform  # type: ignore[misc]
        if transform_id in ("Identity", "Posterize"):
            return apply(image, transform_id, magnitude, interpolation, fill)
        return _through_pillow(lambda pixels: apply(pixels, transform_id, magnitude, interpolation, fill), image)


class TrivialAugment(_FasterOperations, v2.TrivialAugmentWide):
    """TrivialAugment (Muller and Hutter, ICCV 2021) with torchvision's wide magnitude space."""


class RandAugment(_FasterOperations, v2.RandAugment):
    """RandAugment (Cubuk et al., 2019) with torchvision's defaults: two operations of magnitude 9."""


@lru_cache
def _transform(kind: str) -> Callable[[Tensor], Tensor]:
    if kind == "trivialaugment":
        return TrivialAugment(interpolation=_BILINEAR)
    if kind == "randaugment":
        return RandAugment(interpolation=_BILINEAR)
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)  # timm's default
    return lambda image: _through_pillow(jitter, image)


@lru_cache
def _erase() -> Callable[[Tensor], Tensor]:
    return v2.RandomErasing(p=1.0, value=[round(255 * mean) for mean in IMAGENET_MEAN])


def _through_pillow(operation: Callable[[Any], Any], image: Tensor) -> Tensor:
    return torch.from_numpy(np.array(operation(F.to_pil_image(image)))).permute(2, 0, 1)


def _shift(image: Tensor, pixels: int, dim: int) -> Tensor:
    """Shift an image to the right or down, and fill with black."""
    size = image.shape[dim]
    kept = max(0, size - abs(pixels))
    shifted = torch.zeros_like(image)
    source, target = max(0, -pixels), max(0, pixels)
    shifted.narrow(dim, min(target, size), kept).copy_(image.narrow(dim, min(source, size), kept))
    return shifted


def _sharpen(image: Tensor, factor: float) -> Tensor:
    """Blend an image with its 3x3 blur, which has center weight 5 and keeps the image's border."""
    values = image.to(torch.int16)
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    inner = values[:, 1:-1, 1:-1]
    blurred = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * inner).mul(1 / 13).round_()
    sharp = image.clone()
    sharp[:, 1:-1, 1:-1] = torch.lerp(blurred, inner.float(), factor).clamp_(0, 255)
    return sharp


def _warp(image: Tensor, matrix: tuple[float, float, float, float], centered: bool) -> Tensor:
    """Sample an image bilinearly at the output's positions, mapped by a matrix [[a, b], [c, d]]; black outside.

    Args:
        centered: whether positions are relative to the image's center; otherwise to its top left corner.
    """
    _, height, width = image.shape
    a, b, c, d = matrix
    left, top = (width / 2, height / 2) if centered else (0.0, 0.0)
    x = torch.arange(width) + (0.5 - left)
    y = (torch.arange(height) + (0.5 - top))[:, None]
    grid = torch.empty(1, height, width, 2)
    torch.add((a * x + left) * (2 / width) - 1, b * (2 / width) * y, out=grid[0, :, :, 0])
    torch.add(c * (2 / height) * x - 1, (d * y + top) * (2 / height), out=grid[0, :, :, 1])
    return grid_sample(image[None].float(), grid, align_corners=False)[0].round_().to(torch.uint8)
