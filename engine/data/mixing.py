"""Mixup and CutMix of the images of a batch, as a pure function of (seed, epoch, step).

Images 2k and 2k + 1 of a batch, whose order is random, are mixed with each other. Pairs stay together when the batch is
split among processes or micro-batches.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.processes.determinism import RngPurpose, rng


@dataclass(frozen=True)
class Mixing:
    """Mixing parameters of one batch.

    Attributes:
        share: weight of each image in its mixture, and of its own label in the loss, in [0, 1].
        box: top, left, bottom and right of the rectangle from the other image, pixels (CutMix); None for averaged
            pixels (mixup).
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
    """Return each entry's partner; an entry is an image or a label."""
    return values[torch.arange(len(values), device=values.device) ^ 1]


@dataclass(frozen=True)
class Mixer:
    """Random source of each batch's mixing.

    Attributes:
        seed: seed of the run.
        size: height and width of the images, pixels.
        mixup, cutmix: alpha of the Beta(alpha, alpha) from which an image's share is drawn; 0 for never. With both,
            each is equally likely (mixup: Zhang et al., ICLR 2018; CutMix: Yun et al., ICCV 2019).
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
        """Draw a rectangle of the images' aspect ratio around a uniform center, clipped at the border."""
        height, width = self.size
        y, x = int(random.integers(height)), int(random.integers(width))
        half = 0.5 * math.sqrt(1 - share)
        half_height, half_width = int(half * height), int(half * width)
        top, bottom = max(0, y - half_height), min(height, y + half_height)
        left, right = max(0, x - half_width), min(width, x + half_width)
        return Mixing(1 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right))
