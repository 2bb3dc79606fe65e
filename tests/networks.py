"""Networks as they are after training, to put attention into."""

import time

import torch
import torchvision
from torch import Tensor, nn

import models

CLASSES = 5

# A small network of each family.
FAMILIES = [
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("mnasnet0_5", "mobilenet_v1_a07", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf"),
    *("resnet18", "resnet18_w15", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "vgg11_bn"),
]


def side(name: str) -> int:
    """A side of images that the network can be trained on, pixels."""
    return 299 if name == "inception_v3" else 64


class NarrowLinear(nn.Linear):
    """VGG's hidden layers of 4096 units with 64: no attention is there, and 120 million parameters take minutes."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        narrow_in, narrow_out = (64 if width == 4096 else width for width in (in_features, out_features))
        super().__init__(narrow_in, narrow_out, bias)


def narrow_classifiers() -> None:
    """All VGGs that this process builds from now on."""
    torchvision.models.vgg.nn.Linear = NarrowLinear


def small(num_classes: int) -> nn.Module:
    """A network that trains, saves and loads in milliseconds, for tests of the engine rather than of a network."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, num_classes)),
    )


class SlowFlatten(nn.Flatten):
    """Takes half a second, for which the processor is idle, in a training step."""

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            time.sleep(0.5)
        flat: Tensor = super().forward(features)
        return flat


def slow(num_classes: int) -> nn.Module:
    """`small` with steps that leave a signal the time to arrive."""
    net = small(num_classes)
    net.register_module("7", SlowFlatten())
    return net


def without_norms(num_classes: int) -> nn.Module:
    """A network whose results do not depend on the division of a batch but for rounding."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes)),
    )


# The arguments of train.py that select `small`, without and with attention.
SMALL = ["model=custom", "model.factory=tests.networks:small"]
SMALL_CBAM = [*SMALL, "attention=cbam", "attention.after=1|4"]


def plain(name: str) -> nn.Module:
    """The network without attention, torchvision's own where it has it, in evaluation mode.

    Its norms are as after training: neither unit weights nor zero biases.
    """
    torch.manual_seed(3)
    net: nn.Module
    if name in torchvision.models.list_models():
        auxiliary = {"aux_logits": True, "transform_input": True, "init_weights": True}
        options = auxiliary if name in ("googlenet", "inception_v3") else {}
        net = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)
    else:
        net = models.build(name, num_classes=CLASSES)
    randomize_norms(net)
    return net.eval()


def randomize_norms(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
