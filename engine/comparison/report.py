"""The output formats of a table, all rendered from table.json, and the raw data of its runs."""

import csv
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.comparison import plot
from engine.comparison.compare import SCHEMA, Evidence
from engine.comparison.notes import row_notes, table_notes
from engine.comparison.verify import verify_table
from engine.config.schemas import EvaluateConfig
from engine.errors import UserError
from engine.logging import aligned
from engine.runs.atomic_io import atomic_write
from engine.tasks.base import Column, Task
from engine.tasks.columns import DAGGER
from engine.tasks.registry import TASKS

Row = dict[str, Any]
Table = dict[str, Any]


def folder(config: EvaluateConfig) -> Path:
    """Return the folder of a configuration's table."""
    return Path(config.table.dir or f"results/{config.data.label}")


def replaced_table(config: EvaluateConfig, directory: Path) -> str:
    """Return a sentence on the table of the same data set that a new one replaces; empty if there is none.

    Raises:
        UserError: if the folder contains the table of another data set, or something else called table.json.
    """
    file = directory / "table.json"
    if not file.is_file():
        return ""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        name, runs = table["data"]["name"], [run["source"] for run in table["runs"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{file} is not a table of this program; set table.dir to another folder.") from None
    if name != config.data.label:
        raise UserError(f"{directory} contains the table of {name}; set table.dir to another folder for this one.")
    return f"Replacing the table of {len(runs)} networks in {directory}."


def write(table: Table, evidence: Sequence[Evidence], directory: Path) -> str:
    """Write the table in every format, and the predictions, record and config of each run below runs/.

    Everything is computed before the first file is replaced.

    Returns:
        The table as Markdown.

    Raises:
        UserError: if the folder cannot be written.
    """
    text = json.dumps(table, indent=2) + "\n"
    forms = _forms(table, TASKS[table["task"]])
    try:
        (directory / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{directory} cannot be created ({error.strerror})"
        raise UserError(f"{reason}; set table.dir to another folder.") from error
    for run, behind in zip(table["runs"], evidence, strict=True):
        behind.predictions.save(directory / f"{run['raw']}.npz")
        if behind.record:
            _write(directory / f"{run['raw']}.json", (json.dumps(behind.record, indent=2) + "\n").encode())
            _write(directory / f"{run['raw']}.yaml", behind.config.encode())
    for name, content in {**forms, "table.json": text.encode()}.items():
        _write(directory / name, content)
    return forms["table.md"].decode()


def summary(table: Table) -> str:
    """Return the main columns of the table and the notes on single rows, as text for a terminal."""
    task = TASKS[table["task"]]
    columns = _columns(table["rows"], [column for column in task.columns if column.in_summary])
    titles, cells = zip(*columns, strict=True)
    return "\n".join([*aligned([titles, *zip(*cells, strict=True)]), *row_notes(table, task)])


def render(directory: Path) -> str:
    """Write every format of the table from its table.json, after checking its numbers against the stored predictions.

    The same table.json gives the same bytes.

    Returns:
        The table as Markdown.

    Raises:
        UserError: if table.json cannot be read, or does not match the stored predictions.
    """
    file = directory / "table.json"
    if not file.is_file():
        raise UserError(f"There is no table {file}; run evaluate.py.")
    try:
        table: Table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The table {file} cannot be read ({error}); run evaluate.py.") from error
    if not isinstance(table, dict) or table.get("schema") != SCHEMA or table.get("task") not in TASKS:
        raise UserError(f"{file} is not a table of this version (schema {SCHEMA}); run evaluate.py.")
    task = TASKS[table["task"]]
    try:
        verify_table(table, directory, task)
        forms = _forms(table, task)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # from edited values
        raise UserError(f"{file} is damaged ({error!r}); run evaluate.py.") from error
    for name, content in forms.items():
        _write(directory / name, content)
    return forms["table.md"].decode()


def _forms(table: Table, task: type[Task]) -> dict[str, bytes]:
    """Return the content of each file that shows the table."""
    if not table["rows"]:
        raise UserError("table.json has no rows; run evaluate.py.")
    texts = {"table.md": _markdown(table, task), "table.csv": _csv(table["rows"]), "table.tex": _latex(table, task)}
    pictures = plot.render(table, task)
    if not pictures:
        print("The figure needs matplotlib; pip install matplotlib and render the table again.", file=sys.stderr)
    return {name: text.encode() for name, text in texts.items()} | pictures


def _columns(rows: Sequence[Row], columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
    """Return each column's title and texts, with `-` for an empty string."""
    texts = [(column.title, [column.text(row) for row in rows]) for column in columns]
    return [(title, [text or "-" for text in column]) for title, column in texts if any(column)]


def _markdown(table: Table, task: type[Task]) -> str:
    links = [_links(row, table["runs"]) for row in table["rows"]]
    columns = [*_columns(table["rows"], task.columns), ("Config and records", links)]
    lines = [
        " | ".join(title for title, _ in columns),
        " | ".join("---" if i < 2 else "--:" for i in range(len(columns))),
        *(" | ".join(texts) for texts in zip(*(column for _, column in columns), strict=True)),
    ]
    body = "\n".join(f"| {line} |" for line in lines)
    notes = "\n".join(f"- {note}" for note in table_notes(table, task))
    return f"{body}\n\n{notes}\n"


def _links(row: Row, runs: Sequence[Row]) -> str:
    trained = [runs[i] for i in row["runs"] if runs[i]["seed"] is not None]
    if not trained:
        return str(runs[row["runs"][0]]["source"])
    records = [f"[{run['seed']}]({run['raw']}.json)" for run in trained]
    return ", ".join([f"[config]({trained[0]['raw']}.yaml)", *records])


def _csv(rows: Sequence[Row]) -> str:
    """Return every value of every row, unrounded."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()})
    return text.getvalue()


def _latex(table: Table, task: type[Task]) -> str:
    """Return a booktabs table with its notes below."""
    columns = _columns(table["rows"], task.columns)
    rows = zip(*(column for _, column in columns), strict=True)
    return "\n".join(
        (
            r"% \usepackage{booktabs}",
            rf"\begin{{tabular}}{{ll{'r' * (len(columns) - 2)}}}",
            r"\toprule",
            " & ".join(_escape(title) for title, _ in columns) + r" \\",
            r"\midrule",
            *(" & ".join(map(_escape, texts)) + r" \\" for texts in rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
            r"\begin{flushleft}\footnotesize",
            *(_escape(note) + r"\\" for note in table_notes(table, task)),
            r"\end{flushleft}",
            "",
        )
    )


_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "%_&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", DAGGER: r"$^\dagger$", "<": "$<$"}
)


def _escape(text: str) -> str:
    return re.sub(r"(?<![\w$])-(?=\d)", lambda _: "$-$", text.translate(_LATEX))


def _write(path: Path, content: bytes) -> None:
    atomic_write(path, lambda file: file.write(content))
