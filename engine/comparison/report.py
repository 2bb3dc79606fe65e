"""The files of a table, all rendered from table.json and the predictions of its runs."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.comparison import classes, earlier, latex, markdown, plot
from engine.comparison.compare import SCHEMA, Evidence
from engine.comparison.verify import require_structure, stored_predictions, verify_table
from engine.config.schemas import EvaluateConfig
from engine.data.groups import ImageGroups
from engine.errors import UserError
from engine.runs.atomic_io import atomic_write
from engine.tasks.base import Predictions
from engine.tasks.registry import TASKS

Row = dict[str, Any]
Table = dict[str, Any]

_GROUPS = "groups.csv"
# Files that not every table has.
_OPTIONAL = ("contrasts.csv", "classes.csv", "confusion.csv", "confusion.png", "table.png", "table.svg", _GROUPS)


def folder(config: EvaluateConfig) -> Path:
    """Return the folder of a configuration's table."""
    return Path(config.table.dir or f"results/{config.data.label}")


def replaced_runs(config: EvaluateConfig, directory: Path) -> list[str]:
    """Return the runs of the table of the same data set that a new one replaces; empty if there is none.

    Raises:
        UserError: if the folder contains the table of another data set, or something else called table.json.
    """
    file = directory / "table.json"
    if not file.is_file():
        return []
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        name, runs = table["data"]["name"], [str(run["source"]) for run in table["runs"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{file} is not a table of this program; set table.dir to another folder.") from None
    if name != config.data.label:
        raise UserError(f"{directory} contains the table of {name}; set table.dir to another folder for this one.")
    return runs


def require_kept_runs(config: EvaluateConfig, replaced: Sequence[str], runs: Sequence[str]) -> None:
    """Refuse to replace a table in its default folder by one that lacks some of its runs.

    Args:
        replaced: runs of the table that is there.
        runs: runs of the new table.

    Raises:
        UserError: if a run is lost, and the folder was not chosen by `table.dir`.
    """
    lost = [run for run in dict.fromkeys(replaced) if run not in runs]
    if lost and config.table.dir is None:
        directory = folder(config)
        raise UserError(
            f"{directory} contains a table of {len(replaced)} runs, {len(lost)} of which would not be in this one, "
            f"such as {lost[0]}. Set table.dir to another folder, or table.dir={directory} to replace it."
        )


def write(table: Table, evidence: Evidence, directory: Path) -> str:
    """Write the table in every format, and the predictions, record and config of each run below runs/.

    Everything is computed before the first file is replaced. Files of an earlier table in the folder are removed.

    Returns:
        The table as Markdown.

    Raises:
        UserError: if the folder cannot be written.
    """
    forms = _forms(table, [run.predictions for run in evidence.runs])
    if evidence.groups is not None:
        forms[_GROUPS] = evidence.groups.text().encode()
    earlier_runs = _runs_of(directory)
    try:
        (directory / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{directory} cannot be created ({error.strerror})"
        raise UserError(f"{reason}; set table.dir to another folder.") from error
    for run, behind in zip(table["runs"], evidence.runs, strict=True):
        behind.predictions.save(directory / f"{run['raw']}.npz")
        if behind.record:
            _write(directory / f"{run['raw']}.json", _json(behind.record))
            _write(directory / f"{run['raw']}.yaml", behind.config.encode())
    for name, content in {**forms, "table.json": _json(table)}.items():
        _write(directory / name, content)
    gone = [name for name in _OPTIONAL if name not in forms]
    gone += [f"{run}.{end}" for run in earlier_runs - _runs_of(directory) for end in ("npz", "json", "yaml")]
    for name in gone:
        (directory / name).unlink(missing_ok=True)
    return forms["table.md"].decode()


def _runs_of(directory: Path) -> set[str]:
    """Return the files of the runs of the table in a folder, without their endings."""
    file = directory / "table.json"
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.is_file() else []
    return {f"runs/{Path(run['raw']).name}" for run in runs}


def render(directory: Path) -> str:
    """Write every format of the table from its table.json, after checking its numbers against the stored predictions.

    The same table.json gives the same bytes. A table of the previous schema gets this version's intervals and verdicts.

    Returns:
        The table as Markdown.

    Raises:
        UserError: if table.json cannot be read, or does not match the stored predictions.
    """
    file = directory / "table.json"
    table = _read(file)
    try:
        require_structure(table)
        predictions = stored_predictions(table, directory)
        contents: dict[str, bytes] = {}
        if table["schema"] == SCHEMA:
            groups = ImageGroups.read(directory / _GROUPS) if table["data"]["groups"] else None
            verify_table(table, predictions, groups)
        else:
            groups = ImageGroups.read(directory / _GROUPS) if (directory / _GROUPS).is_file() else None
            table = earlier.with_current_schema(table, predictions, directory, groups)
            contents = {"table.json": _json(table)}
        contents = _forms(table, predictions) | contents
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # from edited values
        raise UserError(f"{file} is damaged ({error!r}); run evaluate.py.") from error
    for name, content in contents.items():
        _write(directory / name, content)
    return contents["table.md"].decode()


def _read(file: Path) -> Table:
    if not file.is_file():
        raise UserError(f"There is no table {file}; run evaluate.py.")
    try:
        table: Table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The table {file} cannot be read ({error}); run evaluate.py.") from error
    schemas = (earlier.SCHEMA, SCHEMA)
    if not isinstance(table, dict) or table.get("schema") not in schemas or table.get("task") not in TASKS:
        raise UserError(f"{file} is not a table of this version (schema {SCHEMA}); run evaluate.py.")
    return table


def _forms(table: Table, predictions: Sequence[Predictions | None]) -> dict[str, bytes]:
    """Return the content of each file that shows the table."""
    if not table["rows"]:
        raise UserError("table.json has no rows; run evaluate.py.")
    texts = {
        "table.md": markdown.main_table(table),
        "details.md": markdown.details(table),
        "table.csv": _csv(table["rows"]),
        "table.tex": latex.float_table(table),
    }
    contrasts = _contrasts(table)
    if contrasts:
        texts["contrasts.csv"] = _csv(contrasts)
    pictures = plot.files(table)
    if not pictures:
        print("The figure needs matplotlib; pip install matplotlib and render the table again.", file=sys.stderr)
    contents = {name: text.encode() for name, text in texts.items()}
    return contents | pictures | classes.files(table, predictions)


def _contrasts(table: Table) -> list[Row]:
    """Return every contrast with the names of both networks, first those with a baseline."""
    rows = table["rows"]
    pairs = [(row, rows[row["baseline"]], row) for row in rows if row["baseline"] is not None]
    pairs += [(rows[one["row"]], rows[one["against"]], one) for one in table["direct"]]
    return [
        {
            "model": row["model"],
            "attention": row["attention"],
            "attention_lr_factor": row["attention_lr_factor"],
            "against": other["attention"],
            **{key: contrast[key] for key in _CONTRAST if key in contrast},
        }
        for row, other, contrast in pairs
    ]


_CONTRAST = (
    *("contrast_seeds", "difference", "difference_low", "difference_high", "difference_sd", "per_seed"),
    *("common_variance", "residual_variance", "units", "seed_correlation", "p_value", "p_adjusted", "detectable"),
    *("equivalence_p", "equivalence_p_adjusted", "verdict", "won", "lost", "mcnemar_p"),
)


def _csv(rows: Sequence[Row]) -> str:
    """Return every value of every row, unrounded."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()})
    return text.getvalue()


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    atomic_write(path, lambda file: file.write(content))
