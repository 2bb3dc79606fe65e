"""List every network, with its parameters, cost, published weights and the paper's errors.

    python scripts/list_models.py
    python scripts/list_models.py update=true    # compute the list again, after a change of the networks

Parameters are in millions and multiply-adds in billions, for a thousand classes and the image size of the network's
first published weights (224 without any). The paper's GFLOPs of the bottleneck networks are lower (ResNet-50: 3.858),
because torchvision strides in the 3x3 convolution of a block, which costs more than striding in the preceding 1x1
convolution. The list is stored in models/networks.csv, because computing it takes half a minute.
"""

import csv
import io
import sys
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

from engine import cli
from engine.config.attention import kinds
from engine.errors import UserError
from engine.logging import aligned, print_line
from engine.runs.atomic_io import atomic_write

STORED = REPOSITORY / "models" / "networks.csv"
_HEADER = ["name", "family", "parameters", "GFLOPs", "pixels", "published weights", "paper", "paper, SE", "paper, CBAM"]


def compute(names: Iterable[str]) -> list[list[str]]:
    """Return the rows of networks, computed from the networks themselves."""
    import torch

    import models
    from engine.analysis import complexity
    from engine.comparison import paper_results
    from models.registry import BACKBONES

    rows = []
    for backbone in (BACKBONES[name] for name in names):
        # The meta device allocates no memory, but torchvision computes RegNet's widths with tensors.
        with torch.device("cpu" if backbone.family == "RegNet" else "meta"):
            net = models.build(backbone.name)
        with torch.device("meta"):
            gflops = complexity.gflops(net.to("meta"), backbone.image_size)
        found = [paper_results.errors(backbone.name, kind) for kind in ("none", "se", "cbam")]
        rows.append(
            [
                *(backbone.name, backbone.family, f"{complexity.parameters(net) / 1e6:.2f}M", f"{gflops:.3f}"),
                *(str(backbone.image_size), ", ".join(models.published(backbone.name)) or "-"),
                *("-" if errors is None else f"{errors[0]:.2f} / {errors[1]:.2f}" for errors in found),
            ]
        )
    return rows


def stored() -> list[list[str]]:
    with STORED.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def main(update: str = "false") -> None:
    if update not in ("true", "false"):
        raise UserError(f"update={update} is neither true nor false.")
    if update == "true":
        import models

        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([_HEADER, *compute(models.names())])
        atomic_write(STORED, lambda file: file.write(text.getvalue().encode()))
    print_line("\n".join(aligned([_HEADER, *stored()])))
    attention = ", ".join(f"NAME_{kind}" for kind in kinds() if kind != "none")
    print_line(f"\nEach is also available with attention: {attention}.")
    print_line("Paper: top-1 / top-5 errors in %, Tables 4 and 5.")


if __name__ == "__main__":
    cli.run_script(main)
