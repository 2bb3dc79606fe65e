"""CBAM in a segmentation network of torchvision. The network's outputs are unchanged at the start."""

from torch import nn
from torchvision.models import segmentation

import cbam


def build(weights: str | None = "DEFAULT") -> nn.Module:
    """Return the pretrained network, ready for training."""
    net: nn.Module = segmentation.lraspp_mobilenet_v3_large(weights=weights, weights_backbone=None)
    cbam.insert(net, after=[place.name for place in cbam.places(net)])
    return net


if __name__ == "__main__":
    print(f"CBAM follows {', '.join(cbam.check(build()))}.")
