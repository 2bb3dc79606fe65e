"""Mixup and CutMix: how the images of one batch are mixed, as a pure function of (seed, epoch, step).

Images 2k and 2k + 1 of a batch are mixed with each other. The order of a batch is random. Pairs stay together where
processes or micro-batches share the batch.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.determinism import RngPurpose, rng


@dataclass(frozen=True)
class Mixing:
    """How the pairs of one batch are mixed.

    Attributes:
        share: of each image in its mixture, and of its own label in the loss, in [0, 1].
        box: top, left, bottom and right of the rectangle that comes from the other image, pixels (CutMix); None where
            pixels are averaged (mixup).
    """

    share: float
    box: tuple[int, int, int, int] | None = None

    def images(self, images: Tensor) -> Tensor:
        """Return the mixed images, [N, 3, H, W] of a floating-point dtype, N even."""
        others = partners(images)
        if self.box is None:
            return images.mul(self.share).add_(others, alpha=1 - self.share)
        top, left, bottom, right = self.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        return mixed


def partners(values: Tensor) -> Tensor:
    """Return for each entry, an image or its label, that of the other image of its pair."""
    return values[torch.arange(len(values), device=values.device) ^ 1]


@dataclass(frozen=True)
class Mixer:
    """Draws how each batch is mixed.

    Attributes:
        seed: of the run.
        size: height and width of the images, pixels.
        mixup, cutmix: alpha of the Beta(alpha, alpha) that an image's share is drawn from; 0 for never. With both, each
            is as likely (mixup: Zhang et al., ICLR 2018; CutMix: Yun et al., ICCV 2019).
    """

    seed: int
    size: tuple[int, int]
    mixup: float
    cutmix: float

    def draw(self, epoch: int, step: int) -> Mixing:
        random = rng(self.seed, RngPurpose.MIXING, epoch, step)
        is_cutmix = random.random() < 0.5 if self.mixup and self.cutmix else self.cutmix > 0
        alpha = self.cutmix if is_cutmix else self.mixup
        share = float(random.beta(alpha, alpha))
        return self._cutmix(share, random) if is_cutmix else Mixing(share)

    def _cutmix(self, share: float, random: np.random.Generator) -> Mixing:
        """Draw a rectangle of the images' aspect ratio around a uniform center; cut at the border, it takes less."""
        height, width = self.size
        y, x = int(random.integers(height)), int(random.integers(width))
        half = 0.5 * math.sqrt(1 - share)
        half_height, half_width = int(half * height), int(half * width)
        top, bottom = max(0, y - half_height), min(height, y + half_height)
        left, right = max(0, x - half_width), min(width, x + half_width)
        return Mixing(1 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right))
