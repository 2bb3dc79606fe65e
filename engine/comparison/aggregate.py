"""The rows of the table: the seeds of one network aggregated, and compared with the same seeds of its baseline."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from engine.tasks.base import Predictions, Task
from engine.tasks.paired_stats import standard_deviation

Row = dict[str, Any]

_SHARED = ("model", "attention", "parameters", "gflops", "epochs", "recipe_deviation", "published")
_SHARED_SINCE = ("recipe", "attention_lr_factor", "weights")  # tables of earlier versions have none


def aggregate_seeds(runs: Sequence[Row], predictions: Sequence[Predictions | None], task: type[Task]) -> list[Row]:
    """Return one row for each (backbone, attention, its learning rate's factor, recipe), in order of the first run.

    Args:
        runs: `baseline` is the position of a run's baseline, or None.
        predictions: of each run; None where they are missing. A row that needs missing ones has no comparison.
    """
    groups: dict[tuple, list[int]] = {}
    for position, run in enumerate(runs):
        factor = run.get("attention_lr_factor")  # tables of earlier versions have none
        key = (run["model"], run["attention"], factor, run["recipe_deviation"], run["seed"] is None)
        groups.setdefault(key, []).append(position)
    members = list(groups.values())
    return [_row(positions, members, runs, predictions, task) for positions in members]


def _row(
    positions: list[int],
    members: list[list[int]],
    runs: Sequence[Row],
    predictions: Sequence[Predictions | None],
    task: type[Task],
) -> Row:
    own = [runs[i] for i in positions]
    row = {key: own[0][key] for key in _SHARED} | {key: own[0].get(key) for key in _SHARED_SINCE}
    row |= {"runs": positions, "seeds": [run["seed"] for run in own if run["seed"] is not None]}
    for key in (f"{task.table_metrics[0]}_start", *task.table_metrics):
        values = [run[key] for run in own if run[key] is not None]
        row[key] = float(np.mean(values)) if values else None
        row[f"{key}_sd"] = standard_deviation(np.array(values))
    row |= _movement(own)
    gaps = [run["published_gap"] for run in own if run["published_gap"] is not None]
    row["published_gap"] = max(gaps, key=abs, default=None)
    return row | _against_baseline(positions, members, runs, predictions, task)


def _movement(runs: Sequence[Row]) -> Row:
    """Return how far the gates went: the mean over the seeds, and the largest of all."""
    means, largest = (
        [run[key] for run in runs if run.get(key) is not None]
        for key in ("gate_movement_mean", "gate_movement_largest")
    )
    return {
        "gate_movement_mean": float(np.mean(means)) if means else None,
        "gate_movement_largest": max(largest, default=None),
    }


def _against_baseline(
    positions: list[int],
    members: list[list[int]],
    runs: Sequence[Row],
    predictions: Sequence[Predictions | None],
    task: type[Task],
) -> Row:
    """Return the difference pooled over the seeds that have a baseline; `baseline` is the position of its row."""
    pairs = [(i, runs[i]["baseline"]) for i in positions if runs[i]["baseline"] is not None]
    if not pairs:
        return {"baseline": None}
    compared = {
        "baseline": next(i for i, group in enumerate(members) if pairs[0][1] in group),
        "baseline_seeds": [runs[i]["seed"] for i, _ in pairs],
        "baseline_differs": any(runs[i]["recipe_deviation"] != runs[j]["recipe_deviation"] for i, j in pairs),
    }
    if any(predictions[i] is None or predictions[j] is None for i, j in pairs):
        return compared
    difference = task.paired([predictions[i] for i, _ in pairs], [predictions[j] for _, j in pairs])
    return compared | asdict(difference)
