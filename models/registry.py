"""Registry of the networks: constructors, places of attention and heads.

Each family is one entry. In networks with shortcut additions, attention follows the branch of a block, before the
addition. In others, the place depends on the family: for example, the end of a stage (VGG) or a module that the
network's paper defines (SqueezeNet).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.squeezenet import Fire

from models import heads
from models.deterministic import with_average_pool
from models.errors import ModelError
from models.mobilenet_v1 import MobileNetV1
from models.pretrained import image_size
from models.wide_resnet18 import WideResNet18

# The modules that attention follows: a regular expression for their full names, or a function of the network.
Places = str | Callable[[nn.Module], list[str]]


@dataclass(frozen=True)
class BackboneSpec:
    """A network without attention.

    Attributes:
        name: torchvision's name if it has the network.
        family: the architecture's name.
        build: function that returns the network with random weights, for a number of classes.
        after: the modules that attention follows.
        heads: dotted names of the layers with an output for each class, the main one first; empty to find the layer
            that produces the output.
        body: dotted name of the module whose children, called in sequence, are the convolutional part; empty for the
            network itself.
        image_size: image size of its published weights, pixels.
        smallest: smallest supported image size in training, pixels; smaller images are rejected.
        transforms: preprocessing in the form of torchvision's `weights.transforms()`; None for that of the published
            start weights.
        pretrained: function that returns the state dict of the weights `default` (timm); None for other networks.
    """

    name: str
    family: str
    build: Callable[[int], nn.Module]
    after: Places
    heads: tuple[str, ...]
    body: str = ""
    image_size: int = 224
    smallest: int = 1
    transforms: Any | None = None
    pretrained: Callable[[], dict[str, Tensor]] | None = None

    def places(self, net: nn.Module) -> str | list[str]:
        """Return the modules that attention follows in a network from `build`, as for `cbam.insert`."""
        return self.after if isinstance(self.after, str) else self.after(net)

    def head_layers(self, net: nn.Module) -> tuple[str, ...]:
        """Return the names of the layers with an output for each class in a network from `build`; empty if unknown."""
        return self.heads or heads.find(net, self.image_size)


def no_default_places(net: nn.Module) -> list[str]:
    """Reject a network whose blocks are unknown."""
    raise ModelError(
        f"There is no default place for attention in {type(net).__name__}; set attention.after=REGEX, which must "
        "match the full names of the modules that attention follows."
    )


def before_max_pooling(net: nn.Module) -> list[str]:
    """Return the activations before each max pooling of `features`, which end the stages of VGG and AlexNet."""
    features = list(net.get_submodule("features").children())
    return [f"features.{i - 1}" for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]


def fire_modules(net: nn.Module) -> list[str]:
    """Return the Fire modules of SqueezeNet."""
    return [name for name, module in net.named_modules() if isinstance(module, Fire)]


_BASIC, _BOTTLENECK = r"layer\d\.\d+\.bn2", r"layer\d\.\d+\.bn3"
_BLOCK = r"features\.\d+\.\d+\.block"

# Family: places, heads, body, names.
_FAMILIES: dict[str, tuple[Places, str, str, str]] = {
    "ResNet (basic)": (_BASIC, "fc", "", "resnet18 resnet34 resnet18_w15 resnet18_w20"),
    "ResNet": (_BOTTLENECK, "fc", "", "resnet50 resnet101 resnet152"),
    "ResNeXt": (_BOTTLENECK, "fc", "", "resnext50_32x4d resnext101_32x4d resnext101_32x8d resnext101_64x4d"),
    "Wide ResNet": (_BOTTLENECK, "fc", "", "wide_resnet50_2 wide_resnet101_2"),
    "VGG": (
        *(before_max_pooling, "classifier.6", "features"),
        "vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn",
    ),
    "AlexNet": (before_max_pooling, "classifier.6", "features", "alexnet"),
    "MobileNet V1": (r"features\.[1-9]\d*\.\d\.1", "classifier", "features", "mobilenet_v1 mobilenet_v1_a07"),
    "MobileNet V2": (r"features\.\d+\.conv", "classifier.1", "features", "mobilenet_v2"),
    "MobileNet V3": (r"features\.\d+\.block", "classifier.3", "features", "mobilenet_v3_small mobilenet_v3_large"),
    "MNASNet": (r"layers\.\d+\.\d+\.layers", "classifier.1", "layers", "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3"),
    "EfficientNet": (_BLOCK, "classifier.1", "features", " ".join(f"efficientnet_b{i}" for i in range(8))),
    "EfficientNet V2": (_BLOCK, "classifier.1", "features", "efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l"),
    "ConvNeXt": (_BLOCK, "classifier.2", "features", "convnext_tiny convnext_small convnext_base convnext_large"),
    "RegNet": (
        *(r"trunk_output\.block\d\.block\d-\d+\.f", "fc", ""),
        "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf "
        "regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf "
        "regnet_y_128gf",
    ),
    "ShuffleNet V2": (
        *(r"stage\d\.\d+\.branch2", "fc", ""),
        "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
    ),
    # DenseNet has no established place of attention.
    "DenseNet": (
        *(r"features\.denseblock\d\.denselayer\d+\.conv2", "classifier", "features"),
        "densenet121 densenet161 densenet169 densenet201",
    ),
    "SqueezeNet": (fire_modules, "classifier.1", "features", "squeezenet1_0 squeezenet1_1"),
    "GoogLeNet": (r"inception\d\w", "fc aux1.fc2 aux2.fc2", "", "googlenet"),
    "Inception v3": (r"Mixed_\d\w", "fc AuxLogits.fc", "", "inception_v3"),
}

# The paper's networks that are not in torchvision.
_OWN: dict[str, Callable[[int], nn.Module]] = {
    "resnet18_w15": partial(WideResNet18, 1.5),
    "resnet18_w20": partial(WideResNet18, 2.0),
    "resnext101_32x4d": lambda classes: ResNet(
        Bottleneck, [3, 4, 23, 3], num_classes=classes, groups=32, width_per_group=4
    ),
    "mobilenet_v1": partial(MobileNetV1, 1.0),
    "mobilenet_v1_a07": partial(MobileNetV1, 0.7),
}

# Output side of the pooling before the classifier.
_POOLING = {"VGG": 7, "AlexNet": 6}

# The auxiliary classifier of Inception v3 convolves 5x5 maps without padding.
_SMALLEST = {"Inception v3": 299}


def _builder(name: str, family: str) -> Callable[[int], nn.Module]:
    if name in _OWN:
        return _OWN[name]
    # Published weights include the auxiliary classifiers, and were trained with the network's input transform.
    with_auxiliary = {"aux_logits": True, "transform_input": True, "init_weights": True}
    options = with_auxiliary if family in ("GoogLeNet", "Inception v3") else {}

    def build(classes: int) -> nn.Module:
        net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
        return with_average_pool(net, _POOLING[family]) if family in _POOLING else net

    return build


def _specs() -> Iterator[BackboneSpec]:
    for family, (after, head, body, names) in _FAMILIES.items():
        for name in names.split():
            title = family.removesuffix(" (basic)")
            sizes = (image_size(name), _SMALLEST.get(family, 1))
            yield BackboneSpec(name, title, _builder(name, family), after, tuple(head.split()), body, *sizes)


BACKBONES: dict[str, BackboneSpec] = {spec.name: spec for spec in _specs()}
