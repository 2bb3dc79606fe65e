"""Networks as they are after training, to put attention into."""

import torch
import torchvision
from torch import nn

import models

CLASSES = 5


class NarrowLinear(nn.Linear):
    """VGG's hidden layers of 4096 units with 64: no attention is there, and 120 million parameters take minutes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(*(64 if width == 4096 else width for width in (inputs, outputs)))


def narrow_classifiers() -> None:
    """All VGGs that this process builds from now on."""
    torchvision.models.vgg.nn.Linear = NarrowLinear


def plain(name: str) -> nn.Module:
    """The network without attention, torchvision's own where it has it, in evaluation mode.

    Its norms are as after training: neither unit weights nor zero biases.
    """
    torch.manual_seed(3)
    net: nn.Module
    if name in torchvision.models.list_models():
        net = torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
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
