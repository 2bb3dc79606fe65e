"""Columns of the printed tables, and the formatters of their cells. A row is a row of table.json."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

TOLERANCE = 0.05  # largest difference from a published metric, in points, that is not a pipeline error
DAGGER = "†"  # marks rows that were trained with another recipe
NOTHING = "-"  # a cell without a value
STATIC = "-static_gates"  # ends the attention's label of a row with static gates


@dataclass(frozen=True)
class Column:
    """A column of a printed table.

    Attributes:
        title: title with the unit.
        text: function that formats a row's cell; empty if there is no value. Empty columns are omitted.
    """

    title: str
    text: Callable[[Row], str]


def number(value: float | None, form: str) -> str:
    """Format a value; return an empty string for None."""
    return "" if value is None else format(value, form)


def mean(row: Row, key: str) -> str:
    """Format a mean over seeds, with its standard deviation if there are several; empty without a value."""
    value, spread = row.get(key), row.get(f"{key}_sd")
    return number(value, ".2f") + ("" if value is None or spread is None else f" ± {spread:.2f}")


def network(row: Row) -> str:
    """Return the name of a row in notes: `resnet18 cbam (lr x10)`."""
    return f"{row['model']} {attention(row)}"


def kind(row: Row) -> str:
    """Return the kind of attention, without its options."""
    return str(row["attention"]).partition("-")[0]


def is_static(row: Row) -> bool:
    """Return whether a row is a control with static gates, compared with the same network with its own gates."""
    return str(row["attention"]).endswith(STATIC)


def attention(row: Row) -> str:
    """Format the attention's label, with the factor of its learning rate unless it is 1."""
    label = str(row["attention"]).replace("-calibrate.0", " uncalibrated")
    factor = row.get("attention_lr_factor")
    is_plain = factor in (None, 1) or kind(row) == "none"
    return label if is_plain else f"{label} (lr x{factor:g})"


def marked(row: Row) -> str:
    """Format the attention, with a dagger if the row was trained with another recipe."""
    return attention(row) + (f" {DAGGER}" if row["recipe_deviation"] else "")


def difference(contrast: Row) -> str:
    """Format a difference with its interval; return an empty string if it was not computed."""
    if contrast.get("difference") is None:
        return ""
    low, high = contrast["difference_low"], contrast["difference_high"]
    return f"{contrast['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"


def p_value(value: float | None) -> str:
    """Format a p-value."""
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def is_supported(contrast: Row) -> bool:
    """Return whether a difference from 0 is supported by several seeds."""
    return contrast.get("verdict") in ("lower", "higher")


def gib(value: int | None) -> str:
    """Format bytes in GiB; return an empty string for None."""
    return "" if value is None else f"{value / 2**30:.2f}"


def millions(row: Row) -> str:
    """Format the number of parameters in millions; return an empty string for a contrast of two networks."""
    return "" if row["parameters"] is None else f"{row['parameters'] / 1e6:.2f}"


def lr_factor(row: Row) -> str:
    """Format the factor of attention's learning rate; return an empty string for a network without attention."""
    factor = row.get("attention_lr_factor")
    return "" if factor is None or kind(row) == "none" else f"{factor:g}"


def gate_distance(row: Row) -> str:
    """Format the gates' distance from the identity in tables of earlier versions, which have no saturation."""
    return "" if _has_saturation(row) else _gate_movement(row)


def gate_movement(row: Row) -> str:
    """Format the gates' movement from their start: the mean, and the largest value."""
    return _gate_movement(row) if _has_saturation(row) else ""


def _has_saturation(row: Row) -> bool:
    """Return whether a row's runs recorded the saturation of the gates; those of earlier versions did not."""
    return row.get("gate_saturation_mean") is not None


def _gate_movement(row: Row) -> str:
    mean, largest = row.get("gate_movement_mean"), row.get("gate_movement_largest")
    return "" if mean is None or largest is None else f"{mean:.3g} ({largest:.3g})"


def gate_saturation(row: Row) -> str:
    """Format the share of saturated gate values in %: the mean over the gates, and the largest of a gate."""
    mean, largest = row.get("gate_saturation_mean"), row.get("gate_saturation_largest")
    return "" if mean is None or largest is None else f"{100 * mean:.1f} ({100 * largest:.1f})"


def published(row: Row) -> str:
    """Format the published metric of the start weights, and by how much the measured one differs."""
    return "" if row.get("published_gap") is None else f"{row['published']:.2f} ({row['published_gap']:+.2f})"


def is_as_published(row: Row) -> bool:
    """Return whether the measured metric of the start weights matches the published one."""
    return bool(abs(row["published_gap"]) <= TOLERANCE)


def main_columns(title: str, key: str) -> tuple[Column, ...]:
    """Return the columns of the main table, at most eight.

    Args:
        title: title of the compared metric, with its unit.
        key: its key in a row.
    """
    return (
        Column("Backbone", lambda row: row["model"]),
        Column("Attention", marked),
        Column("Params (M)", millions),
        Column("GFLOPs", lambda row: number(row["gflops"], ".3f")),
        Column(title, lambda row: mean(row, key)),
        Column("Difference (points) [95% interval]", difference),
        Column("p (Holm)", lambda row: p_value(row.get("p_adjusted"))),
        Column("Detectable (points)", lambda row: number(row.get("detectable"), ".2f")),
    )


DETAILS = (
    Column("Backbone", lambda row: row["model"]),
    Column("Attention", lambda row: row["attention"]),
    Column("Detector", lambda row: row.get("detector", "")),
    Column("Recipe", lambda row: row.get("recipe") or ""),
    Column("Attention's lr factor", lr_factor),
    Column("Epochs", lambda row: str(row.get("epochs", ""))),
    Column("Seeds", lambda row: ", ".join(map(str, row["seeds"]))),
    Column("Distance of the gates from the identity: mean (largest)", gate_distance),
    Column("Gates moved from their start: mean (largest)", gate_movement),
    Column("Gates saturated (%): mean (largest)", gate_saturation),
)
CONTRAST_DETAILS = (
    Column("Spread of the difference (points)", lambda row: number(row.get("difference_sd"), ".2f")),
    Column("Correlation over seeds", lambda row: number(row.get("seed_correlation"), "+.2f")),
    Column("p, not adjusted", lambda row: p_value(row.get("p_value"))),
    Column("p of equivalence (Holm)", lambda row: p_value(row.get("equivalence_p_adjusted"))),
    Column("Won : lost (images)", lambda row: "" if row.get("won") is None else f"{row['won']} : {row['lost']}"),
    Column("McNemar's p", lambda row: p_value(row.get("mcnemar_p"))),
)
SPEED = (
    Column("Images/s", lambda row: number(row.get("images_per_second"), ".4g")),
    Column("Latency of one image (ms)", lambda row: number(row.get("image_milliseconds"), ".4g")),
    Column("Latency of a batch (ms)", lambda row: number(row.get("batch_milliseconds"), ".4g")),
    Column("Device memory (GiB)", lambda row: gib(row.get("device_memory"))),
    Column("Images/s in training", lambda row: number(row.get("train_images_per_second"), ".4g")),
    Column("Memory in training (GiB)", lambda row: gib(row.get("train_memory"))),
)
