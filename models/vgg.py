"""VGG: attention after the last activation of each of the five stages, before the stage's pooling."""

from collections.abc import Iterator
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from models.registry import BackboneSpec, Site


def _build(name: str, num_classes: int) -> nn.Module:
    net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    net.avgpool = AveragePool(7)
    return net


class AveragePool(nn.Module):
    """Adaptive average pooling to side x side: [N, C, H, W] -> [N, C, side, side].

    On CUDA as two matrix products, because the usual backward is not deterministic there; equal but for rounding, and
    to the bit for H = W = side, as at 224 pixels.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cuda:
            return F.adaptive_avg_pool2d(x, self.side)
        height, width = x.shape[2:]
        if height == width == self.side:
            return x
        return _bins(height, self.side).to(x) @ x @ _bins(width, self.side).to(x).T


def _bins(length: int, side: int) -> Tensor:
    """[side, length]: row i averages the positions from floor(i length / side) to ceil((i + 1) length / side)."""
    weights = torch.zeros(side, length)
    for i in range(side):
        first, end = i * length // side, -(-(i + 1) * length // side)
        weights[i, first:end] = 1 / (end - first)
    return weights


def _sites(net: nn.Module) -> Iterator[Site]:
    features = net.features
    assert isinstance(features, nn.Sequential)
    for i, layer in enumerate(features):
        if isinstance(layer, nn.MaxPool2d):
            before = features[i - 2]
            assert isinstance(before, nn.BatchNorm2d | nn.Conv2d)
            planes = before.num_features if isinstance(before, nn.BatchNorm2d) else before.out_channels
            yield Site(planes, partial(_attach, features, i - 1))


def _attach(features: nn.Sequential, position: int, attention: nn.Module) -> None:
    """Put attention behind the ReLU at `position`, inside its place: the layers after it keep their numbers."""
    features[position] = nn.Sequential(features[position], attention)


_NAMES = ["vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"]

BACKBONES = [
    BackboneSpec(name, "VGG", partial(_build, name), _sites, head="classifier.6", body="features") for name in _NAMES
]
