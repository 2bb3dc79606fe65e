"""Decoding and cropping of images: a random crop, determined by (seed, epoch, index), or the center crop."""

import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import IntFlag
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from engine.config.data import DataConfig
from engine.config.preprocessing import PreprocessingConfig
from engine.data.image_checks import PNG, StderrCapture, orientation, png_damage
from engine.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


_LARGEST_OF_12_BITS = 4095


class UnreadableImage(UserError):
    """An image file that cannot be decoded. It is never replaced by another image."""


class Finding(IntFlag):
    """A property of an image file that is reported to the user."""

    ROTATED = 1  # it has an EXIF orientation
    DAMAGED = 2  # libjpeg warns of damaged data
    DARK = 4  # its 16-bit values do not exceed 12 bits
    NOTED = 8  # libpng warns of its metadata, or of data beyond its pixels


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of a network's input images in evaluation.

    Attributes:
        resize: length of the shorter side after scaling, pixels.
        crop: side of the center crop, pixels.
        interpolation: `bilinear` or `bicubic`, antialiased.
        mean, std: per channel, for values in [0, 1].
    """

    resize: int
    crop: int
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @classmethod
    def choose(cls, data: DataConfig, transforms: Any | None, resize_ratio: float = 256 / 224) -> "Preprocessing":
        """Return the start weights' published preprocessing if its crop is the data set's, else that of the data set.

        Args:
            data: if its `resize` is set, it is used with bilinear interpolation.
            transforms: torchvision's `weights.transforms()`; None for weights that are not published. Its mean and std
                always normalize the images.
            resize_ratio: shorter side divided by crop, if neither defines it.
        """
        if transforms is not None and data.resize is None and transforms.crop_size[0] == data.image_size:
            return cls.published(transforms)
        resize = round(data.image_size * resize_ratio) if data.resize is None else data.resize
        if transforms is None:
            return cls(resize, data.image_size)
        return cls(resize, data.image_size, mean=tuple(transforms.mean), std=tuple(transforms.std))

    @classmethod
    def published(cls, transforms: Any) -> "Preprocessing":
        """Return the preprocessing of torchvision's `weights.transforms()`, used for its published accuracies."""
        return cls(
            resize=transforms.resize_size[0],
            crop=transforms.crop_size[0],
            interpolation=transforms.interpolation.value,
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        )

    def adjusted(self, keys: PreprocessingConfig) -> "Preprocessing":
        """Return the preprocessing with the configured values in place of its own."""
        return replace(
            self,
            resize=self.resize if keys.crop_ratio is None else int(self.crop / keys.crop_ratio),  # as timm rounds
            interpolation=keys.interpolation or self.interpolation,
            mean=tuple(keys.mean or self.mean),
            std=tuple(keys.std or self.std),
        )

    @classmethod
    def of_record(cls, values: dict[str, Any], file: Path) -> "Preprocessing":
        """Return the preprocessing in a record.

        Args:
            file: path of the record, for the message.

        Raises:
            UserError: if the values are not a valid preprocessing.
        """
        try:
            mean, std = (tuple(map(float, values[key])) for key in ("mean", "std"))
            InterpolationMode(values["interpolation"])
            if not len(mean) == len(std) == 3:
                raise ValueError("mean and std must have three channels")
            return cls(**values | {"mean": mean, "std": std})
        except (TypeError, ValueError) as error:
            raise UserError(f"preprocessing in {file} is invalid ({error}). Restore the file.") from error

    def apply(self, image: Tensor) -> Tensor:
        """Resize and crop an image: uint8 [3, H, W] -> uint8 [3, crop, crop]."""
        if min(image.shape[1:]) != self.resize:
            interpolation = InterpolationMode(self.interpolation)
            image = F.resize(image, [self.resize], interpolation=interpolation, antialias=True)
        return F.center_crop(image, [self.crop, self.crop])


def decode(path: str, upright: bool = False) -> Tensor:
    """Decode a JPEG, PNG, WebP or still GIF file of any color space to uint8 [3, H, W], RGB.

    Args:
        path: path of the file.
        upright: whether to apply the EXIF orientation.

    Raises:
        UnreadableImage: if the file is missing, damaged or not an image.
    """
    return inspect(path, upright, StderrCapture())[0]


