"""Tables of the previous schema, which had other intervals and verdicts."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.comparison.aggregate import Settings, aggregate
from engine.comparison.compare import SCHEMA as CURRENT
from engine.comparison.compare import run_numbers
from engine.comparison.view import VIEWS
from engine.data.groups import ImageGroups
from engine.errors import UserError
from engine.tasks.base import Predictions

SCHEMA = 2

Table = dict[str, Any]

_DROPPED = (
    *("difference_low", "difference_high", "difference_sd", "across_seeds_low", "across_seeds_high"),
    *("won", "lost", "p_value", "distinguishable"),
)


def with_current_schema(
    table: Table, predictions: Sequence[Predictions | None], directory: Path, groups: ImageGroups | None
) -> Table:
    """Return a table of schema 2 in the current schema, with its statistics computed from the predictions.

    Args:
        table: table of schema 2.
        predictions: predictions of each run.
        directory: folder of the table.
        groups: groups of the images; None if all are independent.

    Raises:
        UserError: if predictions are missing.
    """
    found = [one for one in predictions if one is not None]
    if len(found) < len(predictions):
        raise UserError(f"{directory} lacks predictions, which this version's intervals need; run evaluate.py.")
    view, runs = VIEWS[table["task"]], []
    for run, own in zip(table["runs"], found, strict=True):
        baseline = None if run["baseline"] is None else found[run["baseline"]]
        kept = {key: value for key, value in run.items() if key not in _DROPPED}
        runs.append(kept | run_numbers(own, baseline, view))
    ids = None if groups is None else groups.ids
    settings = Settings()
    rows, direct = aggregate(runs, [one.outcome(ids) for one in found], view, settings)
    for row, before in zip(rows, table["rows"], strict=True):
        row |= {key: before[key] for key in before if key.startswith("paper_") or key == "images_per_second"}
    data = table["data"] | {
        "class_names": _class_names(runs, directory, table["data"]["classes"]),
        "groups": None if groups is None else len(set(groups.groups)),
    }
    current = {"schema": CURRENT, "data": data, "settings": asdict(settings), "direct": direct, "omitted": []}
    return {**table, **current, "rows": rows, "runs": runs}


def _class_names(runs: Sequence[dict[str, Any]], directory: Path, classes: int) -> list[str]:
    """Return the names of the classes from a run's record; their numbers for published weights alone."""
    for run in runs:
        record = directory / f"{run['raw']}.json"
        if record.is_file():
            names = json.loads(record.read_text(encoding="utf-8")).get("class_names", [])
            if len(names) == classes:
                return list(names)
    return [str(number) for number in range(classes)]
