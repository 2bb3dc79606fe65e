"""Rows of the table: the seeds of one network, aggregated and compared with the same seeds of its baseline."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from engine.tasks.base import Predictions, Task
from engine.tasks.paired_stats import PairedDifference, standard_deviation

Row = dict[str, Any]

_SHARED = ("model", "attention", "parameters", "gflops", "epochs", "recipe_deviation", "published")
_SHARED_SINCE = ("recipe", "attention_lr_factor", "weights")  # tables of earlier versions have none


def aggregate_seeds(runs: Sequence[Row], predictions: Sequence[Predictions | None], task: type[Task]) -> list[Row]:
    """Return one row for each (backbone, attention, its learning rate's factor, recipe), in order of the first run.

    Args:
        runs: the table's runs; `baseline` is the position of a run's baseline, or None.
        predictions: predictions of each run, None if missing. A row that needs missing ones has no difference.
    """
    by_network: dict[tuple, list[int]] = {}
    for position, run in enumerate(runs):
        # Tables of earlier versions have neither.
        detector, factor = run.get("detector"), run.get("attention_lr_factor")
        key = (run["model"], detector, run["attention"], factor, run["recipe_deviation"], run["seed"] is None)
        by_network.setdefault(key, []).append(position)
    groups = list(by_network.values())
    return [
        _averages(positions, runs, task) | _against_baseline(positions, groups, runs, predictions, task)
        for positions in groups
    ]


def _averages(positions: list[int], runs: Sequence[Row], task: type[Task]) -> Row:
    """Return a row's facts, and its metrics averaged over the seeds."""
    own = [runs[i] for i in positions]
    row = {key: own[0][key] for key in _SHARED} | {key: own[0].get(key) for key in _SHARED_SINCE}
    if "detector" in own[0]:
        row["detector"] = own[0]["detector"]
    row |= {"runs": positions, "seeds": [run["seed"] for run in own if run["seed"] is not None]}
    for key in (f"{task.table_metrics[0]}_start", *task.table_metrics):
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


def _against_baseline(
    positions: list[int],
    groups: list[list[int]],
    runs: Sequence[Row],
    predictions: Sequence[Predictions | None],
    task: type[Task],
) -> Row:
    """Return the difference pooled over the seeds that have a baseline; `baseline` is the position of its row."""
    pairs = [(i, runs[i]["baseline"]) for i in positions if runs[i]["baseline"] is not None]
    if not pairs:
        return {"baseline": None}
    compared = {
        "baseline": next(i for i, group in enumerate(groups) if pairs[0][1] in group),
        "baseline_seeds": [runs[i]["seed"] for i, _ in pairs],
        "baseline_differs": any(runs[i]["recipe_deviation"] != runs[j]["recipe_deviation"] for i, j in pairs),
    }
    if any(predictions[i] is None or predictions[j] is None for i, j in pairs):
        return compared
    if len(pairs) == 1:  # the run's own difference, which may have taken a minute to compute
        own = runs[pairs[0][0]]
        return compared | {field.name: own[field.name] for field in fields(PairedDifference)}
    difference = task.paired([predictions[i] for i, _ in pairs], [predictions[j] for _, j in pairs])
    return compared | asdict(difference)
