"""What the zoo knows of a backbone: how to build it, where its head is, and where attention goes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Site:
    """One place where attention goes.

    Attributes:
        planes: channels of the feature map there.
        attach: puts a module there; called once.
    """

    planes: int
    attach: Callable[[nn.Module], None]


@dataclass(frozen=True)
class BackboneSpec:
    """A network without attention.

    Attributes:
        name: torchvision's name, where it has the network.
        family: the architecture's, for people.
        build: the network with random weights, for a number of classes.
        sites: the places for attention in a network that `build` made, in the order of the forward pass.
        head: dotted name of the final linear layer.
        body: dotted name of the module whose children, called in turn, are the convolutional part; empty for the
            network itself.
        image_size: side of the images that it was designed for, pixels.
    """

    name: str
    family: str
    build: Callable[[int], nn.Module]
    sites: Callable[[nn.Module], Iterable[Site]]
    head: str
    body: str = ""
    image_size: int = 224
