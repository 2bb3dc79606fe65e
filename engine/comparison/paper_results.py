"""The paper's errors on ImageNet-1K, from results/paper.csv."""

import csv
from pathlib import Path

from engine.config import DataConfig
from engine.run_identity import current_label

TABLES = Path(__file__).resolve().parents[2] / "results" / "paper.csv"

# Options with which a network is still the paper's: the paper's text describes the plain module, its parameter counts
# include biases and a norm after the spatial convolution, and it does not specify the initialization.
_SAME_NETWORK = ("mlp_bias", "spatial_norm", "init.random", "init.identity")


def errors(model: str, attention: str) -> tuple[float, float] | None:
    """Return the paper's top-1 and top-5 error in %, or None if the paper has no such row.

    Args:
        model: a backbone.
        attention: the label of a run's attention, such as `cbam` or `cbam-mlp_bias`.
    """
    parts = current_label(attention).split("-")
    kind = "-".join(part for part in parts if part.removesuffix(".True") not in _SAME_NETWORK)
    with TABLES.open(encoding="utf-8") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            if (row["model"], row["attention"]) == (model, kind):
                return float(row["top1_error"]), float(row["top5_error"])
    return None


def columns(model: str, attention: str, data: DataConfig) -> dict[str, float | None]:
    """Return the paper's errors as columns of a row; None for data other than the paper's ImageNet-1K."""
    known = errors(model, attention) if data.is_imagenet_1k else None
    top1, top5 = known or (None, None)
    return {"paper_top1_error": top1, "paper_top5_error": top5}
