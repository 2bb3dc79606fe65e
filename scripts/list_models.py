"""List every network, with its parameters, cost, published weights and the paper's errors.

    python scripts/list_models.py

Parameters are in millions and multiply-adds in billions, for a thousand classes and the image size of the network's
first published weights (224 without any). The paper's GFLOPs of the bottleneck networks are lower (ResNet-50: 3.858),
because torchvision strides in the 3x3 convolution of a block, which costs more than striding in the preceding 1x1
convolution.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

import torch

import models
from engine import cli
from engine.analysis import complexity
from engine.comparison import paper_results
from engine.logging import aligned, print_line
from models.registry import BACKBONES, BackboneSpec

_HEADER = ["name", "family", "parameters", "GFLOPs", "pixels", "published weights", "paper", "paper, SE", "paper, CBAM"]


def row(backbone: BackboneSpec) -> list[str]:
    # The meta device allocates no memory, but torchvision computes RegNet's widths with tensors.
    with torch.device("cpu" if backbone.family == "RegNet" else "meta"):
        net = models.build(backbone.name)
    with torch.device("meta"):
        gflops = complexity.gflops(net.to("meta"), backbone.image_size)
    found = [paper_results.errors(backbone.name, kind) for kind in ("none", "se", "cbam")]
    return [
        backbone.name,
        backbone.family,
        f"{complexity.parameters(net) / 1e6:.2f}M",
        f"{gflops:.3f}",
        str(backbone.image_size),
        ", ".join(models.published(backbone.name)) or "-",
        *("-" if errors is None else f"{errors[0]:.2f} / {errors[1]:.2f}" for errors in found),
    ]


def print_table(backbones: Iterable[BackboneSpec]) -> None:
    print_line("\n".join(aligned([_HEADER, *map(row, backbones)])))
    kinds = ", ".join(f"NAME_{kind}" for kind in models.ATTENTION_KINDS)
    print_line(f"\nEach is also available with attention: {kinds}.")
    print_line("Paper: top-1 / top-5 errors in %, Tables 4 and 5.")


def main() -> None:
    print_table(BACKBONES.values())


if __name__ == "__main__":
    cli.run_script(main)
