"""CBAM in the encoder of a U-Net of segmentation_models_pytorch. The network's outputs are unchanged at the start."""

import segmentation_models_pytorch as smp
from torch import nn

import cbam


def build(encoder_weights: str | None = "imagenet") -> nn.Module:
    """Return the U-Net with its pretrained encoder, ready for training."""
    net: nn.Module = smp.Unet("resnet34", encoder_weights=encoder_weights, classes=2)
    cbam.insert(net, after=[place.name for place in cbam.places(net)])
    return net


if __name__ == "__main__":
    print(f"CBAM follows {', '.join(cbam.check(build()))}.")