def inspect(
    path: str, upright: bool, capture: StderrCapture | None, is_checked: bool = False
) -> tuple[Tensor, list[Finding]]:
    """Decode a file as `decode` does, and return its findings too.

    Args:
        capture: the context for the decoder's messages; None for a file without findings, whose bytes are checked.
        is_checked: whether the file's bytes have passed the checks before.
    """
    content = np.empty(0, dtype=np.uint8)
    try:
        # torchvision's reader accepts only UTF-8 file names.
        content = np.fromfile(path, dtype=np.uint8)
        if not len(content):
            raise ValueError("it is empty")
        findings = [] if capture is None or is_checked else _findings(content.tobytes())
        with capture or nullcontext():
            image = decode_image(torch.from_numpy(content), ImageReadMode.RGB, apply_exif_orientation=upright)
        if image.ndim != 3:
            raise ValueError("it is an animation")
    except (RuntimeError, OSError, ValueError) as error:
        name = path.replace("\n", "\\n")
        raise UnreadableImage(
            f"The image {name} cannot be decoded ({_reason(error, content, capture)}). Replace the file or remove it; "
            "`python scripts/check_data.py` with the same data keys lists all such files."
        ) from error
    if capture is not None:
        findings += [Finding.DAMAGED] * bool(capture.libjpeg) + [Finding.NOTED] * bool(capture.libpng)
    if image.dtype != torch.uint8:  # a 16-bit PNG
        if image.numpy().max() <= _LARGEST_OF_12_BITS:
            findings.append(Finding.DARK)
        image = F.to_dtype(image, torch.uint8, scale=True)
    return image, findings


def _reason(error: Exception, content: np.ndarray, capture: StderrCapture | None) -> str:
    """Return why a file cannot be decoded, in the words of the decoder unless they are for programmers."""
    text = re.sub(r"^.*\.cpp:\d+, ", "", str(error).splitlines()[0])  # torchvision's source location
    if text.startswith("Unsupported image file"):
        return f"it is not a JPEG, PNG, WebP or GIF file; it begins with {content[:16].tobytes()!r}"
    return capture.libpng[-1] if capture is not None and capture.libpng else text


def _findings(content: bytes) -> list[Finding]:
    if content.startswith(PNG):
        damage = png_damage(content)
        if damage is not None:
            raise ValueError(damage)
    return [Finding.ROTATED] if orientation(content) > 1 else []


def augment(
    images: Sequence[Tensor], size: int, crop_scale: float, randoms: Sequence[np.random.Generator]
) -> list[Tensor]:
    """Return a random crop of each image, scaled and flipped with probability 0.5.

    Args:
        images: uint8 [3, H, W] each.
        size: side of the results, uint8 [3, size, size].
        crop_scale: smallest area of a crop, relative to the image's.
        randoms: generator of each image.
    """
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    boxes = [crop_box(*sides, crop_scale, random) for sides, random in zip(sizes, randoms, strict=True)]
    crops = [_resized_crop(image, box, size) for image, box in zip(images, boxes, strict=True)]
    return [crop.flip(-1) if random.random() < 0.5 else crop for crop, random in zip(crops, randoms, strict=True)]


def _resized_crop(image: Tensor, box: tuple[int, int, int, int], size: int) -> Tensor:
    """Return the same bits as torchvision's resized_crop, without the cost of its checks."""
    top, left, height, width = box
    crop = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
    return interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]


def crop_box(height: int, width: int, smallest_area: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random crop, as torchvision's RandomResizedCrop draws it.

    The area is uniform between `smallest_area` and 1 times the image's. The aspect ratio is log-uniform between 3/4
    and 4/3. If ten draws do not fit into the image, the crop is the largest centered one of an allowed aspect ratio.
    """
    for _ in range(10):
        area = height * width * random.uniform(smallest_area, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = random.integers(height - h + 1), random.integers(width - w + 1)
            return int(top), int(left), h, w
    w = min(width, max(1, round(height * 4 / 3)))
    h = min(height, max(1, round(width * 4 / 3)))
    return (height - h) // 2, (width - w) // 2, h, w


def normalize(
    images: Tensor, preprocessing: Preprocessing, memory_format: torch.memory_format = torch.preserve_format
) -> Tensor:
    """Normalize uint8 [N, 3, H, W] to float32 of zero mean and unit variance, on the same device."""
    mean, std = _constants(preprocessing, images.device)
    return images.to(torch.float32, memory_format=memory_format).div_(255).sub_(mean).div_(std)


@lru_cache
def _constants(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and std, [1, 3, 1, 1] each, cached on the device because copies make the host wait for a GPU."""
    with torch.inference_mode(False):  # even if the first caller is in inference mode
        mean, std = (torch.tensor(values, device=device) for values in (preprocessing.mean, preprocessing.std))
    return mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
