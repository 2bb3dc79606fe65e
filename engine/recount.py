"""Whether every number of a table follows from the predictions that are stored beside it."""

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from engine import statistics, summary
from engine.errors import UserError
from engine.evaluator import Predictions

Row = dict[str, Any]

_ROUNDING = 1e-9  # points: sums in another order, on another processor


def recount(table: Row, directory: Path) -> None:
    """Count the errors of each row again, and from them the differences, intervals and p-values of the table.

    Of a table some of whose predictions are not there, the errors of the others; it says which are missing.

    Raises:
        UserError: naming the first number, or file of predictions, that is not what the table was made of.
    """
    rows = table["rows"]
    hits = [_hits(row, directory / f"{row['raw']}.npz") for row in rows]
    if any(each is None for each in hits):
        return
    known = [each for each in hits if each is not None]
    for row, own in zip(rows, known, strict=True):
        if row["baseline"] is None:
            _require(row, {"difference": None}, row["raw"])
        else:
            pair = own[np.newaxis], known[row["baseline"]][np.newaxis]
            _require(row, asdict(statistics.paired_difference(*pair)), row["raw"])
    cells = summary.cells(rows, known)
    if len(cells) != len(table["cells"]):
        raise UserError(f"table.json has {len(table['cells'])} printed rows, not {len(cells)}; run evaluate.py.")
    for cell, counted in zip(table["cells"], cells, strict=True):
        _require(cell, counted, f"{counted['model']} with attention {counted['attention']}")


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
                f"The {key} of {name} in table.json is {stated.get(key)}, but its predictions come to {value}; "
                "run evaluate.py."
            )


def _same(stated: Any, counted: Any) -> bool:
    if isinstance(stated, float) and isinstance(counted, float):
        return math.isclose(stated, counted, rel_tol=0, abs_tol=_ROUNDING)
    return bool(stated == counted)
