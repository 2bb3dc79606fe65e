"""Samples of images with boxes, padded to one size so that they can be batched."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from engine.data import box_transforms
from engine.data.boxes import BoxSplit
from engine.data.loader import Sample

PADDING = -1  # label of an entry without a box


class TrainTargets(NamedTuple):
    """The boxes of an image, or of each of B images.

    Attributes:
        size: [2] int64, height and width of the image, which is in the upper left corner of the padded one.
        boxes: [M, 4] float32, x1, y1, x2, y2 in pixels.
        labels: [M] int64; PADDING after the last box.
    """

    size: Tensor
    boxes: Tensor
    labels: Tensor


class EvalTargets(NamedTuple):
    """`TrainTargets` with the fields that only the metric needs.

    Attributes:
        areas: [M] float64, object area in pixels.
        ignored: [M] bool, crowds and difficult objects.
    """

    size: Tensor
    boxes: Tensor
    labels: Tensor
    areas: Tensor
    ignored: Tensor


@dataclass(frozen=True)
class BoxTrainSamples:
    """Augmented images of a split by (epoch, index), padded to a square.

    Attributes:
        transform: a transform from `box_transforms.training`.
        side: side of the padded images, pixels.
    """

    split: BoxSplit
    seed: int
    transform: v2.Transform
    side: int

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [(self.side, self.side)]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        boxes = self.split.box_range(index)
        image, *annotated = box_transforms.augment(
            self.transform,
            self.split.image(index),
            torch.from_numpy(self.split.boxes[boxes]),
            torch.from_numpy(self.split.labels[boxes]),
            self.seed,
            epoch,
            index,
        )
        most = self.split.most_boxes
        kept, labels = (one.numpy() for one in annotated)
        targets = (_size(image), _padded(kept, most, 0), _padded(labels, most, PADDING))
        return [_padded_image(image, self.shapes[0])], targets, index


@dataclass(frozen=True)
class BoxEvalSamples:
    """Whole images of a split by index, padded to the largest height and width."""

    split: BoxSplit

    @property
    def shapes(self) -> list[tuple[int, int]]:
        width, height = self.split.sizes.max(axis=0)
        return [(int(height), int(width))]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        split, boxes, most = self.split, self.split.box_range(index), self.split.most_boxes
        image = split.image(index)
        targets = (
            _size(image),
            _padded(split.boxes[boxes], most, 0),
            _padded(split.labels[boxes], most, PADDING),
            _padded(split.areas[boxes], most, 0),
            _padded(split.crowd[boxes] | split.difficult[boxes], most, False),
        )
        return [_padded_image(image, self.shapes[0])], targets, index


def images_of(view: Tensor, sizes: Tensor) -> list[Tensor]:
    """Return each image of a padded batch as float32 [3, H, W] in [0, 1].

    Args:
        view: uint8 [B, 3, height, width].
        sizes: [B, 2], height and width of each image.
    """
    pairs = zip(view, sizes.tolist(), strict=True)
    return [image[:, :height, :width].to(torch.float32).div(255) for image, (height, width) in pairs]


def _size(image: Tensor) -> np.ndarray:
    return np.array(image.shape[1:], dtype=np.int64)


def _padded(values: np.ndarray, length: int, filling: float) -> np.ndarray:
    """Return the values, padded to [length, ...]."""
    padded = np.full((length, *values.shape[1:]), filling, dtype=values.dtype)
    padded[: len(values)] = values
    return padded


def _padded_image(image: Tensor, shape: tuple[int, int]) -> Tensor:
    padded = torch.zeros(*shape, 3, dtype=torch.uint8)
    padded[: image.shape[1], : image.shape[2]] = image.permute(1, 2, 0)
    return padded.permute(2, 0, 1)
