"""The paper's errors on ImageNet-1K, to stand beside ours: results/paper.csv."""

import csv
from pathlib import Path

TABLES = Path(__file__).resolve().parents[2] / "results" / "paper.csv"

# Options that leave a network the one of the paper's tables: its counts of parameters are those of biased MLPs and a
# norm after the spatial convolution, its text is that of the plain module, and of the start it says nothing.
_SAME_NETWORK = ("mlp_bias", "spatial_norm", "start=random", "start=identity")


def errors(model: str, attention: str) -> tuple[float, float] | None:
    """Top-1 and top-5 error in %, None where the paper has no such row.

    Args:
        model: a backbone.
        attention: the label of a run's attention, as `cbam` or `cbam-mlp_bias`.
    """
    kind = "-".join(part for part in attention.split("-") if part.removesuffix("=True") not in _SAME_NETWORK)
    with TABLES.open() as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            if (row["model"], row["attention"]) == (model, kind):
                return float(row["top1_error"]), float(row["top5_error"])
    return None
