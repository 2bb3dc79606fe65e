"""CBAM in the backbone of torchvision's Faster R-CNN. The detections are unchanged at the start."""

from torch import nn
from torchvision.models import detection

import cbam


def build(weights: str | None = "DEFAULT", **options: object) -> nn.Module:
    """Return the pretrained detector, ready for training."""
    net: nn.Module = detection.fasterrcnn_resnet50_fpn(weights=weights, weights_backbone=None, **options)
    backbone = net.get_submodule("backbone")  # it takes an image; the detector takes a list of images
    cbam.insert(backbone, after=[place.name for place in cbam.places(backbone)])
    return net


if __name__ == "__main__":
    print(f"CBAM follows {', '.join(cbam.check(build()))}.")
