"""The check of a table's numbers against the predictions stored beside it."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.comparison.aggregate import Settings, aggregate
from engine.comparison.compare import run_numbers
from engine.comparison.view import VIEWS
from engine.data.groups import ImageGroups
from engine.errors import UserError
from engine.tasks.base import Predictions
from engine.tasks.registry import TASKS

Row = dict[str, Any]

_ROUNDING = 1e-9  # points; another processor may sum in another order


def verify_table(table: Row, predictions: Sequence[Predictions | None], groups: ImageGroups | None) -> None:
    """Recompute and check the metrics of each run, and the differences, intervals and p-values of the table.

    Numbers whose predictions are missing are not checked; they are listed on stderr. Values of runs that do not follow
    from predictions (metrics at the start, parameters, GFLOPs, published values) are taken as given; the rows must
    agree with them. Speeds and the paper's values are not checked.

    Args:
        predictions: predictions of each run, None if missing.
        groups: groups of the images, if the table has any.

    Raises:
        UserError: naming the first number that does not match.
    """
    runs, view = table["runs"], VIEWS[table["task"]]
    for run, own in zip(runs, predictions, strict=True):
        baseline = None if run["baseline"] is None else predictions[run["baseline"]]
        if own is None:
            continue
        is_whole = run["baseline"] is None or baseline is not None
        _require(run, run_numbers(own, baseline, view) if is_whole else view.values(own.metrics()), run["raw"])
    ids = None if groups is None else groups.ids
    outcomes = [None if one is None else one.outcome(ids) for one in predictions]
    rows, direct = aggregate(runs, outcomes, view, Settings(**table["settings"]))
    for part, computed in (("rows", rows), ("direct", direct)):
        if len(computed) != len(table[part]):
            raise UserError(f"table.json has {len(table[part])} {part}, not {len(computed)}; run evaluate.py.")
    is_complete = all(one is not None for one in predictions)  # Holm's adjustment needs every contrast
    for stated, one in zip([*table["rows"], *table["direct"]], [*rows, *direct], strict=True):
        name = _name(one, rows)
        if one.get("baseline", one.get("against")) is not None and "difference" not in one:
            print(f"Unchecked: the difference of {name}.", file=sys.stderr)
        _require(stated, one if is_complete else {k: v for k, v in one.items() if k not in _OF_THE_FAMILY}, name)


_OF_THE_FAMILY = ("p_adjusted", "equivalence_p_adjusted", "verdict")


def _name(contrast: Row, rows: Sequence[Row]) -> str:
    if "against" in contrast:
        row, other = rows[contrast["row"]], rows[contrast["against"]]
        return f"{row['model']} with attention {row['attention']} against {other['attention']}"
    return f"{contrast['model']} with attention {contrast['attention']}"


def require_structure(table: Any) -> None:
    """Reject a table without the parts that the predictions are read by."""
    if not isinstance(table, dict) or not all(isinstance(table.get(part), list) for part in ("runs", "rows")):
        raise UserError("table.json is not a table; run evaluate.py.")
    for run in table["runs"]:
        baseline = run.get("baseline") if isinstance(run, dict) else -1
        if baseline is not None and not (isinstance(baseline, int) and 0 <= baseline < len(table["runs"])):
            raise UserError("A run in table.json has a baseline that is not in the table; run evaluate.py.")


def stored_predictions(table: Row, directory: Path) -> list[Predictions | None]:
    """Return the predictions of each run that are stored beside a table; None, and a line on stderr, if missing.

    Raises:
        UserError: if a file cannot be read or does not match its digest.
    """
    kind = TASKS[table["task"]].predictions
    predictions: list[Predictions | None] = []
    for run in table["runs"]:
        path = directory / f"{run['raw']}.npz"
        if path.exists():
            predictions.append(kind.load(path, run["predictions_sha256"]))
        else:
            print(f"Unchecked: {path} is missing.", file=sys.stderr)
            predictions.append(None)
    return predictions


def _require(stated: Row, computed: Row, name: str) -> None:
    for key, value in computed.items():
        if not _equal(stated.get(key), value):
            raise UserError(
                f"{key} of {name} in table.json is {stated.get(key)}, but its predictions or runs give {value}; "
                "run evaluate.py."
            )


def _equal(stated: Any, computed: Any) -> bool:
    if isinstance(computed, list) and isinstance(stated, list) and len(stated) == len(computed):
        return all(_equal(one, other) for one, other in zip(stated, computed, strict=True))
    if isinstance(stated, float) and isinstance(computed, float):
        return math.isclose(stated, computed, rel_tol=0, abs_tol=_ROUNDING)
    return bool(stated == computed)
