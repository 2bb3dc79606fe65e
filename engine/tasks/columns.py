"""Cell formatters that tasks share. A row is a row of table.json."""

from collections.abc import Mapping
from typing import Any

from engine.tasks.base import Column

Row = Mapping[str, Any]

TOLERANCE = 0.05  # largest difference from a published metric, in points, that is not a pipeline error
DAGGER = "†"  # marks rows that were trained with another recipe


def number(value: float | None, form: str) -> str:
    """Format a value; return an empty string for None."""
    return "" if value is None else format(value, form)


def mean(row: Row, key: str) -> str:
    """Format a mean over seeds, with its standard deviation if there are several."""
    spread = row[f"{key}_sd"]
    return number(row[key], ".2f") + ("" if spread is None else f" ± {spread:.2f}")


def difference(row: Row) -> str:
    """Format the difference from the baseline, with its interval and verdict."""
    if row["baseline"] is None:
        return "" if row["attention"] == "none" else "no baseline"
    mark = f" {DAGGER}" if row["baseline_differs"] else ""
    spread = "" if row["difference_sd"] is None else f" ± {row['difference_sd']:.2f}"
    interval = f"[{row['difference_low']:+.2f}, {row['difference_high']:+.2f}]"
    supported = ", for these two training runs" if row["across_seeds_low"] is None else ""
    verdict = supported if row["distinguishable"] else ", not distinguishable from 0"
    return f"{row['difference']:+.2f}{spread} {interval}{verdict}{mark}"


def interval_across_seeds(row: Row) -> str:
    """Format the difference's interval over images and seeds; return an empty string for one seed or no baseline."""
    if row["baseline"] is None or row["across_seeds_low"] is None:
        return ""
    return f"[{row['across_seeds_low']:+.2f}, {row['across_seeds_high']:+.2f}]"


def lr_factor(row: Row) -> str:
    """Format the factor of attention's learning rate; return an empty string for a network without attention."""
    factor = row.get("attention_lr_factor")
    return "" if factor is None or row["attention"].partition("-")[0] == "none" else f"{factor:g}"


def gate_movement(row: Row) -> str:
    """Format the gates' distance from the identity: the mean, and the largest value."""
    mean, largest = row.get("gate_movement_mean"), row.get("gate_movement_largest")
    return "" if mean is None or largest is None else f"{mean:.3g} ({largest:.3g})"


def gate_saturation(row: Row) -> str:
    """Format the share of saturated gate values in %: the mean over the gates, and the largest of a gate."""
    mean, largest = row.get("gate_saturation_mean"), row.get("gate_saturation_largest")
    return "" if mean is None or largest is None else f"{100 * mean:.1f} ({100 * largest:.1f})"


def p_value(row: Row) -> str:
    """Format the p-value of the difference."""
    if row["baseline"] is None:
        return ""
    return "< 0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}"


def published(row: Row) -> str:
    """Format the published metric of the start weights, and by how much the measured one differs."""
    if row["published_gap"] is None:
        return ""
    verdict = "" if is_as_published(row) else ", NOT as published"
    return f"{row['published']:.2f} (measured: {row['published_gap']:+.2f} points{verdict})"


def is_as_published(row: Row) -> bool:
    """Return whether the measured metric of the start weights matches the published one."""
    return bool(abs(row["published_gap"]) <= TOLERANCE)


NETWORK = (
    Column("Backbone", lambda row: row["model"] + (f" {DAGGER}" if row["recipe_deviation"] else ""), in_summary=True),
    Column("Attention", lambda row: row["attention"], in_summary=True),
    Column("Recipe", lambda row: row.get("recipe") or ""),
    Column("Attention's lr factor", lr_factor),
    Column("Params (M)", lambda row: f"{row['parameters'] / 1e6:.2f}"),
    Column("GFLOPs", lambda row: f"{row['gflops']:.3f}"),
    Column("Epochs", lambda row: str(row["epochs"])),
    Column("Seeds", lambda row: ", ".join(map(str, row["seeds"])), in_summary=True),
    Column("Gates moved: mean (largest)", gate_movement),
    Column("Gates saturated (%): mean (largest)", gate_saturation),
)

ACROSS_SEEDS = Column("95% interval over images and seeds", interval_across_seeds)
