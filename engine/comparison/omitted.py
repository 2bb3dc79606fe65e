"""The runs that a table does not contain, so that none vanishes silently."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.config.schemas import EvaluateConfig
from engine.errors import UserError
from engine.runs.directory import RunDirectory

Row = dict[str, Any]


def omitted_runs(config: EvaluateConfig, compared: Sequence[Path], damaged: Sequence[Path], table: Path) -> list[Row]:
    """Return the run directories that a table omits, each with the reason.

    Args:
        compared: directories of the runs in the table.
        damaged: directories of the runs that would be in it, but cannot be used.
        table: table.json of the previous evaluation, which may not exist.

    Returns:
        Items with `source` and `reason`: `damaged`, `unfinished`, `not named in runs=`, or `in the previous table
        only`.
    """
    taken = {directory.resolve() for directory in (*compared, *damaged)}
    omitted = [{"source": str(directory), "reason": "damaged"} for directory in damaged]
    omitted += [
        {"source": str(directory), "reason": reason}
        for directory, reason in _found(config)
        if directory.resolve() not in taken
    ]
    known = taken | {Path(one["source"]).resolve() for one in omitted}
    for source in _previous(table):
        if Path(source).resolve() not in known:
            omitted.append({"source": source, "reason": "in the previous table only"})
    return omitted


def _found(config: EvaluateConfig) -> Iterator[tuple[Path, str]]:
    """Yield the directories of the data set's runs with the reason why a table would omit them."""
    folder = Path(config.run.root) / (config.data.trained_on or config.data.label)
    for file in sorted(folder.glob("*/seed*/config.yaml")):
        yield file.parent, "not named in runs=" if _is_finished(file.parent) else "unfinished"


def _is_finished(directory: Path) -> bool:
    try:
        return RunDirectory(directory).finished
    except UserError:  # a damaged record
        return False


def _previous(table: Path) -> list[str]:
    """Return the run directories of the previous table; none if it cannot be read."""
    try:
        runs = json.loads(table.read_text(encoding="utf-8"))["runs"]
        return [run["source"] for run in runs if run["seed"] is not None]
    except (OSError, ValueError, KeyError, TypeError):
        return []
