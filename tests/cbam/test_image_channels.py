"""Networks whose images have other channels than the first convolution that they create."""

import pytest
import torch
from torch import Tensor, nn

import cbam
from cbam import InsertionError


class HeadFirst(nn.Module):
    """A network that creates its head, or a U-Net its decoder, before the layer that takes the image."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.stem = nn.Conv2d(32, 10, 1), nn.Conv2d(3, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x)).mean((2, 3))


class GrayToRGB(nn.Module):
    """A network for images of one channel, which it repeats for a pretrained network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x.repeat(1, 3, 1, 1)).mean((2, 3))


class Unshuffled(nn.Module):
    """A network whose first convolution takes pixels from four positions, as in YOLOX."""

    def __init__(self) -> None:
        super().__init__()
        self.unshuffle, self.stem = nn.PixelUnshuffle(2), nn.Conv2d(12, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(self.unshuffle(x)).mean((2, 3))


@pytest.mark.parametrize(("kind", "channels"), [(HeadFirst, 3), (GrayToRGB, 1), (Unshuffled, 3)])
def test_the_image_may_have_other_channels_than_the_first_convolution(kind: type[nn.Module], channels: int) -> None:
    for given in (None, channels):
        net = kind()
        (insertion,) = cbam.insert(net, "stem", image_size=32, image_channels=given)
        assert insertion.name == "stem"
        net(torch.rand(1, channels, 32, 32))
    with pytest.raises(InsertionError, match=r"of 32x32 pixels and 5 channels .*; set image_size or image_channels"):
        cbam.insert(kind(), "stem", image_size=32, image_channels=5)
