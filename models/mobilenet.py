"""MobileNet V2 and V3: attention on every inverted residual's output, before its shortcut addition."""

from collections.abc import Iterator
from functools import partial

import torchvision
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual as InvertedResidualV2
from torchvision.models.mobilenetv3 import InvertedResidual as InvertedResidualV3

from models.registry import BackboneSpec, Site


def _build(name: str, num_classes: int) -> nn.Module:
    net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return net


def _sites(net: nn.Module) -> Iterator[Site]:
    for module in net.modules():
        if isinstance(module, InvertedResidualV2):
            layers = module.conv
        elif isinstance(module, InvertedResidualV3):
            layers = module.block
        else:
            continue
        norm = [layer for layer in layers.modules() if isinstance(layer, nn.BatchNorm2d)][-1]
        yield Site(norm.num_features, layers.append)


BACKBONES = [
    BackboneSpec(name, family, partial(_build, name), _sites, head, body="features")
    for name, family, head in (
        ("mobilenet_v2", "MobileNet V2", "classifier.1"),
        ("mobilenet_v3_small", "MobileNet V3", "classifier.3"),
        ("mobilenet_v3_large", "MobileNet V3", "classifier.3"),
    )
]
