"""Places for attention in the networks of torchvision and timm, found by the classes of their blocks.

A block is found wherever it is: in the network itself, in the encoder of a segmentation network, or in the backbone of
a detector. In blocks with a shortcut addition, attention follows the branch, before the addition.
"""

import itertools
import re
from collections.abc import Iterator

from torch import nn

# The children that attention follows, by the class of their block; the first that the block has. The name "" is the
# block itself.
_BLOCKS = {
    "BasicBlock": ("bn2",),  # ResNet
    "Bottleneck": ("bn3", "conv3"),  # ResNet; RegNet in timm
    "ResBottleneckBlock": ("f",),  # RegNet
    "InvertedResidual": ("conv", "block", "branch2", "bn3"),  # MobileNet V2, V3, ShuffleNet V2; in timm
    "DepthwiseSeparableConv": ("bn2",),  # MobileNet, EfficientNet in timm
    "EdgeResidual": ("bn2",),  # EfficientNet V2 in timm
    "MBConv": ("block",),  # EfficientNet
    "FusedMBConv": ("block",),
    "_InvertedResidual": ("layers",),  # MNASNet
    "CNBlock": ("block",),  # ConvNeXt
    "ConvNeXtBlock": ("drop_path",),
    "_DenseLayer": ("conv2",),  # DenseNet, which has no established place
    "DenseLayer": ("conv2",),
    "Inception": ("",),  # GoogLeNet
    **{f"Inception{letter}": ("",) for letter in "ABCDE"},  # Inception v3
    "Fire": ("",),  # SqueezeNet
}


def suggest(net: nn.Module) -> list[str]:
    """Return the names of the modules that attention follows by default, in module order; empty if none is known."""
    found = set(_places(net))
    return [name for name, _ in net.named_modules() if name in found]


def _places(net: nn.Module) -> Iterator[str]:
    for name, module in net.named_modules():
        classes = [one.__name__ for one in type(module).__mro__]
        children = next((_BLOCKS[one] for one in classes if one in _BLOCKS), ())
        if "ConvBnAct" in classes and re.search(r"(^|\.)blocks\.0\.\d+$", name):  # EfficientNet V2 in timm
            children = ("bn1",)
        if "VGG" in classes or "AlexNet" in classes:
            yield from _before_max_pooling(name, module)
        child = next((child for child in children if not child or hasattr(module, child)), None)
        if child is not None:
            yield f"{name}.{child}".strip(".")


def _before_max_pooling(name: str, net: nn.Module) -> Iterator[str]:
    """Yield the activations before each max pooling of `features`, which end the stages of VGG and AlexNet."""
    layers = list(net.get_submodule("features").named_children())
    for (before, _), (_, layer) in itertools.pairwise(layers):
        if isinstance(layer, nn.MaxPool2d):
            yield f"{name}.features.{before}".strip(".")
