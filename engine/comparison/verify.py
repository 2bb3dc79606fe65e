"""The check of a table's numbers against the predictions stored beside it."""

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.comparison.aggregate import aggregate_seeds
from engine.errors import UserError
from engine.tasks.base import Predictions, Task

Row = dict[str, Any]

_ROUNDING = 1e-9  # points; another processor may sum in another order


def verify_table(table: Row, directory: Path, task: type[Task]) -> None:
    """Recompute and check the metrics of each run, and the differences, intervals and p-values of the table.

    Numbers whose predictions are missing are not checked; they are listed on stderr. Values of runs that do not follow
    from predictions (metrics at the start, parameters, GFLOPs, published values) are taken as given; the rows must
    agree with them. Speeds and the paper's values are not checked.

    Raises:
        UserError: naming the first number or predictions file that does not match.
    """
    _require_structure(table)
    runs = table["runs"]
    predictions = [_predictions(run, directory / f"{run['raw']}.npz", task) for run in runs]
    for run, own in zip(runs, predictions, strict=True):
        baseline = None if run["baseline"] is None else predictions[run["baseline"]]
        if run["baseline"] is None:
            _require(run, {"difference": None}, run["raw"])
        elif own is not None and baseline is not None:
            _require(run, asdict(task.paired([own], [baseline])), run["raw"])
    rows = aggregate_seeds(runs, predictions, task)
    if len(rows) != len(table["rows"]):
        raise UserError(f"table.json has {len(table['rows'])} rows, not {len(rows)}; run evaluate.py.")
    for stated, computed in zip(table["rows"], rows, strict=True):
        name = f"{computed['model']} with attention {computed['attention']}"
        needed = set(computed["runs"]) | {runs[i]["baseline"] for i in computed["runs"]} - {None}
        if any(predictions[i] is None for i in needed):
            print(f"Unchecked: the row of {name}.", file=sys.stderr)
        else:
            _require(stated, computed, name)


def _require_structure(table: Any) -> None:
    if not isinstance(table, dict) or not all(isinstance(table.get(part), list) for part in ("runs", "rows")):
        raise UserError("table.json is not a table; run evaluate.py.")
    for run in table["runs"]:
        baseline = run.get("baseline") if isinstance(run, dict) else -1
        if baseline is not None and not (isinstance(baseline, int) and 0 <= baseline < len(table["runs"])):
            raise UserError("A run in table.json has a baseline that is not in the table; run evaluate.py.")


def _predictions(run: Row, path: Path, task: type[Task]) -> Predictions | None:
    if not path.exists():
        print(f"Unchecked: {path} is missing.", file=sys.stderr)
        return None
    predictions = task.predictions.load(path, run["predictions_sha256"])
    _require(run, task.table_row(predictions.metrics()), run["raw"])
    return predictions


def _require(stated: Row, computed: Row, name: str) -> None:
    for key, value in computed.items():
        if not _equal(stated.get(key), value):
            raise UserError(
                f"{key} of {name} in table.json is {stated.get(key)}, but its predictions or runs give {value}; "
                "run evaluate.py."
            )


def _equal(stated: Any, computed: Any) -> bool:
    if isinstance(stated, float) and isinstance(computed, float):
        return math.isclose(stated, computed, rel_tol=0, abs_tol=_ROUNDING)
    return bool(stated == computed)
