"""Whether every number of a table follows from the predictions that are stored beside it."""

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from engine.comparison import aggregate, paired_stats
from engine.errors import UserError
from engine.tasks.classification import Predictions

Row = dict[str, Any]

_ROUNDING = 1e-9  # points: sums in another order, on another processor


def verify_table(table: Row, directory: Path) -> None:
    """Count the errors of each row again, and from them the differences, intervals and p-values of the table.

    What rests on predictions that are not there stays unchecked; it says which. What evaluation does not count (errors
    at the start, parameters, GFLOPs, speed, what others published) is taken as it stands.

    Raises:
        UserError: naming the first number, or file of predictions, that is not what the table was made of.
    """
    _require_structure(table)
    rows = table["rows"]
    found = [_hits(row, directory / f"{row['raw']}.npz") for row in rows]
    missing = {i for i, each in enumerate(found) if each is None}
    if len(missing) == len(rows):
        return
    # In the place of those that are missing stands anything, for what does not rest on them.
    anything = next(each for each in found if each is not None)
    hits = [anything if each is None else each for each in found]
    rests_on = [{i} if row["baseline"] is None else {i, row["baseline"]} for i, row in enumerate(rows)]
    for row, own, positions in zip(rows, hits, rests_on, strict=True):
        if row["baseline"] is None:
            _require(row, {"difference": None}, row["raw"])
        elif not positions & missing:
            pair = own[np.newaxis], hits[row["baseline"]][np.newaxis]
            _require(row, asdict(paired_stats.paired_difference(*pair)), row["raw"])
    cells = aggregate.cells(rows, hits)
    if len(cells) != len(table["cells"]):
        raise UserError(f"table.json has {len(table['cells'])} printed rows, not {len(cells)}; run evaluate.py.")
    for cell, counted in zip(table["cells"], cells, strict=True):
        name = f"{counted['model']} with attention {counted['attention']}"
        if missing & set().union(*(rests_on[i] for i in counted["rows"])):
            print(f"Unchecked: the printed row of {name}.", file=sys.stderr)
        else:
            _require(cell, counted, name)


def _require_structure(table: Any) -> None:
    parts = ("rows", "cells")
    if not isinstance(table, dict) or not all(isinstance(table.get(part), list) for part in parts):
        raise UserError("table.json is not a table; run evaluate.py.")
    for row in table["rows"]:
        baseline = row.get("baseline") if isinstance(row, dict) else -1
        if baseline is not None and not (isinstance(baseline, int) and 0 <= baseline < len(table["rows"])):
            raise UserError("A row of table.json has a baseline that is none of its rows; run evaluate.py.")


def _hits(row: Row, path: Path) -> np.ndarray | None:
    """[N] bool, whether it is right on each image."""
    if not path.exists():
        print(f"Unchecked: {path} is not there.", file=sys.stderr)
        return None
    said = Predictions.load(path, row["predictions_sha256"])
    _require(row, {"top1_error": 100 - said.top1, "top5_error": 100 - said.top5}, row["raw"])
    return said.hits()


def _require(stated: Row, counted: Row, name: str) -> None:
    for key, value in counted.items():
        if not _same(stated.get(key), value):
            raise UserError(
                f"The {key} of {name} in table.json is {stated.get(key)}, but its rows and predictions come to "
                f"{value}; run evaluate.py."
            )


def _same(stated: Any, counted: Any) -> bool:
    if isinstance(stated, float) and isinstance(counted, float):
        return math.isclose(stated, counted, rel_tol=0, abs_tol=_ROUNDING)
    return bool(stated == counted)
