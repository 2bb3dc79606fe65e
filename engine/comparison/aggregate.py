"""Rows of the table: the seeds of one network, aggregated and compared with the same seeds of its baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.comparison.contrasts import add_contrasts, baseline_contrast
from engine.comparison.view import View
from engine.tasks.crossed_model import Outcome
from engine.tasks.paired_stats import standard_deviation

Row = dict[str, Any]

_SHARED = ("model", "attention", "parameters", "gflops", "epochs", "recipe_deviation", "published")
_SHARED_SINCE = ("recipe", "attention_lr_factor", "weights")  # tables of earlier versions have none


@dataclass(frozen=True)
class Settings:
    """Choices of a table's tests and contrasts; stored in table.json.

    Attributes:
        margin: margin of equivalence in points; None for no test of equivalence.
        contrasts: direct contrasts as `cbam/se`; None for one of each pair of kinds of attention.
    """

    margin: float | None = None
    contrasts: list[str] | None = None


def aggregate(
    runs: Sequence[Row], outcomes: Sequence[Outcome | None], view: View, settings: Settings
) -> tuple[list[Row], list[Row]]:
    """Return one row for each (backbone, attention, its learning rate's factor, recipe), and the direct contrasts.

    Args:
        runs: the table's runs; `baseline` is the position of a run's baseline, or None.
        outcomes: outcome of each run, None if its predictions are missing. A contrast that needs it has no numbers.

    Returns:
        The rows, in order of their first run, each with the contrast with its baseline; and the contrasts between
        kinds of attention, with the positions of their rows.
    """
    by_network: dict[tuple, list[int]] = {}
    for position, run in enumerate(runs):
        # Tables of earlier versions have neither.
        detector, factor = run.get("detector"), run.get("attention_lr_factor")
        key = (run["model"], detector, run["attention"], factor, run["recipe_deviation"], run["seed"] is None)
        by_network.setdefault(key, []).append(position)
    groups = list(by_network.values())
    rows = [_averages(positions, runs, view) | baseline_contrast(positions, groups, runs) for positions in groups]
    return rows, add_contrasts(rows, runs, outcomes, settings.margin, settings.contrasts)


def _averages(positions: list[int], runs: Sequence[Row], view: View) -> Row:
    """Return a row's facts, and its metrics averaged over the seeds."""
    own = [runs[i] for i in positions]
    row = {key: own[0][key] for key in _SHARED} | {key: own[0].get(key) for key in _SHARED_SINCE}
    if "detector" in own[0]:
        row["detector"] = own[0]["detector"]
    row |= {"runs": positions, "seeds": [run["seed"] for run in own if run["seed"] is not None]}
    for key in (f"{view.keys[0]}_start", *view.keys):
        values = [run[key] for run in own if run[key] is not None]
        row[key] = float(np.mean(values)) if values else None
        row[f"{key}_sd"] = standard_deviation(np.array(values))
    row |= _movement(own)
    gaps = [run["published_gap"] for run in own if run["published_gap"] is not None]
    row["published_gap"] = max(gaps, key=abs, default=None)
    return row


def _movement(runs: Sequence[Row]) -> Row:
    """Return the movement and saturation of the gates: the mean over the seeds, and the largest of all."""
    row = {}
    for kind in ("gate_movement", "gate_saturation"):
        means, largest = (
            [run[key] for run in runs if run.get(key) is not None] for key in (f"{kind}_mean", f"{kind}_largest")
        )
        if any(f"{kind}_mean" in run for run in runs):  # tables of earlier versions have no saturation
            row[f"{kind}_mean"] = float(np.mean(means)) if means else None
            row[f"{kind}_largest"] = max(largest, default=None)
    return row
