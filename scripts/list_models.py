"""List every network, with its parameters, cost, published weights and the paper's errors.

    python scripts/list_models.py

Parameters are in millions and multiply-adds in 1e9, for a thousand classes and the image size that the network was
designed for. The paper's GFLOPs of the bottleneck networks are smaller (ResNet-50: 3.858): torchvision has the
stride of a block in its 3x3 convolution, which costs more than in the 1x1 before.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

import torch

import models
from engine.analysis import complexity
from engine.comparison import paper_results
from engine.logging import print_line
from models.pretrained import image_size
from models.registry import BACKBONES, BackboneSpec

_HEADER = ["name", "family", "parameters", "GFLOPs", "pixels", "published weights", "paper", "paper, SE", "paper, CBAM"]


def row(backbone: BackboneSpec) -> list[str]:
    # Shapes without memory, where torchvision does not compute the network's own widths with tensors.
    with torch.device("cpu" if backbone.family == "RegNet" else "meta"):
        net = models.build(backbone.name)
    with torch.device("meta"):
        gflops = complexity.gflops(net.to("meta"), image_size(backbone.name))
    found = [paper_results.errors(backbone.name, kind) for kind in ("none", "se", "cbam")]
    return [
        backbone.name,
        backbone.family,
        f"{complexity.parameters(net) / 1e6:.2f}M",
        f"{gflops:.3f}",
        str(image_size(backbone.name)),
        ", ".join(models.published(backbone.name)) or "-",
        *("-" if errors is None else f"{errors[0]:.2f} / {errors[1]:.2f}" for errors in found),
    ]


def main(backbones: Iterable[BackboneSpec] = BACKBONES.values()) -> None:
    rows = [_HEADER, *map(row, backbones)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    print_line("\nEach also as NAME_se and NAME_cbam. Paper: its top-1 / top-5 errors in %, Tables 4 and 5.")


if __name__ == "__main__":
    main()
