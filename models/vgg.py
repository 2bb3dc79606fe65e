"""VGG: attention after the last activation of each of the five stages, before the stage's pooling."""

from collections.abc import Iterator
from functools import partial

import torchvision
from torch import nn

from models.architecture import Backbone, Site


def _build(name: str, num_classes: int) -> nn.Module:
    net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return net


def _sites(net: nn.Module) -> Iterator[Site]:
    features = net.features
    assert isinstance(features, nn.Sequential)
    for i, layer in enumerate(features):
        if isinstance(layer, nn.MaxPool2d):
            affine = features[i - 2]
            assert isinstance(affine, nn.BatchNorm2d | nn.Conv2d)
            planes = affine.num_features if isinstance(affine, nn.BatchNorm2d) else affine.out_channels
            yield Site(planes, affine, partial(_attach, features, i - 1))


def _attach(features: nn.Sequential, position: int, attention: nn.Module) -> None:
    """Put attention behind the ReLU at `position`, inside its place: the layers after it keep their numbers."""
    features[position] = nn.Sequential(features[position], attention)


_NAMES = ["vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"]

BACKBONES = [
    Backbone(name, "VGG", partial(_build, name), _sites, head="classifier.6", body="features") for name in _NAMES
]
