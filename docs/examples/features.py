"""CBAM in a timm network that returns the feature maps of its stages. They are unchanged at the start."""

import timm
from torch import nn

import cbam


def build(name: str = "resnet18", pretrained: bool = True) -> nn.Module:
    """Return the network without its head, ready to be the backbone of another."""
    net: nn.Module = timm.create_model(name, pretrained=pretrained, features_only=True)
    cbam.insert(net, after=[place.name for place in cbam.places(net)])
    return net


if __name__ == "__main__":
    print(f"CBAM follows {', '.join(cbam.check(build()))}.")
