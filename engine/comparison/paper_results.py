"""The paper's results: errors on ImageNet-1K from results/paper.csv, AP from results/paper_detection.csv."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.config.data import DataConfig
from engine.runs.identity import current_label

RESULTS = Path(__file__).resolve().parents[2] / "results"

# Options with which a network is still the paper's: the paper's text describes the plain module, its parameter counts
# include biases and a norm after the spatial convolution, and it does not specify the initialization.
_SAME_NETWORK = ("mlp_bias", "spatial_norm", "init.random", "init.identity")

_PRECISIONS = ("ap", "ap50", "ap75", "ap_11_points")


def errors(model: str, attention: str) -> tuple[float, float] | None:
    """Return the paper's top-1 and top-5 error in %, or None if the paper has no such row.

    Args:
        model: a backbone.
        attention: the label of a run's attention, such as `cbam` or `cbam-mlp_bias`.
    """
    kind = _same_network(attention)
    for row in _rows("paper.csv"):
        if (row["model"], row["attention"]) == (model, kind):
            return float(row["top1_error"]), float(row["top5_error"])
    return None


def columns(row: Mapping[str, Any], data: DataConfig) -> dict[str, float | None]:
    """Return the paper's results as columns of a row; None for data other than the paper's.

    Args:
        row: has `model`, `attention` and, for a detector, `detector`.
    """
    if "detector" in row:
        return _detection(row, data)
    known = errors(row["model"], row["attention"]) if data.is_imagenet_1k else None
    top1, top5 = known or (None, None)
    return {"paper_top1_error": top1, "paper_top5_error": top5}


def _detection(row: Mapping[str, Any], data: DataConfig) -> dict[str, float | None]:
    here = (data.name, row["detector"], row["model"], _same_network(row["attention"]))
    same = [p for p in _rows("paper_detection.csv") if (p["data"], p["detector"], p["model"], p["attention"]) == here]
    values = same[0] if same else {}
    return {f"paper_{key}": float(values[key]) if values.get(key) else None for key in _PRECISIONS}


def _same_network(attention: str) -> str:
    """Return an attention label without the options that the paper's tables do not distinguish."""
    parts = current_label(attention).split("-")
    return "-".join(part for part in parts if part.removesuffix(".True") not in _SAME_NETWORK)


def _rows(file: str) -> Iterator[dict[str, str]]:
    with (RESULTS / file).open(encoding="utf-8") as lines:
        yield from csv.DictReader(line for line in lines if not line.startswith("#"))
