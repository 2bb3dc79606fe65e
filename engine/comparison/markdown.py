"""The tables as Markdown and as text for a terminal."""

from collections.abc import Sequence
from typing import Any

from engine.comparison.columns import NOTHING, Column, is_supported
from engine.comparison.notes import detail_notes, printed_rows, summary_notes, table_notes
from engine.comparison.view import VIEWS
from engine.logging import aligned
from engine.tasks.classification import TOP_K

Row = dict[str, Any]
Table = dict[str, Any]


def main_table(table: Table) -> str:
    """Return the main table and its notes."""
    return _markdown(main_cells(table), table_notes(table), lambda text: f"**{text}**")


def details(table: Table) -> str:
    """Return the table of details: every other column, with links to the records."""
    rows = printed_rows(table)
    shown = rows if table["data"]["classes"] > TOP_K else [{**row, "top5_error": None} for row in rows]
    columns = filled_columns(shown, VIEWS[table["task"]].details)
    cells = [[(text, False) for text in texts] for texts in columns.values()]
    links = [_links(row, table["runs"]) for row in rows]
    titled = {**dict(zip(columns, cells, strict=True)), "Config and records": [(link, False) for link in links]}
    return _markdown(titled, detail_notes(table), str)


def summary(table: Table) -> str:
    """Return the main table and the notes on verdicts, omitted runs and single rows, as text for a terminal."""
    columns = main_cells(table)
    lines = zip(*([text for text, _ in cells] for cells in columns.values()), strict=True)
    return "\n".join([*aligned([list(columns), *lines]), *summary_notes(table)])


Cells = dict[str, list[tuple[str, bool]]]  # by the column's title: each row's text, and whether it is emphasized


def main_cells(table: Table) -> Cells:
    """Return the cells of the main table; supported differences are emphasized."""
    rows = printed_rows(table)
    shown = [row | {"model": _with_detector(row, rows)} for row in rows]
    columns = filled_columns(shown, VIEWS[table["task"]].columns)
    return {
        title: [
            (text, title.startswith("Difference") and is_supported(row)) for row, text in zip(rows, texts, strict=True)
        ]
        for title, texts in columns.items()
    }


def filled_columns(rows: Sequence[Row], columns: Sequence[Column]) -> dict[str, list[str]]:
    """Return each column's texts by its title, with `-` for an empty one, without columns that are empty."""
    texts = {column.title: [column.text(row) for row in rows] for column in columns}
    return {title: [text or NOTHING for text in column] for title, column in texts.items() if any(column)}


def _with_detector(row: Row, rows: Sequence[Row]) -> str:
    """Return the backbone, with its detector if the table has several."""
    several = len({other.get("detector") for other in rows}) > 1
    return f"{row['detector']} {row['model']}" if several else str(row["model"])


def _markdown(columns: Cells, notes: Sequence[str], emphasize: Any) -> str:
    texts = [[emphasize(text) if strong else text for text, strong in cells] for cells in columns.values()]
    lines = [
        " | ".join(columns),
        " | ".join("---" if i < 2 else "--:" for i in range(len(columns))),
        *(" | ".join(row) for row in zip(*texts, strict=True)),
    ]
    body = "\n".join(f"| {line} |" for line in lines)
    listed = "\n".join(f"- {note}" for note in notes)
    return f"{body}\n\n{listed}\n"


def _links(row: Row, runs: Sequence[Row]) -> str:
    if "runs" not in row:  # a direct contrast
        return NOTHING
    trained = [runs[i] for i in row["runs"] if runs[i]["seed"] is not None]
    if not trained:
        return str(runs[row["runs"][0]]["source"])
    records = [f"[{run['seed']}]({run['raw']}.json)" for run in trained]
    return ", ".join([f"[config]({trained[0]['raw']}.yaml)", *records])
