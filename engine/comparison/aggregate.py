"""The printed rows of a table: the seeds of one network together, against the same seeds of its baseline."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from engine.comparison import paired_stats

Row = dict[str, Any]

_SHARED = ("model", "attention", "parameters", "gflops", "epochs", "recipe_deviation", "published_top1_error")


def cells(rows: Sequence[Row], hits: Sequence[np.ndarray]) -> list[Row]:
    """One cell for each (backbone, attention, recipe), in the order of its first row.

    Args:
        rows: one for each run; `baseline` is the position of its baseline's row, or None.
        hits: for each row [N] bool, whether it is right on each image.
    """
    groups: dict[tuple, list[int]] = {}
    for position, row in enumerate(rows):
        key = (row["model"], row["attention"], row["recipe_deviation"], row["seed"] is None)
        groups.setdefault(key, []).append(position)
    members = list(groups.values())
    return [_cell(positions, members, rows, hits) for positions in members]


def _cell(positions: list[int], members: list[list[int]], rows: Sequence[Row], hits: Sequence[np.ndarray]) -> Row:
    own = [rows[i] for i in positions]
    cell = {key: own[0][key] for key in _SHARED}
    cell |= {"rows": positions, "seeds": [row["seed"] for row in own if row["seed"] is not None]}
    for key in ("top1_error_start", "top1_error", "top5_error"):
        values = [row[key] for row in own if row[key] is not None]
        cell[key] = float(np.mean(values)) if values else None
        cell[f"{key}_sd"] = paired_stats.standard_deviation(np.array(values))
    gaps = [row["published_gap"] for row in own if row["published_gap"] is not None]
    cell["published_gap"] = max(gaps, key=abs, default=None)
    return cell | _against_baseline(positions, members, rows, hits)


def _against_baseline(
    positions: list[int], members: list[list[int]], rows: Sequence[Row], hits: Sequence[np.ndarray]
) -> Row:
    """The pooled difference over the seeds that have a baseline; `baseline` is the position of its cell."""
    pairs = [(i, rows[i]["baseline"]) for i in positions if rows[i]["baseline"] is not None]
    if not pairs:
        return {"baseline": None}
    said = paired_stats.paired_difference(np.stack([hits[i] for i, _ in pairs]), np.stack([hits[j] for _, j in pairs]))
    return {
        "baseline": next(i for i, group in enumerate(members) if pairs[0][1] in group),
        "baseline_seeds": [rows[i]["seed"] for i, _ in pairs],
        "baseline_differs": any(rows[i]["recipe_deviation"] != rows[j]["recipe_deviation"] for i, j in pairs),
        **asdict(said),
    }
