"""ImageNet-C: one row for each network, corruption and severity, and the mean corruption error."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.comparison import columns
from engine.data.evaluation_sets import CORRUPTIONS, SEVERITIES
from engine.runs.atomic_io import atomic_write

Row = dict[str, Any]

# Mean top-1 error of AlexNet over the severities, in % (from github.com/hendrycks/robustness). Hendrycks and Dietterich
# (ICLR 2019) divide a network's error by it before they take the mean over the corruptions.
ALEXNET = dict(
    zip(
        CORRUPTIONS,
        (
            *(88.6428, 89.4468, 92.2640, 81.9880, 82.6268, 78.5948, 79.8360),
            *(86.6816, 82.6572, 81.9324, 56.4592, 85.3204, 64.6056, 71.7840, 60.6500),
        ),
        strict=True,
    )
)
_KEYS = ("model", "attention", "seeds", "top1_error", "difference", "difference_low", "difference_high")


def write(tables: Mapping[str, Mapping[str, Any]], directory: Path) -> str:
    """Write the summary of the tables of all parts: corruptions.json, .csv and .md.

    Args:
        tables: of each part (`fog/3`), over the same networks.

    Returns:
        The summary as Markdown.
    """
    rows = [_row(part, row) for part, table in tables.items() for row in table["rows"]]
    networks = [
        {"model": row["model"], "attention": row["attention"], "mce": mean_corruption_error(errors)}
        for row, errors in _errors(tables)
    ]
    markdown = _markdown(rows, networks)
    text = json.dumps({"networks": networks, "rows": rows}, indent=2) + "\n"
    for name, content in (("json", text), ("csv", _csv(rows)), ("md", markdown)):
        _write(directory / f"corruptions.{name}", content.encode())
    return markdown


def _write(path: Path, content: bytes) -> None:
    atomic_write(path, lambda file: file.write(content))


def mean_corruption_error(errors: Mapping[str, float]) -> float | None:
    """Return the mean corruption error in %: 100 is AlexNet's. None unless every corruption and severity is present.

    Args:
        errors: top-1 error in % of each part.
    """
    if set(errors) != {f"{corruption}/{severity}" for corruption in CORRUPTIONS for severity in SEVERITIES}:
        return None
    ratios = [
        sum(errors[f"{corruption}/{severity}"] for severity in SEVERITIES) / len(SEVERITIES) / ALEXNET[corruption]
        for corruption in CORRUPTIONS
    ]
    return 100 * sum(ratios) / len(ratios)


def _errors(tables: Mapping[str, Mapping[str, Any]]) -> list[tuple[Row, dict[str, float]]]:
    """Return each network's row, and its error by part."""
    first = next(iter(tables.values()))["rows"]
    return [
        (row, {part: table["rows"][position]["top1_error"] for part, table in tables.items()})
        for position, row in enumerate(first)
    ]


def _row(part: str, row: Row) -> Row:
    corruption, severity = part.split("/")
    return {
        "corruption": corruption,
        "severity": int(severity),
        **{key: row.get(key) for key in _KEYS},
        "p_adjusted": row.get("p_adjusted"),
        "verdict": row.get("verdict"),
    }


def _markdown(rows: Sequence[Row], networks: Sequence[Row]) -> str:
    lines = ["| Backbone | Attention | Mean corruption error (%) |", "| --- | --- | --: |"]
    for network in networks:
        mce = "-" if network["mce"] is None else f"{network['mce']:.2f}"
        lines.append(f"| {network['model']} | {network['attention']} | {mce} |")
    titles = (
        "Corruption",
        "Severity",
        "Backbone",
        "Attention",
        "Top-1 error (%)",
        "Difference [95% interval]",
        "Verdict",
    )
    lines += ["", f"| {' | '.join(titles)} |", "| --- | --: | --- | --- | --: | --: | --- |"]
    for row in rows:
        cells = row["corruption"], row["severity"], row["model"], row["attention"], f"{row['top1_error']:.2f}"
        lines.append(f"| {' | '.join(map(str, cells))} | {columns.difference(row) or '-'} | {row['verdict'] or '-'} |")
    lines += [
        "",
        f"- Mean corruption error: the mean over the {len(CORRUPTIONS)} corruptions of the error divided by AlexNet's. "
        "It needs all corruptions and severities.",
        "- Each corruption and severity has a table of its own, with tests and notes, in the folder with its name.",
    ]
    return "\n".join(lines) + "\n"


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row | {"seeds": " ".join(map(str, row["seeds"]))})
    return text.getvalue()
