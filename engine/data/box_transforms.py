"""Augmentation of images with boxes with torchvision's transforms, as a pure function of (seed, epoch, index)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from engine.processes.determinism import RngPurpose, rng

FILL = (123.0, 117.0, 104.0)  # ImageNet's mean color, as in the published SSD


def flip() -> v2.Transform:
    """Return the augmentation of torchvision's Faster R-CNN: a horizontal flip with probability 0.5."""
    return v2.RandomHorizontalFlip()


def multi_scale(shorter_sides: Sequence[int], longest: int) -> v2.Transform:
    """Return the augmentation of detectron2's Faster R-CNN: a flip, and one of several sizes.

    Args:
        shorter_sides: lengths of the shorter side to draw from, pixels.
        longest: maximum of the longer side, pixels.
    """
    return v2.Compose([flip(), _shorter_side(shorter_sides, longest)])


def ssd() -> v2.Transform:
    """Return the augmentation of SSD: photometric distortion, zoom out, IoU crop and flip."""
    return v2.Compose([v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=list(FILL)), v2.RandomIoUCrop(), flip()])


def ssdlite() -> v2.Transform:
    """Return the augmentation of torchvision's SSDlite: IoU crop and flip."""
    return v2.Compose([v2.RandomIoUCrop(), flip()])


def training(policy: str, image_size: int, max_size: int, square: bool) -> v2.Transform:
    """Return an augmentation that outputs images of a detector's size.

    Args:
        policy: `flip`, `multi_scale`, `ssd` or `ssdlite`. `multi_scale` is never square; its shorter side is one of
            six lengths from 0.8 to 1 times `image_size`, like 640 to 800 in detectron2.
        image_size: length of the shorter side, or of both sides, pixels.
        max_size: maximum of the longer side, pixels.
        square: whether images are scaled to image_size x image_size.
    """
    if policy == "multi_scale":
        return multi_scale([round(image_size * share / 25) for share in range(20, 26)], max_size)
    policies = {"flip": flip, "ssd": ssd, "ssdlite": ssdlite}
    # Without antialiasing, as torchvision's detectors scale images in evaluation.
    to_square = v2.Resize((image_size, image_size), antialias=False)
    return v2.Compose([policies[policy](), to_square if square else _shorter_side([image_size], max_size)])


def _shorter_side(lengths: Sequence[int], longest: int) -> v2.Transform:
    return v2.RandomShortestSize(list(lengths), max_size=longest, antialias=False)


def augment(
    transform: v2.Transform, image: Tensor, boxes: Tensor, labels: Tensor, seed: int, epoch: int, index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Transform one sample without modifying the arguments.

    torchvision's transforms draw only from torch's global generator, which is seeded here for the sample. Call this
    only if nothing else relies on that generator's state: in a worker, or between training steps that seed it.

    Args:
        transform: a transform of this module.
        image: uint8 [3, H, W].
        boxes: [N, 4] float32, x1, y1, x2, y2 in pixels.
        labels: [N] int64.
        seed: seed of the run.
        epoch: number of the epoch.
        index: index of the sample in its data set.

    Returns:
        The image, and the boxes and labels of the objects that remain in it.
    """
    torch.default_generator.manual_seed(int(rng(seed, RngPurpose.SAMPLE, epoch, index).integers(2**63)))
    height, width = image.shape[1:]
    framed = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
    new_image, new_boxes = (one.as_subclass(Tensor) for one in transform(tv_tensors.Image(image), framed))
    # The IoU crop gives removed objects boxes without area. v2.SanitizeBoundingBoxes would also drop objects below one
    # pixel.
    kept = (new_boxes[:, 2:] > new_boxes[:, :2]).all(dim=1)
    return new_image, new_boxes[kept], labels[kept]
