"""Decode and cut one image: for training as a pure function of (seed, epoch, index), for evaluation always alike."""

import math
import re
from dataclasses import dataclass
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

from engine.data_config import DataConfig
from engine.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class UnreadableImage(UserError):
    """An image file that cannot be decoded. It is never replaced by another one."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input in evaluation.

    Attributes:
        resize: length of the shorter side after scaling, pixels.
        crop: side of the centre crop, pixels.
        interpolation: `bilinear` or `bicubic`, antialiased.
        mean, std: per channel, of values in [0, 1].
    """

    resize: int
    crop: int
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @classmethod
    def choose(cls, data: DataConfig, transforms: Any | None, resize_ratio: float = 256 / 224) -> "Preprocessing":
        """What the data set asks for, or where it leaves that open, what the start weights were published with.

        Args:
            data: its `resize` is None where it leaves it open.
            transforms: torchvision's `weights.transforms()`, None for weights that are not published. Images are
                normalized by its mean and std in each case.
            resize_ratio: of the shorter side to the crop, where neither says it.
        """
        if transforms is not None and data.resize is None and transforms.crop_size[0] == data.image_size:
            return cls.published(transforms)
        resize = round(data.image_size * resize_ratio) if data.resize is None else data.resize
        if transforms is None:
            return cls(resize, data.image_size)
        return cls(resize, data.image_size, mean=tuple(transforms.mean), std=tuple(transforms.std))

    @classmethod
    def published(cls, transforms: Any) -> "Preprocessing":
        """That of torchvision's `weights.transforms()`, under which its accuracies were measured."""
        return cls(
            resize=transforms.resize_size[0],
            crop=transforms.crop_size[0],
            interpolation=transforms.interpolation.value,
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        )

    @classmethod
    def of_record(cls, values: dict[str, Any], file: Path) -> "Preprocessing":
        """Return the preprocessing that a record contains.

        Args:
            file: the record, for the message.

        Raises:
            UserError: if the values are not those of a preprocessing.
        """
        try:
            mean, std = (tuple(map(float, values[key])) for key in ("mean", "std"))
            InterpolationMode(values["interpolation"])
            if not len(mean) == len(std) == 3:
                raise ValueError("mean and std are of three channels")
            return cls(**values | {"mean": mean, "std": std})
        except (TypeError, ValueError) as error:
            raise UserError(f"preprocessing in {file} does not fit ({error}). Restore the file.") from error

    def apply(self, image: Tensor) -> Tensor:
        """uint8 [3, H, W] -> uint8 [3, crop, crop]."""
        if min(image.shape[1:]) != self.resize:
            interpolation = InterpolationMode(self.interpolation)
            image = F.resize(image, [self.resize], interpolation=interpolation, antialias=True)
        return F.center_crop(image, [self.crop, self.crop])


def decode(path: str) -> Tensor:
    """An image file as uint8 [3, H, W], RGB, whatever its format and colour space.

    Raises:
        UnreadableImage: if it is absent, truncated or no image.
    """
    try:
        # Read here and not by torchvision, which takes no file names but UTF-8.
        content = bytearray(Path(path).read_bytes())
        if not content:
            raise ValueError("it is empty")
        image = decode_image(torch.frombuffer(content, dtype=torch.uint8), mode=ImageReadMode.RGB)
        if image.ndim != 3:
            raise ValueError("it is an animation")
    except (RuntimeError, OSError, ValueError) as error:
        name = path.replace("\n", "\\n")
        reason = re.sub(r"^.*\.cpp:\d+, ", "", str(error).splitlines()[0])  # the line of torchvision's that refused it
        raise UnreadableImage(f"The image {name} cannot be decoded ({reason}). Restore the file.") from error
    if image.dtype != torch.uint8:  # a PNG of 16 bits
        image = F.to_dtype(image, torch.uint8, scale=True)
    return image


def augment(image: Tensor, size: int, crop_scale: float, random: np.random.Generator) -> Tensor:
    """A random crop, scaled to size x size, flipped half of the time: uint8 [3, H, W] -> uint8 [3, size, size]."""
    top, left, height, width = crop_box(image.shape[1], image.shape[2], crop_scale, random)
    crop = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
    # What torchvision's resized_crop comes to, to the bit, without the time that its checks take.
    crop = interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
    return crop.flip(-1) if random.random() < 0.5 else crop


def crop_box(height: int, width: int, smallest_area: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop, drawn as torchvision's RandomResizedCrop draws it.

    Its area is uniform between `smallest_area` and 1 of the image's, its aspect ratio log-uniform between 3/4
    and 4/3; where ten draws do not fit into the image, the largest centred crop of an allowed aspect ratio.
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
    """uint8 [N, 3, H, W] -> float32 of zero mean and unit spread, on the images' device."""
    mean, std = _constants(preprocessing, images.device)
    return images.to(torch.float32, memory_format=memory_format).div_(255).sub_(mean).div_(std)


@lru_cache
def _constants(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and spread, [1, 3, 1, 1] each; kept there, because copying them makes the host wait for a GPU."""
    with torch.inference_mode(False):  # whoever asks first
        mean, std = (torch.tensor(values, device=device) for values in (preprocessing.mean, preprocessing.std))
    return mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
